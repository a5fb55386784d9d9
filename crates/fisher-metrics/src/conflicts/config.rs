//! The settings of [`Conflicts`](super::Conflicts).

use burn::config::Config;
use burn::module::ParamGroup;
use serde::{Deserialize, Serialize};

use crate::correction::Correction;
use crate::damping::Ridge;

/// What is compared at a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SliceBy {
    /// Every parameter by itself.
    Parameter,
    /// Every slice of an attention head in Q, K, V and O; shared key/value heads once.
    Head,
    /// All parameters of a layer together.
    Layer,
    /// Chosen parameters together, each set with a name.
    Chosen(Vec<(String, ParamGroup)>),
}

/// Configuration of [`Conflicts`](super::Conflicts).
#[derive(Config, Debug)]
pub struct ConflictsConfig {
    /// What is compared at a time.
    #[config(default = "SliceBy::Parameter")]
    pub by: SliceBy,
    /// Divide gradients by `√D(F)`, `F = ½(F_A + F_B)`, so that coordinates count by how unusual
    /// they are and not by how large; raw gradients when absent.
    pub whitening: Option<Ridge>,
    /// The false discovery rate, of slices and of pairs.
    #[config(default = 0.05)]
    pub alpha: f64,
    /// The correction for many tests.
    #[config(default = "Correction::BenjaminiHochberg")]
    pub correction: Correction,
    /// The least separation of a conflict.
    #[config(default = 0.0)]
    pub min_separation: f64,
    /// Relabellings sampled where all are more than 10 000. The smallest p is 1 / (1 + this).
    #[config(default = 1000)]
    pub relabellings: usize,
    /// Bootstrap resamples for the interval of a slice's mean cosine; 0 for none.
    #[config(default = 1000)]
    pub bootstrap: usize,
    /// Level of that interval.
    #[config(default = 0.95)]
    pub level: f64,
    /// Seed of relabellings and bootstrap.
    #[config(default = 0)]
    pub seed: u64,
    /// Conflicts listed; counts, clusters and hot spots are of all.
    #[config(default = 1000)]
    pub listed: usize,
    /// Keep cosine, p and q of every pair of samples in every slice: `n_A n_B` numbers each.
    #[config(default = false)]
    pub keep_pairs: bool,
    /// Bytes to work with, all threads together: half for tiles of gradients, half for what is held
    /// of slices (32 bytes a pair of samples, and with whitening 16 an element). As many slices are
    /// compared at a time as that allows, and one alone where it needs more.
    #[config(default = 268435456)]
    pub memory: usize,
    /// Show a progress bar, where standard error is a terminal.
    #[config(default = true)]
    pub progress: bool,
}
