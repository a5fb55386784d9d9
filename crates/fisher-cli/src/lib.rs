//! The program `fisher`: from a Hugging Face folder and JSON lines to statistics, results and a page
//! to read.
//!
//! [`models`] has the decoders, [`measure`] what is measured of them and made of it, [`page`] the
//! report. [`Cli`] is the program.

mod command;
pub mod device;
mod finish;
mod join;
pub mod measure;
pub mod memory;
pub mod models;
pub mod page;
mod run;

pub use command::Cli;
