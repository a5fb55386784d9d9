//! What two tasks want of a model that does not go together: where, which samples, and how surely.

mod collision;
mod component;
mod config;
mod lengths;
mod mirror;
mod operator;
mod report;
mod slice;
mod summary;
mod words;

pub use crate::pairs::SliceBy;
pub use collision::{MeanCosine, MeanGradients};
pub use component::{Component, HotSpot, Involved};
pub use config::{ConflictsConfig, PairOrder};
pub use lengths::Lengths;
pub use operator::Conflicts;
pub use report::{Answer, Conflict, ConflictReport, Pairs, SliceConflicts, Verdict};
