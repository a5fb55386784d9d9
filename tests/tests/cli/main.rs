//! The program `fisher`, and pictures as it and others write them. Needs the feature `cli`.

mod families;
mod folders;
mod inputs;
mod page;
mod pictures;
mod program;
