//! What a Fisher number is.
//!
//! The diagonal empirical Fisher of a task is the mean over its *samples* of the squared
//! per-sample gradient, `F = (1/n) Σ_i C_i` with `C_i = g_i ⊙ g_i / T_i`, where `g_i` is the
//! gradient of the *token-sum* loss of sample `i` and `T_i` its number of active tokens
//! (Martens 2020, "New insights and perspectives on the natural gradient method", §5, §11).
//!
//! Data flows one way through this crate:
//!
//! 1. a [`Gradient`] carries its loss unit in its type ([`TokenSum`], [`TokenMean`]);
//! 2. squared per sample it is a [`Contribution`] ([`PerToken`] or [`Raw`]);
//! 3. a [`Grouping`] reduces contributions to channels, rows or attention heads;
//! 4. a [`Welford`] accumulator keeps mean and variance over samples;
//! 5. [`Statistics`] hold the accumulators of several tasks, and are saved, loaded and merged;
//! 6. a [`GradientStore`] keeps the gradients themselves, to compare samples with each other.
//!
//! There is no autodiff and no loop here: gradients come from the crate `fisher-train`.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use fisher_core::{Gradient, PerToken, Sample, Tokens, Welford};
//!
//! let device = Device::flex();
//! // Two samples of one parameter with two elements; the gradients cancel, their squares do not.
//! let gradient = Gradient::token_sum(Tensor::<2>::from_floats([[1.0, -1.0], [-1.0, 1.0]], &device));
//! let samples = [Sample::new("first", 1)?, Sample::new("second", 1)?];
//! let contribution = gradient.contribution::<PerToken>(&Tokens::of(&samples, &device));
//!
//! let mut fisher = Welford::new(2, &device);
//! fisher.push_batch(contribution.tensor().clone());
//! assert_eq!(fisher.read()?.mean, Some(vec![1.0, 1.0]));
//! # Ok::<(), fisher_core::Error>(())
//! ```

pub mod container;
mod error;
pub mod gradient;
pub mod grouping;
mod host;
mod kind;
pub mod model;
pub mod moments;
mod provenance;
mod sample;
pub mod squares;
pub mod statistics;
pub mod store;

pub use container::ensure_writable;
pub use error::{Error, Result};
pub use gradient::{
    Contribution, ContributionUnit, Gradient, GradientBatch, GradientSink, GradientUnit, PerToken,
    Raw, SampleGradient, TokenMean, TokenSum, add_at, at_least_single, unit_rows,
};
pub use grouping::{
    Attention, AttentionConfig, Block, Fused, Grouping, HeadKey, HeadLayout, Reduction, Scheme,
    Totals,
};
pub use kind::FisherKind;
pub use model::{
    Catalogue, Orientation, Parameter, Role, Ties, for_each_weight, hash_weights, new_ids,
};
pub use moments::{ConfidenceInterval, Distribution, Ema, Moments, Welford, accumulation_dtype};
pub use provenance::{Provenance, Steps};
pub use sample::{Sample, SampleRecord, Tokens};
pub use squares::{SquaredNorms, Way};
pub use statistics::{
    Averages, ParameterStatistics, SCHEMA_VERSION, SavedSamples, Statistics, StatisticsConfig,
    TaskStatistics,
};
pub use store::{GradientStore, GradientStoreConfig, Precision, Usage};
