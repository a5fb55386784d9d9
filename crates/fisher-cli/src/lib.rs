#![doc = include_str!("../README.md")]
//! # Rooms
//!
//! [`models`] has the decoders, [`samples`] what goes into them, [`measure`] what is measured of them and
//! made of it, [`page`] the report, [`check`] what is looked at before, [`plan`] what follows for who makes models
//! smaller, [`influence`] which training samples move the losses of others. [`Cli`] is the program.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod check;
mod command;
pub mod content;
pub mod date;
pub mod device;
mod finish;
pub mod influence;
pub mod interrupt;
mod join;
pub mod measure;
pub mod memory;
pub mod models;
mod out;
pub mod page;
pub mod plan;
mod run;
mod runs;
pub mod samples;
mod say;
mod words;

pub use command::Cli;
