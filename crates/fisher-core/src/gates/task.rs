//! What the samples of a task say of each gate.

use super::moments::Moments;
use crate::clusters::{clustered_errors, clusters_of};
use crate::sample::{Sample, SampleRecord, Seen};

/// A number of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GateQuantity {
    /// `m_G`, the mean of `(g_i · θ)_G / T_i`: the loss per token falls by it to first order when the gate is shut.
    FirstOrder,
    /// `F_ξG`, the mean of `((g_i · θ)_G)² / T_i`: the Fisher of the gate.
    Fisher,
    /// `−m_G + ½ F_ξG`: what the loss per token is predicted to rise by when the gate is shut.
    Predicted,
}

impl GateQuantity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FirstOrder, Self::Fisher, Self::Predicted];

    /// Of a sample with `product = (g_i · θ)_G` and so many tokens.
    fn of(self, product: f64, tokens: f64) -> f64 {
        let first = product / tokens;
        match self {
            Self::FirstOrder => first,
            Self::Fisher => first * product,
            Self::Predicted => first * (0.5 * product - 1.0),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FirstOrder => "first_order",
            Self::Fisher => "fisher",
            Self::Predicted => "predicted",
        }
    }
}

/// What the samples of a task say of each gate, in the order of [`GateScores::sets`](super::GateScores::sets).
#[derive(Debug, Clone)]
pub struct TaskGates {
    pub(super) gates: usize,
    pub(super) samples: Seen,
    /// By [`GateQuantity::ALL`].
    pub(super) moments: [Moments; 3],
    /// `(g_i · θ)_G`, `[samples, gates]`, while they are few.
    pub(super) products: Option<Vec<f64>>,
}

impl TaskGates {
    pub(super) fn new(gates: usize, limit: usize) -> Self {
        Self {
            gates,
            samples: Seen::default(),
            moments: GateQuantity::ALL.map(|_| Moments::new(gates)),
            products: (limit > 0).then(Vec::new),
        }
    }

    /// Take in samples with their products, `[samples, gates]`.
    pub(super) fn push(&mut self, samples: &[Sample], products: &[f64], limit: usize) {
        for (sample, row) in samples.iter().zip(products.chunks(self.gates.max(1))) {
            let tokens = sample.tokens() as f64;
            for (moments, quantity) in self.moments.iter_mut().zip(GateQuantity::ALL) {
                moments.push(row.iter().map(|&product| quantity.of(product, tokens)));
            }
            self.samples.push(sample.into());
        }
        if let Some(kept) = &mut self.products {
            kept.extend(products);
        }
        self.keep(limit);
    }

    pub(super) fn merge(&mut self, other: Self, limit: usize) {
        for (ours, theirs) in self.moments.iter_mut().zip(&other.moments) {
            ours.merge(theirs);
        }
        self.products = match (self.products.take(), other.products) {
            (Some(mut ours), Some(theirs)) => {
                ours.extend(theirs);
                Some(ours)
            }
            _ => None,
        };
        self.samples.extend(other.samples);
        self.keep(limit);
    }

    fn keep(&mut self, limit: usize) {
        if let Some(kept) = self.products.take_if(|kept| kept.len() > limit) {
            tracing::warn!(
                numbers = kept.len(),
                limit,
                "gates no longer keep a number a sample and gate: means and errors go on, rows are gone"
            );
        }
    }

    /// Samples counted: those that were not skipped.
    pub fn count(&self) -> u64 {
        self.moments[0].count
    }

    /// The samples in the order they came, with those that were skipped.
    pub fn samples(&self) -> &[SampleRecord] {
        self.samples.records()
    }

    /// The samples that were counted, in the order of [`TaskGates::rows`].
    pub fn counted(&self) -> impl Iterator<Item = &SampleRecord> {
        self.samples().iter().filter(|s| s.skipped.is_none())
    }

    /// The quantity of every gate; `None` without samples.
    pub fn mean(&self, of: GateQuantity) -> Option<&[f64]> {
        let moments = &self.moments[of as usize];
        (moments.count > 0).then_some(&*moments.mean)
    }

    /// Its standard error over samples, or over clusters where samples name theirs. `None` for fewer than two, and
    /// where samples have clusters and their rows are not kept any more.
    pub fn standard_error(&self, of: GateQuantity) -> Option<Vec<f64>> {
        if self.counted().all(|sample| sample.cluster.is_none()) {
            return self.moments[of as usize].errors();
        }
        clustered_errors(&self.rows(of)?, self.gates, &clusters_of(self.counted()))
    }

    /// `(g_i · θ)_G` of each counted sample, `[samples, gates]`, while they are kept
    /// ([`GatesConfig::rows`](super::GatesConfig::rows)).
    pub fn products(&self) -> Option<&[f64]> {
        self.products.as_deref()
    }

    /// The quantity of each counted sample, whose mean is [`TaskGates::mean`]: `[samples, gates]`, while rows are kept.
    pub fn rows(&self, of: GateQuantity) -> Option<Vec<f64>> {
        let products = self.products.as_ref()?.chunks(self.gates.max(1));
        let rows = products.zip(self.counted()).flat_map(|(row, sample)| {
            let tokens = sample.tokens as f64;
            row.iter().map(move |&product| of.of(product, tokens))
        });
        Some(rows.collect())
    }
}
