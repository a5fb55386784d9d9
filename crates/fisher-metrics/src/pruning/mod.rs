//! Which weights a task can do without: scores of groups or elements, the masks that prune the
//! lowest of them, and how far the scores and masks of two tasks agree.

mod advice;
mod bits;
mod compare;
mod halves;
mod masks;
mod overlap;
mod scores;
mod select;
mod suggestion;

pub use advice::Advice;
pub use compare::{Comparison, ComparisonConfig, ComparisonReport, spearman};
pub use masks::{Mask, Masks, Pruning, PruningConfig, Removed, Scope};
pub use overlap::{Agreement, Ceiling, Overlap, OverlapConfig, OverlapReport, RuleOfThumb};
pub use scores::{Score, Scores};
pub use suggestion::Suggestion;

pub use crate::error::ScoreKind;
