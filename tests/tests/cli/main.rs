//! The program `fisher`, and pictures as it and others write them. Needs the feature `cli`.

mod edges;
mod join;
mod page;
mod parts;
mod pictures;
mod program;
