//! The test of one slice: cosines across the tasks, their p-values, and intervals by bootstrap.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use super::config::ConflictsConfig;
use crate::damping::Health;
use crate::permutation::{Relabelled, Relabellings};

/// The mean cosine between the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanCosine {
    /// Over all pairs of samples.
    pub mean: f64,
    /// Bootstrap interval over resampled samples, if that was asked for.
    pub interval: Option<[f64; 2]>,
}

/// A slice before the slices are compared with each other.
#[derive(Debug)]
pub(super) struct Tested {
    pub(super) name: String,
    pub(super) elements: usize,
    pub(super) health: Option<Health>,
    pub(super) relabelled: Option<Relabelled>,
    pub(super) mean: Option<MeanCosine>,
    /// The samples of each task that have a direction.
    pub(super) present: [Vec<usize>; 2],
    /// Pairs that may turn out to conflict.
    pub(super) candidates: Vec<Candidate>,
    /// Cosine, p and q of every pair of those present, row-major, where they are kept.
    pub(super) all: Option<[Vec<f64>; 3]>,
}

impl Tested {
    /// How many pairs were compared.
    pub(super) fn pairs(&self) -> usize {
        self.present[0].len() * self.present[1].len()
    }
}

/// A pair that conflicts if its slice is selected and its q is small enough then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Row-major, of the samples present.
    pub(super) pair: usize,
    pub(super) cosine: f64,
    pub(super) p: f64,
    pub(super) q: f64,
}

/// What is drawn once and used for every slice.
pub(super) struct Resamples {
    pub(super) relabellings: Relabellings,
    /// How often each sample of either task is drawn.
    draws: Vec<[Vec<f64>; 2]>,
}

impl Resamples {
    pub(super) fn new(first: usize, second: usize, config: &ConflictsConfig) -> Self {
        // A stream of its own: the relabellings do not depend on whether there is a bootstrap.
        let rng = &mut ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(1);
        let mut draw = |n: usize| {
            let mut counts = vec![0.0; n];
            (0..n).for_each(|_| counts[rng.random_range(0..n)] += 1.0);
            counts
        };
        let sizes = [first, second];
        Self {
            relabellings: Relabellings::new(first, second, config.relabellings, config.seed),
            draws: (0..config.bootstrap)
                .map(|_| sizes.map(&mut draw))
                .collect(),
        }
    }

    /// The percentile interval of the mean of `cross`, `[first, others]`, over resampled samples.
    pub(super) fn interval(&self, cross: &[f64], first: usize, level: f64) -> Option<[f64; 2]> {
        if self.draws.is_empty() || cross.is_empty() {
            return None;
        }
        let others = cross.len() / first;
        let mean = |[a, b]: &[Vec<f64>; 2]| {
            let rows = cross.chunks_exact(others).zip(a);
            let drawn = rows.filter(|(_, count)| **count > 0.0);
            let sum: f64 = drawn
                .map(|(row, count)| count * row.iter().zip(b).map(|(x, n)| x * n).sum::<f64>())
                .sum();
            sum / cross.len() as f64
        };
        let mut means: Vec<f64> = self.draws.iter().map(mean).collect();
        means.sort_by(f64::total_cmp);
        let at = |share: f64| means[(share * (means.len() - 1) as f64).round() as usize];
        Some([at(0.5 - level / 2.0), at(0.5 + level / 2.0)])
    }
}

pub(super) fn separation(cosine: f64) -> f64 {
    ((1.0 - cosine) / 2.0).sqrt()
}
