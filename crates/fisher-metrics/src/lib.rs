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

pub mod conflicts;
mod correction;
mod damping;
mod error;
mod growth;
mod importance;
pub mod interference;
mod pairs;
mod permutation;
mod picture;
pub mod pruning;
mod ranking;
mod report;
mod scaling;
mod weights;

pub use conflicts::{
    Cluster, Conflict, ConflictReport, Conflicts, ConflictsConfig, HotSpot, Involved, MeanCosine,
    Pairs, SliceBy, SliceConflicts,
};
pub use correction::Correction;
pub use damping::{Damping, Health, Ridge};
pub use error::{Error, Result, ScoreKind};
pub use growth::{Growth, old_elements, old_part};
pub use importance::{Importance, ImportanceConfig, ImportanceReport, Ranked};
pub use interference::{
    Aggregate, Check, Collision, Estimate, Interference, InterferenceConfig, InterferenceReport,
    Normalize, Pool, SelfCheck, Significance, SliceScores, Variant,
};
pub use permutation::Relabelled;
pub use picture::{HeatMap, Picture, Scale};
pub use pruning::{
    Advice, Agreement, Comparison, ComparisonConfig, ComparisonReport, Mask, Masks, Overlap,
    OverlapConfig, OverlapReport, Pruning, PruningConfig, Removed, Scope, Score, Scores, spearman,
};
pub use ranking::{MassSet, RankedGroup, Ranking, RankingConfig, RankingReport};
pub use report::{SampleRef, Source, same_fisher, same_reduction};
pub use scaling::{Scaling, ScalingConfig};
pub use weights::Weights;
