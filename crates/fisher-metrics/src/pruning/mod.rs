//! Which weights a task can do without: scores of groups or elements, the masks that prune the
//! lowest of them, and how far the scores and masks of two tasks agree.

mod bits;
mod compare;
mod masks;
mod overlap;
mod scores;

pub use compare::{Comparison, ComparisonConfig, ComparisonReport, spearman};
pub use masks::{Mask, Masks, Pruning, PruningConfig, Removed, Scope};
pub use overlap::{Advice, Agreement, Overlap, OverlapConfig, OverlapReport};
pub use scores::{Score, Scores};

pub use crate::error::ScoreKind;
