//! The settings of [`Interference`](super::Interference).

use burn::config::Config;
use fisher_core::grouping::Block;
use serde::{Deserialize, Serialize};

use crate::correction::Correction;
use crate::damping::Ridge;
use crate::pairs::BLOCKS;

/// The score `M_ij` of a sample `i` of task A and `j` of task B, over the `k` elements of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Variant {
    /// `Σ_k C_ik / Î_k · |g_jk|`: how strongly `j` pulls at what `i` depends on.
    ///
    /// Degenerate where it is averaged: with pool A and all samples, the mean over `i` is
    /// `Σ_k |g_jk|` whatever task A is, since `Î` is the mean of the very `C_i` it divides.
    Unsigned,
    /// `Σ_k g_ik g_jk / Î_k`: positive is synergy, negative is conflict.
    Signed,
    /// `Σ_k √(C_ik C_jk) / Î_k`: neither task comes first.
    Symmetric,
    /// `Σ_k C_ik / Î_k · |g_jk| / √Î_k`: does not change when a loss is multiplied.
    Natural,
    /// `g_iᵀ (F + λI)⁻¹ g_j` with the full empirical Fisher of the slice, exact by the Woodbury
    /// identity on the samples. With `leave_one_out` one linear system a sample. `λ = max(λ_min,
    /// λ_rel · tr F / n)`: relative to the mean of the eigenvalues of F that `n` samples make other
    /// than 0.
    Full,
}

impl Variant {
    /// Whether scores have a sign, so that low ones are conflict and the sign of their mean can be
    /// tested.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::Signed | Self::Full)
    }
}

/// Which Fisher normalizes: `Î = D(F)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pool {
    /// F of task A.
    A,
    /// F of task B.
    B,
    /// `½(F_A + F_B)`. The only pool whose Î, and with it which elements count, depends on how large
    /// the tasks' losses are beside each other.
    #[serde(rename = "pooled")]
    Pooled,
}

/// Which samples F is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FisherEstimate {
    /// All.
    All,
    /// Sample `i` leaves `F_A` when it is scored.
    LeaveOneOut,
}

/// What a slice's score stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PairAggregate {
    /// The mean over its elements: heads and blocks of different size compare.
    Mean,
    /// The sum: heads add up to their block.
    Sum,
}

/// What `g_j` is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Normalize {
    /// Nothing.
    None,
    /// `T_j`.
    PerTokenMean,
    /// `Σ_j T_j`.
    PerTokenSum,
}

/// Configuration of [`Interference`](super::Interference).
///
/// The defaults are those of the measure's first description: see [`Variant::Unsigned`] for what
/// their averaged map cannot say, and prefer [`Pool::B`] or [`Variant::Signed`] for one.
#[derive(Config, Debug, PartialEq)]
pub struct InterferenceConfig {
    /// The score.
    #[config(default = "Variant::Unsigned")]
    pub variant: Variant,
    /// Which Fisher normalizes.
    #[config(default = "Pool::A")]
    pub pool: Pool,
    /// Which samples it is of.
    #[config(default = "FisherEstimate::All")]
    pub estimate: FisherEstimate,
    /// What a slice's score stands for.
    #[config(default = "PairAggregate::Mean")]
    pub aggregate: PairAggregate,
    /// What `g_j` is divided by.
    #[config(default = "Normalize::None")]
    pub normalize: Normalize,
    /// The damping.
    #[config(default = "Ridge::new()")]
    pub ridge: Ridge,
    /// The blocks to look at.
    #[config(default = "BLOCKS.to_vec()")]
    pub blocks: Vec<Block>,
    /// Pairs of samples listed.
    #[config(default = 20)]
    pub top: usize,
    /// Keep the scores of all pairs: `n_A n_B` numbers for every block, layer and head.
    #[config(default = false)]
    pub keep_scores: bool,
    /// The level of the tests of the signs of means.
    #[config(default = 0.05)]
    pub alpha: f64,
    /// Their correction, over all cells.
    #[config(default = "Correction::BenjaminiHochberg")]
    pub correction: Correction,
    /// Bytes to work with, all threads together: half for tiles of gradients, half for what is held
    /// of heads (24 bytes an element, 16 a pair of samples that are scored together). As many heads
    /// are scored at a time as that allows, and one alone where it needs more. Scores that are kept
    /// come on top.
    #[config(default = 268435456)]
    pub memory: usize,
    /// Show a progress bar, where standard error is a terminal.
    #[config(default = true)]
    pub progress: bool,
}

impl InterferenceConfig {
    /// What is scored, as `key=value,..`: the settings that are not the default, or `default`.
    ///
    /// ```
    /// use fisher_metrics::interference::{InterferenceConfig, Pool, Variant};
    /// let config = InterferenceConfig::new();
    /// assert_eq!(config.label(), "default");
    /// let config = config.with_variant(Variant::Signed).with_pool(Pool::Pooled);
    /// assert_eq!(config.label(), "variant=signed,pool=pooled");
    /// ```
    pub fn label(&self) -> String {
        let default = Self::new();
        let mut named: Vec<String> = Vec::new();
        macro_rules! name {
            ($key:literal, $($field:ident).+) => {
                if self.$($field).+ != default.$($field).+ {
                    let value = serde_json::json!(self.$($field).+);
                    let text = value.as_str().map_or_else(|| value.to_string(), Into::into);
                    named.push(format!("{}={text}", $key));
                }
            };
        }
        name!("variant", variant);
        name!("pool", pool);
        name!("estimate", estimate);
        name!("aggregate", aggregate);
        name!("normalize", normalize);
        name!("epsilon", ridge.epsilon);
        name!("ridge", ridge.ridge);
        name!("ridge_rel", ridge.ridge_rel);
        if named.is_empty() {
            "default".into()
        } else {
            named.join(",")
        }
    }
}
