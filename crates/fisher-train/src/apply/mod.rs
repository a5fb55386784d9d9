//! What follows from a Fisher for training: an optimizer that scales gradients, a penalty that keeps what was learnt,
//! models merged into one, and what a step on one task does to another.

mod diagonal;
mod ewc;
mod kronecker_merge;
mod merge;
mod natural;
mod optimizer;
mod precondition;
mod transfer;

pub use ewc::{Ewc, EwcConfig};
pub use kronecker_merge::{
    KroneckerMergeConfig, KroneckerMergeReport, KroneckerMerged, KroneckerMerging, KroneckerSource,
    Solved,
};
pub use merge::{
    Average, Decided, FisherScale, Granularity, MergeConfig, MergeReport, MergeSource, Merged,
    Merging, Term,
};
pub use natural::{Adapted, NaturalGradient, NaturalGradientConfig};
pub use optimizer::{FisherOptimizer, FisherOptimizerConfig};
pub use transfer::{MeanChange, Transfer, TransferConfig, TransferReport, Transferred};
