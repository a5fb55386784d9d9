//! What most programs use, of this crate and the two below it: `use fisher_train::prelude::*`.

pub use fisher_core::prelude::*;
pub use fisher_metrics::prelude::*;

pub use crate::ablation::{Ablation, AblationConfig, AblationKind, AblationReport};
pub use crate::apply::{
    Ewc, EwcConfig, FisherOptimizer, FisherOptimizerConfig, MergeConfig, MergeSource,
    NaturalGradient, NaturalGradientConfig,
};
pub use crate::batch::{SampleBatch, SampleLoss, SampleMapper};
pub use crate::capture::{CaptureConfig, Engine, Names, NonFinite, check};
pub use crate::collect::{CheckpointConfig, CollectorConfig};
pub use crate::kinds::Fisher;
pub use crate::labels::{Aligned, Class, Labels, NextToken};
pub use crate::losses::SampleLosses;
pub use crate::monitor::{
    FisherHook, HookConfig, HookSource, NoiseScaleConfig, Quantity, Schedule,
};
pub use crate::sample_loss;
pub use crate::sketch::SketchConfig;
pub use crate::targets::Targets;
