//! From a checkpoint and two sets of samples to a report.

pub mod analysis;
pub mod args;
pub mod collect;
pub mod inputs;
pub mod join;
pub mod jsonl;
pub mod measured;
pub mod page;
pub mod results;
pub mod run;
pub mod text;
pub mod uses;

/// The result of the program's steps.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
