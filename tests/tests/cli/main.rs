//! The program `fisher`, and pictures as it and others write them. Needs the feature `cli`.

mod check;
mod families;
mod folders;
mod inputs;
mod page;
mod per_token;
mod pictures;
mod plan;
mod program;
