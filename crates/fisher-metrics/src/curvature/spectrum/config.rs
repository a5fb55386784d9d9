//! The settings of [`Spectrum`](super::Spectrum).

use burn::config::Config;
use serde::{Deserialize, Serialize};

use crate::pairs::SliceBy;

/// The `c` of the effective dimension `Σ λ/(λ + c)`: eigenvalues far above it count 1, those far below 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cutoff {
    /// c itself.
    Absolute(f64),
    /// `c = r tr F`, of each slice by itself. The dimension then does not depend on the scale of the loss, and is
    /// below 1/r.
    Relative(f64),
}

impl Cutoff {
    /// c, for such a trace.
    pub fn of(self, trace: f64) -> f64 {
        match self {
            Self::Absolute(c) => c,
            Self::Relative(share) => share * trace,
        }
    }
}

/// Configuration of [`Spectrum`](super::Spectrum).
#[derive(Config, Debug)]
pub struct SpectrumConfig {
    /// What has a spectrum of its own. Slices that share no parameter are also taken together.
    #[config(default = "SliceBy::Parameter")]
    pub by: SliceBy,
    /// c of the effective dimension.
    #[config(default = "Cutoff::Relative(1e-3)")]
    pub cutoff: Cutoff,
    /// Eigenvectors of which the samples are told, and held-out eigenvalues.
    #[config(default = 3)]
    pub top: usize,
    /// Samples told of each, those with the largest shares.
    #[config(default = 10)]
    pub listed: usize,
    /// Ways to split the samples in halves, for held-out eigenvalues; none for 0.
    #[config(default = 2)]
    pub splits: usize,
    /// Level of the intervals, each by itself.
    #[config(default = 0.95)]
    pub level: f64,
    /// Seed of the splits.
    #[config(default = 0)]
    pub seed: u64,
    /// Bytes to work with, all threads together: half for tiles of gradients, half for what is held of slices (48
    /// bytes a pair of samples). One slice alone where it needs more.
    #[config(default = 268435456)]
    pub memory: usize,
    /// Show a progress bar, where standard error is a terminal.
    #[config(default = true)]
    pub progress: bool,
}
