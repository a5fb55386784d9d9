#![doc = include_str!("../README.md")]
//! # Rooms
//!
//! [`models`] has the decoders, [`measure`] what is measured of them and made of it, [`page`] the
//! report, [`check`] what is looked at before, [`plan`] what follows for who makes models smaller. [`Cli`] is the program.

pub mod check;
mod command;
pub mod device;
mod finish;
mod join;
pub mod measure;
pub mod memory;
pub mod models;
pub mod page;
pub mod plan;
mod run;

pub use command::Cli;
