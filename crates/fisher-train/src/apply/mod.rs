//! What follows from a Fisher for training: an optimizer that scales gradients, a penalty that keeps what was learnt,
//! and models merged into one.

mod diagonal;
mod ewc;
mod merge;
mod optimizer;

pub use ewc::{Ewc, EwcConfig};
pub use merge::{
    Average, Decided, FisherScale, Granularity, MergeConfig, MergeReport, MergeSource, Merged,
    Merging, Term,
};
pub use optimizer::{FisherOptimizer, FisherOptimizerConfig};
