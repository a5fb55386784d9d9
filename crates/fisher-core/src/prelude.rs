//! What most programs use: `use fisher_core::prelude::*`.

pub use crate::gates::{GateKind, GateQuantity, GateScores, GateSet, Gates, GatesConfig};
pub use crate::gradient::{Gradient, GradientBatch, GradientSink, PerToken, Raw, SampleGradient};
pub use crate::grouping::{Attention, AttentionConfig, GroupReduction, HeadLayout, Scheme};
pub use crate::kind::FisherKind;
pub use crate::sample::Sample;
pub use crate::statistics::{Statistics, StatisticsConfig};
pub use crate::store::{GradientStore, GradientStoreConfig, Precision};
