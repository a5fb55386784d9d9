//! Scores as they come in: sums, the worst pairs, and all of them where they are kept.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

use fisher_core::grouping::Block;
use fisher_core::sample::Sample;

use super::config::{InterferenceConfig, PairAggregate};
use crate::damping::Health;
use crate::jackknife::Jackknife;
use crate::pairs::BlockSlices;

/// The scores of one block of one layer, as they come in.
pub(super) struct ScoredBlock {
    pub(super) layer: usize,
    pub(super) block: Block,
    pub(super) names: Vec<String>,
    pub(super) counts: [usize; 2],
    pub(super) divide: bool,
    /// Sums over all pairs, of every slice.
    pub(super) sums: Vec<f64>,
    /// The worst pairs: slice, sample of A, sample of B.
    pub(super) top: BinaryHeap<Reverse<Worst>>,
    pub(super) limit: usize,
    /// Whether the lowest scores are the worst.
    pub(super) low: bool,
    /// Of every slice, `[n_A, n_B]`, if kept.
    pub(super) kept: Option<Vec<Vec<f64>>>,
    pub(super) health: Vec<Health>,
    /// `tr F / n` of every slice, for the full variant.
    pub(super) eigenvalues: Vec<f64>,
    /// The sign of every slice's mean, for variants that have one.
    pub(super) tests: Vec<Option<Jackknife>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Worst {
    /// Larger is worse.
    pub(super) badness: f64,
    pub(super) score: f64,
    pub(super) slice: usize,
    pub(super) pair: [usize; 2],
}

impl Eq for Worst {}

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |w: &Self| (w.slice, w.pair);
        let badness = self.badness.total_cmp(&other.badness);
        badness.then(place(other).cmp(&place(self)))
    }
}

impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl ScoredBlock {
    pub(super) fn new(
        block: &BlockSlices,
        counts: [usize; 2],
        config: &InterferenceConfig,
    ) -> Self {
        let slices = block.slices.len();
        Self {
            layer: block.layer,
            block: block.block,
            names: block.slices.iter().map(|s| s.name.clone()).collect(),
            counts,
            divide: config.aggregate == PairAggregate::Mean,
            sums: vec![0.0; slices],
            top: BinaryHeap::new(),
            limit: config.top,
            low: config.variant.is_signed(),
            kept: config
                .keep_scores
                .then(|| vec![vec![0.0; counts[0] * counts[1]]; slices]),
            health: Vec::new(),
            eigenvalues: Vec::new(),
            tests: Vec::new(),
        }
    }

    /// Take in the sums over a slice of the pairs in `[left, right]`, row-major.
    pub(super) fn take(
        &mut self,
        slice: usize,
        elements: usize,
        ranges: &[Range<usize>; 2],
        sums: &[f64],
    ) {
        let factor = if self.divide {
            1.0 / elements as f64
        } else {
            1.0
        };
        let [left, right] = ranges;
        for (i, row) in left.clone().zip(sums.chunks_exact(right.len())) {
            for (j, sum) in right.clone().zip(row) {
                let score = sum * factor;
                self.sums[slice] += score;
                if let Some(kept) = &mut self.kept {
                    kept[slice][i * self.counts[1] + j] = score;
                }
                let badness = if self.low { -score } else { score };
                let full = self.top.len() >= self.limit;
                if full
                    && self
                        .top
                        .peek()
                        .is_none_or(|least| badness < least.0.badness)
                {
                    continue;
                }
                self.top.push(Reverse(Worst {
                    badness,
                    score,
                    slice,
                    pair: [i, j],
                }));
                if full {
                    self.top.pop();
                }
            }
        }
    }
}

pub(super) fn ids(samples: &[Sample]) -> Vec<String> {
    samples.iter().map(|s| s.id().to_owned()).collect()
}
