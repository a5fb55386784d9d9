//! The program `fisher`, and pictures as it and others write them. Needs the feature `cli`.

mod config;
mod merge;
mod page;
mod pictures;
mod program;
mod size;
