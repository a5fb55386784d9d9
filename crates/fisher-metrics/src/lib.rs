//! What Fisher statistics say.
//!
//! Every analysis is an operator in Burn's manner: a configuration, `init()`, and
//! `forward(statistics)` that gives a report. Reports are serializable and print as tables.

mod error;
mod importance;

pub use error::Error;
pub use importance::{Importance, ImportanceConfig, ImportanceReport, Ranked};

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
