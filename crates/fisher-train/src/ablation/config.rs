//! How parts are taken out, and in what the loss is counted.

use burn::config::Config;
use serde::{Deserialize, Serialize};

/// What becomes of the weights of a group that is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AblationKind {
    /// They are 0. What is zero need not be silent: a channel before a norm still puts out the norm's bias, a layer
    /// without a residual connection puts out a constant.
    #[default]
    Zero,
    /// What they add to the outputs of their matrix is replaced by its mean over reference samples: they are 0, and the
    /// bias beside the matrix takes over `Σ_((k,o)∈G) E[x_k] W_ko`, where `x` is what goes into the matrix and the mean
    /// is over all positions of the reference samples that their losses depend on.
    ///
    /// That is mean ablation of a head (its slice of O) or a neuron before its nonlinearity, exactly, and
    /// reachable in an unmodified model. It needs a bias beside the matrix and an engine that finds the gradient as a
    /// product with the matrix's input ([`Engine::Trace`](crate::capture::Engine::Trace)), and is refused elsewhere, as
    /// for whole layers. The mean does not depend on the position, and is not taken after the nonlinearity.
    Mean,
    /// They are drawn, without replacement where there are enough, from the other weights of their own tensor; where the
    /// group is the whole tensor, its weights are permuted. The scale of the weights stays, what was learnt goes. The
    /// increase is the mean over [`AblationConfig::draws`].
    ///
    /// This resamples weights. It is not the resampling of activations from other samples (as in causal scrubbing),
    /// which needs access to them.
    Resample,
}

/// In what the loss of a sample is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AblationUnit {
    /// `L_i / T_i`: the mean over samples is of the same unit as gates and `½ F θ²` per token.
    #[default]
    PerToken,
    /// `L_i`.
    TokenSum,
}

/// How the interval of a mean increase is had. Both take clusters whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AblationInterval {
    /// Student's t on the standard error over clusters, with one degree of freedom less than there are clusters.
    #[default]
    StudentT,
    /// Percentiles of [`AblationConfig::bootstraps`] means of clusters drawn with replacement.
    Bootstrap,
}

/// Configuration of [`Ablation`](super::Ablation).
#[derive(Config, Debug)]
pub struct AblationConfig {
    /// What becomes of the weights.
    #[config(default = "AblationKind::Zero")]
    pub kind: AblationKind,
    /// In what losses are counted.
    #[config(default = "AblationUnit::PerToken")]
    pub unit: AblationUnit,
    /// Draws of weights that are averaged, for [`AblationKind::Resample`].
    #[config(default = 4)]
    pub draws: usize,
    /// Level of the intervals.
    #[config(default = 0.95)]
    pub level: f64,
    /// How intervals are had.
    #[config(default = "AblationInterval::StudentT")]
    pub interval: AblationInterval,
    /// Draws of clusters for [`AblationInterval::Bootstrap`] and for the ranks of gates; too few for the level leave every
    /// rank open.
    #[config(default = 2000)]
    pub bootstraps: usize,
    /// Seed of all draws.
    #[config(default = 0)]
    pub seed: u64,
    /// Show a progress bar, where standard error is a terminal.
    #[config(default = true)]
    pub progress: bool,
}
