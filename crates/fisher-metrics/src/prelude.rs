//! What most programs use: `use fisher_metrics::prelude::*`.

pub use crate::conflicts::{ConflictReport, Conflicts, ConflictsConfig, SliceBy};
pub use crate::curvature::likeness::{Likeness, LikenessConfig, LikenessReport};
pub use crate::curvature::spectrum::{Spectrum, SpectrumConfig, SpectrumReport};
pub use crate::damping::{Damping, Ridge};
pub use crate::growth::Growth;
pub use crate::importance::{Importance, ImportanceConfig, ImportanceReport};
pub use crate::interference::{
    Interference, InterferenceConfig, InterferenceReport, Pool, Variant,
};
pub use crate::picture::Picture;
pub use crate::pruning::{ComparisonConfig, Masks, OverlapConfig, PruningConfig, Scope, Scores};
pub use crate::ranking::{Ranking, RankingConfig, RankingReport};
pub use crate::scaling::{Scaling, ScalingConfig};
pub use crate::truth::{Measured, TruthReport, TruthTable, TruthTableConfig};
pub use crate::weights::Weights;
