//! The configuration.

use burn::config::Config;

use crate::pairs::SliceBy;

/// Configuration of [`Likeness`](super::Likeness).
#[derive(Config, Debug)]
pub struct LikenessConfig {
    /// What is compared at a time. Slices that share no parameter are also compared together.
    #[config(default = "SliceBy::Parameter")]
    pub by: SliceBy,
    /// Eigenvectors of either task whose spaces are compared.
    #[config(default = 8)]
    pub top: usize,
    /// Ways to split the samples of both tasks in halves, of which spaces are compared too.
    #[config(default = 2)]
    pub splits: usize,
    /// Relabellings sampled where all are more than 10 000; the smallest p is 1 / (1 + this).
    #[config(default = 1000)]
    pub relabellings: usize,
    /// Level of the intervals, each by itself.
    #[config(default = 0.95)]
    pub level: f64,
    /// Seed of relabellings and splits.
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
