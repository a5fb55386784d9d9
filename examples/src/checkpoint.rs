//! From a checkpoint and two sets of samples to a report.

pub mod analysis;
pub mod page;
pub mod results;
pub mod run;
