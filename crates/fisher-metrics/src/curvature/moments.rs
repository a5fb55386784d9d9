//! Traces of F and F², plain and without bias, from products between samples.
//!
//! `E k_ii = tr Φ` and `E k_ij² = tr Φ²` for samples `i`, `j` that do not depend on each other, where Φ is the Fisher that the
//! samples are drawn from. `tr F² = Σ_ij k_ij²/n²` takes `i = j` too, whose `k_ii²` has nothing to do with Φ²: with n
//! samples of d equal directions it is `(1/d)(1 − 1/n) + 1/n` in the place of `1/d`.

use super::estimate::{Estimate, effective};
use super::gram::Gram;

/// The sums of one task, cluster by cluster.
#[derive(Debug, Clone)]
pub(super) struct Moments {
    pub(super) clusters: Vec<Cluster>,
    /// Samples.
    pub(super) n: f64,
    /// Ordered pairs of samples of different clusters.
    pairs: f64,
    /// `Σ k_ij²` over all pairs of samples.
    plain: f64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cluster {
    pub(super) count: usize,
    /// `Σ k_ii`.
    trace: f64,
    /// `Σ k_ij²` with samples of other clusters.
    squares: f64,
}

impl Moments {
    /// Of samples `start ..` of the gram, by the cluster of each.
    pub(super) fn new(gram: &Gram, start: usize, clusters: &[usize]) -> Self {
        let mut of = vec![Cluster::default(); clusters.iter().max().map_or(0, |last| last + 1)];
        let mut plain = 0.0;
        for (i, &c) in clusters.iter().enumerate() {
            let row = &gram.values[(start + i) * gram.n + start..][..clusters.len()];
            let into = &mut of[c];
            into.count += 1;
            into.trace += row[i];
            for (k, &d) in row.iter().zip(clusters) {
                plain += k * k;
                into.squares += if c == d { 0.0 } else { k * k };
            }
        }
        let n = clusters.len() as f64;
        let same: f64 = of.iter().map(|c| (c.count as f64).powi(2)).sum();
        Self {
            clusters: of,
            n,
            pairs: n * n - same,
            plain,
        }
    }

    fn sum(&self, part: impl Fn(&Cluster) -> f64) -> f64 {
        self.clusters.iter().map(part).sum()
    }

    fn trace_sum(&self) -> f64 {
        self.sum(|c| c.trace)
    }

    /// `tr F²` as it stands.
    pub(super) fn plain_square(&self) -> f64 {
        self.plain / (self.n * self.n)
    }

    /// Ordered pairs of different clusters without cluster `c`.
    fn pairs_without(&self, c: &Cluster) -> f64 {
        let count = c.count as f64;
        self.pairs - 2.0 * count * (self.n - count)
    }

    /// `tr F` without each cluster.
    pub(super) fn traces_without(&self) -> Vec<f64> {
        let sum = self.trace_sum();
        let of = |c: &Cluster| (sum - c.trace) / (self.n - c.count as f64);
        self.clusters.iter().map(of).collect()
    }

    /// `tr F²` without bias: the mean of `k_ij²` over pairs of different clusters.
    pub(super) fn square(&self) -> Option<f64> {
        (self.pairs > 0.0).then(|| self.sum(|c| c.squares) / self.pairs)
    }

    /// The same without each cluster; `None` where fewer than three are there.
    pub(super) fn squares_without(&self) -> Option<Vec<f64>> {
        let sum = self.sum(|c| c.squares);
        let of = |c: &Cluster| (sum - 2.0 * c.squares) / self.pairs_without(c);
        (self.clusters.len() > 2).then(|| self.clusters.iter().map(of).collect())
    }

    /// On how many equal clusters traces rest, and squares.
    pub(super) fn effective(&self) -> [f64; 2] {
        [
            effective(self.clusters.iter().map(|c| c.trace)),
            effective(self.clusters.iter().map(|c| c.squares)),
        ]
    }

    /// Counts of the clusters with what is left without each.
    fn left(&self, values: Option<Vec<f64>>) -> Vec<(usize, f64)> {
        let counts = self.clusters.iter().map(|c| c.count);
        counts.zip(values.into_iter().flatten()).collect()
    }

    pub(super) fn trace_estimate(&self, level: f64) -> Estimate {
        let left = self.left(Some(self.traces_without()));
        let [effective, _] = self.effective();
        Estimate::on_logs(self.trace_sum() / self.n, &left, effective, level)
    }

    pub(super) fn square_estimate(&self, level: f64) -> Option<Estimate> {
        let left = self.left(self.squares_without());
        let [_, effective] = self.effective();
        Some(Estimate::on_logs(self.square()?, &left, effective, level))
    }

    /// `(tr Φ)² / tr Φ²`, both without bias.
    pub(super) fn participation(&self, level: f64) -> Option<Estimate> {
        let square = self.square().filter(|x| *x > 0.0)?;
        let (sum, diagonal) = (self.trace_sum(), self.sum(|c| c.trace * c.trace));
        let value = (sum * sum - diagonal) / self.pairs / square;
        let without = self.squares_without().map(|squares| {
            let of = |(c, square): (&Cluster, f64)| {
                let left = sum - c.trace;
                let products = left * left - (diagonal - c.trace * c.trace);
                products / self.pairs_without(c) / square
            };
            self.clusters.iter().zip(squares).map(of).collect()
        });
        let effective = self.effective().into_iter().fold(f64::INFINITY, f64::min);
        Some(Estimate::on_logs(
            value,
            &self.left(without),
            effective,
            level,
        ))
    }
}
