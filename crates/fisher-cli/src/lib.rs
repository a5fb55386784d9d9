#![doc = include_str!("../README.md")]
//! # Rooms
//!
//! [`models`] has the decoders, [`samples`] what goes into them, [`measure`] what is measured of them and
//! made of it, [`page`] the report. [`Cli`] is the program.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod command;
pub mod content;
pub mod device;
mod finish;
mod join;
pub mod measure;
pub mod memory;
pub mod models;
mod out;
pub mod page;
mod run;
pub mod samples;
mod say;
mod words;

pub use command::Cli;
