#![doc = include_str!("../README.md")]
//! # Rooms
//!
//! [`models`] has the decoders, [`measure`] what is measured of them and made of it, [`page`] the
//! report. [`Cli`] is the program.

mod command;
pub mod device;
mod finish;
pub mod interrupt;
mod join;
pub mod measure;
pub mod memory;
pub mod models;
pub mod page;
mod run;

pub use command::Cli;
