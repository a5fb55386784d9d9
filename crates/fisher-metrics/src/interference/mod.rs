//! Where the attention of two tasks interferes, head by head and sample by sample.

mod config;
mod full;
mod invariants;
mod normalizer;
mod operator;
mod report;
mod score;
mod sign;

pub use config::{FisherEstimate, InterferenceConfig, Normalize, PairAggregate, Pool, Variant};
pub use invariants::{Check, SelfCheck};
pub use operator::Interference;
pub use report::{Collision, InterferenceReport, Significance, SliceScores, Verdict};
