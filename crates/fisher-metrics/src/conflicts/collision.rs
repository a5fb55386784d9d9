//! Whether the tasks collide: the inner product of their mean gradients.

use serde::{Deserialize, Serialize};

use crate::jackknife::{Jackknife, margins};

/// The mean gradients of two tasks over a slice.
///
/// A small step `−η ḡ_A` changes the mean loss of a sample of task B by `−η ⟨ḡ_A, ḡ_B⟩`, to first
/// order: where the inner product is negative, what helps A costs B. That is of raw gradients and
/// of a step on this slice alone; of gradients whitened by D it is of the step `−η ḡ_A/D`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanGradients {
    /// `⟨ḡ_A, ḡ_B⟩`, the mean of the inner products of all pairs, with its jackknife error.
    pub inner: Jackknife,
    /// Their cosine with unbiased norms; `None` where such a norm is not above 0, so that noise is all
    /// there is to see of a mean gradient.
    pub cosine: Option<MeanCosine>,
}

/// `⟨ḡ_A, ḡ_B⟩ / √(u_A u_B)` with `u = |ḡ|² − tr Σ/n`, which is the mean inner product of different
/// samples of a task (pairs of one cluster left out). The plain norms are too large by the noise in the
/// mean, so that the plain cosine is too close to 0. This one can be beyond ±1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanCosine {
    /// The cosine.
    pub value: f64,
    /// By leaving out each cluster once; `None` where that leaves a norm that is not above 0.
    pub standard_error: Option<f64>,
}

/// What is kept of the inner products of a slice: they add up over slices.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    /// Of each sample of a task: its mean product with the other task.
    across: [Vec<f64>; 2],
    /// Of each sample of a task: the sum of its products with samples of other clusters of the task.
    within: [Vec<f64>; 2],
}

impl Sums {
    /// Of the inner products of all samples, the first task's first.
    pub(super) fn new(gram: &[f64], clusters: [&[usize]; 2]) -> Option<Self> {
        let [first, others] = clusters.map(<[usize]>::len);
        let n = first + others;
        let cross: Vec<f64> = gram
            .chunks_exact(n)
            .take(first)
            .flat_map(|row| &row[first..])
            .copied()
            .collect();
        let across = margins(&cross, [first, others])?;
        let within = [0, 1].map(|task| {
            let offset = task * first;
            let of = clusters[task];
            let sum = |i: usize| {
                let row = &gram[(offset + i) * n + offset..][..of.len()];
                let others = row.iter().zip(of).filter(|(_, c)| **c != of[i]);
                others.map(|(x, _)| x).sum()
            };
            (0..of.len()).map(sum).collect()
        });
        Some(Self { across, within })
    }

    /// These and those of another slice.
    pub(super) fn add(&mut self, other: &Self) {
        let ours = self.across.iter_mut().chain(&mut self.within);
        for (ours, theirs) in ours.zip(other.across.iter().chain(&other.within)) {
            ours.iter_mut().zip(theirs).for_each(|(x, y)| *x += y);
        }
    }

    pub(super) fn gradients(&self, clusters: [&[usize]; 2], level: f64) -> Option<MeanGradients> {
        let sides = [0, 1].map(|task| (&self.across[task][..], clusters[task]));
        let inner = Jackknife::of_margins(sides, level)?;
        Some(MeanGradients {
            inner,
            cosine: self.cosine(clusters),
        })
    }

    fn cosine(&self, clusters: [&[usize]; 2]) -> Option<MeanCosine> {
        let tasks =
            [0, 1].map(|task| Task::new(&self.across[task], &self.within[task], clusters[task]));
        let [a, b] = &tasks;
        let of = |inner: f64, a: f64, b: f64| {
            (a > 0.0 && b > 0.0).then(|| inner / (a.sqrt() * b.sqrt()))
        };
        let value = of(a.mean, a.norm, b.norm)?;
        let mut variance = Some(0.0);
        for (task, other) in [(a, b), (b, a)] {
            let without: Option<Vec<f64>> = task
                .without()
                .map(|(mean, norm)| of(mean, norm, other.norm))
                .collect();
            variance = variance.zip(without).map(|(sum, values)| {
                let g = values.len() as f64;
                let mean = values.iter().sum::<f64>() / g;
                let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                sum + (g - 1.0) / g * squares
            });
        }
        Some(MeanCosine {
            value,
            standard_error: variance.map(f64::sqrt),
        })
    }
}

/// A task's part of the cosine.
struct Task {
    mean: f64,
    /// `|ḡ|² − tr Σ/n`.
    norm: f64,
    samples: f64,
    /// Ordered pairs of samples of different clusters, and the sum of their products.
    pairs: (f64, f64),
    /// Of each cluster: samples, sum of products across, sum of products within.
    clusters: Vec<[f64; 3]>,
}

impl Task {
    fn new(across: &[f64], within: &[f64], clusters: &[usize]) -> Self {
        let mut of = vec![[0.0; 3]; clusters.iter().max().map_or(0, |last| last + 1)];
        for ((&cluster, x), y) in clusters.iter().zip(across).zip(within) {
            let [count, sum, products] = &mut of[cluster];
            *count += 1.0;
            *sum += x;
            *products += y;
        }
        let samples = clusters.len() as f64;
        let same: f64 = of.iter().map(|[count, ..]| count * count).sum();
        let pairs = (samples * samples - same, within.iter().sum());
        Self {
            mean: across.iter().sum::<f64>() / samples,
            norm: pairs.1 / pairs.0,
            samples,
            pairs,
            clusters: of,
        }
    }

    /// Mean and norm without each cluster.
    fn without(&self) -> impl Iterator<Item = (f64, f64)> {
        self.clusters.iter().map(|[count, sum, products]| {
            let rest = self.samples - count;
            let pairs = self.pairs.0 - 2.0 * count * rest;
            let mean = (self.samples * self.mean - sum) / rest;
            (mean, (self.pairs.1 - 2.0 * products) / pairs)
        })
    }
}
