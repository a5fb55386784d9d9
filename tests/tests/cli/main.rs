//! The program `fisher`, and pictures as it and others write them. Needs the feature `cli`.

mod check;
mod classifiers;
mod config;
mod dtype;
mod edges;
mod families;
mod folders;
mod influence;
mod inputs;
mod join;
mod merge;
mod page;
mod parts;
mod per_token;
mod pictures;
mod plan;
mod program;
mod size;
