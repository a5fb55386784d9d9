//! What one pass over a batch leaves of it.

use std::collections::BTreeMap;

use fisher_core::{FisherKind, Sample};

use super::factors::Factors;
use super::rounding::Rounding;
use super::together::{Together, is_ragged};

/// Elements of whole gradients of a batch that are held: 256 MB.
pub(crate) const HELD: usize = 1 << 26;

/// The per-sample gradients of a batch.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) samples: Vec<Sample>,
    /// `L_i`
    pub(crate) losses: Vec<f64>,
    /// Of which Fisher the gradients are.
    pub(crate) kind: FisherKind,
    /// What gives the gradients of each parameter; `None` when the loss does not reach it.
    pub(crate) factors: BTreeMap<String, Option<Factors>>,
    /// Parameters whose gradients the loop has to give, and why.
    pub(crate) left: BTreeMap<String, String>,
    /// Whether losses and factors are finite.
    pub(crate) finite: bool,
    /// What rounding may do in the types that took part.
    pub(crate) rounding: Rounding,
}

impl Captured {
    pub(crate) fn together(&self) -> Together {
        Together {
            losses: self.losses.clone(),
            tokens: self.tokens(),
            rounding: self.rounding,
        }
    }

    fn tokens(&self) -> Vec<u64> {
        self.samples.iter().map(Sample::tokens).collect()
    }

    /// What tells kinds of batches apart: how many samples there are, whether they differ in their active
    /// tokens, and how the gradients of each parameter are had.
    pub(crate) fn shape(&self) -> (usize, bool, Vec<Option<String>>) {
        let ways = self.factors.values().map(|f| f.as_ref().map(Factors::way));
        (
            self.samples.len(),
            is_ragged(&self.tokens()),
            ways.collect(),
        )
    }
}
