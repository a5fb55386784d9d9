//! What Fisher statistics say.
//!
//! Every analysis is an operator in Burn's manner: a configuration, `init()`, and
//! `forward(..)` that gives a report. Reports are serializable and print as tables.
//!
//! 1. [`Importance`] ranks whole layers and heads, [`Ranking`] every group, with error bars;
//! 2. [`Scores`] of groups or elements become [`Masks`] by [`Pruning`];
//! 3. [`Scaling`] divides gradients by the Fisher;
//! 4. [`Overlap`] compares the masks of two tasks, [`compare`] their scores;
//! 5. [`Conflicts`] says which samples of two tasks collide, where and how surely;
//! 6. [`Interference`] scores attention heads, sample against sample.

mod bits;
mod compare;
mod conflicts;
mod correction;
mod error;
mod finite;
mod growth;
mod importance;
mod interference;
mod masks;
mod overlap;
mod pairs;
mod picture;
mod ranking;
mod relabel;
mod ridge;
mod scaling;
mod scores;
mod source;
mod weights;
mod work;

pub use compare::{Comparison, compare, spearman};
pub use conflicts::{
    Cluster, Conflict, ConflictReport, Conflicts, ConflictsConfig, HotSpot, Involved, MeanCosine,
    Pairs, SampleRef, SliceBy, SliceConflicts,
};
pub use correction::Correction;
pub use error::{Error, Result, ScoreKind};
pub use growth::{Growth, old_elements, old_part};
pub use importance::{Importance, ImportanceConfig, ImportanceReport, Ranked};
pub use interference::{
    Aggregate, Check, Collision, Estimate, Interference, InterferenceConfig, InterferenceReport,
    Normalize, Pool, SelfCheck, Significance, SliceScores, Variant,
};
pub use masks::{Mask, Masks, Pruning, PruningConfig, Removed, Scope};
pub use overlap::{Advice, Agreement, Overlap, OverlapConfig, OverlapReport};
pub use picture::{HeatMap, Picture, Scale};
pub use ranking::{MassSet, RankedGroup, Ranking, RankingConfig, RankingReport};
pub use relabel::Relabelled;
pub use ridge::{Health, Ridge};
pub use scaling::{Damping, Scaling, ScalingConfig};
pub use scores::{Score, Scores};
pub use source::{Source, same_fisher, same_reduction};
pub use weights::Weights;
