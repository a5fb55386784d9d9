//! The settings of [`Conflicts`](super::Conflicts).

use burn::config::Config;
use serde::{Deserialize, Serialize};

use crate::correction::Correction;
use crate::damping::Ridge;
use crate::pairs::SliceBy;

/// Which pairs are the largest, in the mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PairOrder {
    /// Those of largest |cos|: directions, whatever their size. Where tasks agree on most samples, their
    /// positive cosines are decoys beside which few negative ones stand out.
    Cosine,
    /// Those of largest |⟨g_i, g_j⟩|: what a step on the one does to the loss of the other. Samples that the
    /// model knows have small gradients, and stand in nobody's way.
    Product,
}

/// Configuration of [`Conflicts`](super::Conflicts).
#[derive(Config, Debug)]
pub struct ConflictsConfig {
    /// What is compared at a time.
    #[config(default = "SliceBy::Parameter")]
    pub by: SliceBy,
    /// Divide gradients by `√D(F)`, F over the samples of both tasks together (so that it does not know
    /// which sample is of which task): coordinates count by how unusual they are and not by how large.
    /// Raw gradients when absent.
    pub whitening: Option<Ridge>,
    /// The false discovery rate: of slices for each question, and of pairs in a slice.
    #[config(default = 0.05)]
    pub alpha: f64,
    /// The correction for many slices.
    #[config(default = "Correction::BenjaminiHochberg")]
    pub correction: Correction,
    /// The least |cos| of a conflict: below it a cosine has a sign and no size.
    #[config(default = 0.1)]
    pub floor: f64,
    /// Which pairs are the largest, where negative ones are held against positive ones.
    #[config(default = "PairOrder::Cosine")]
    pub order: PairOrder,
    /// Relabel only among samples of like length: whose active tokens differ by less than a factor of two
    /// (an octave). Samples of unlike length can be apart by that alone.
    #[config(default = false)]
    pub like_lengths: bool,
    /// Relabellings sampled where all are more than 10 000; the smallest p is 1 / (1 + this). When absent
    /// as many as let one slice alone be selected, twenty times over: `20 c/α`, where c is what the
    /// correction multiplies the smallest p by (the number m of slices; `m Σ 1/k` by Benjamini and
    /// Yekutieli), at least 1000; where that is more than 20 000, `2 c/α`, at least 20 000. Signs are drawn
    /// `2 c/α` times, at least 1000. Of either no more than 1000 are drawn for slices whose p is above
    /// 10 α by then, and fewer where p is known to be large sooner.
    pub relabellings: Option<usize>,
    /// Level of the intervals of inner products of mean gradients, each by itself. Those of mean
    /// cosines have the levels at which they agree with the verdicts ([`ConflictReport::bounds`](super::ConflictReport::bounds)).
    #[config(default = 0.95)]
    pub level: f64,
    /// Seed of relabellings and of drawn signs.
    #[config(default = 0)]
    pub seed: u64,
    /// Conflicts listed; counts, components and hot spots are of all.
    #[config(default = 1000)]
    pub listed: usize,
    /// The pairs of lowest cosine that are listed, whether they conflict or not.
    #[config(default = 10)]
    pub lowest: usize,
    /// Keep cosine and q of every pair of samples in every slice: `n_A n_B` numbers each.
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
