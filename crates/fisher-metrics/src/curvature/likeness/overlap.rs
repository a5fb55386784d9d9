//! The overlap of two Fishers: plain, without bias, and against relabelled tasks.

use super::super::gram::Gram;
use super::super::moments::Moments;
use super::report::Overlap;
use crate::error::Result;
use crate::jackknife::Jackknife;

/// The sums of squared products across two tasks.
pub(super) struct Across {
    counts: [f64; 2],
    sum: f64,
    /// Of each cluster of each task: the sum of its squared products with the other task.
    clusters: [Vec<f64>; 2],
}

impl Across {
    pub(super) fn new(gram: &Gram, clusters: [&[usize]; 2]) -> Self {
        let counts = clusters.map(<[usize]>::len);
        let mut of = clusters.map(|of| vec![0.0; of.iter().max().map_or(0, |last| last + 1)]);
        for (i, c) in clusters[0].iter().enumerate() {
            for (j, d) in clusters[1].iter().enumerate() {
                let square = gram.at(i, counts[0] + j).powi(2);
                of[0][*c] += square;
                of[1][*d] += square;
            }
        }
        Self {
            counts: counts.map(|n| n as f64),
            sum: of[0].iter().sum(),
            clusters: of,
        }
    }

    /// `tr F_A F_B`.
    pub(super) fn product(&self) -> f64 {
        self.sum / (self.counts[0] * self.counts[1])
    }

    /// The same without each cluster of a task.
    fn without(&self, task: usize, moments: &Moments) -> Vec<f64> {
        let other = self.counts[1 - task];
        let clusters = moments.clusters.iter().zip(&self.clusters[task]);
        let of = |(c, gone): (&super::super::moments::Cluster, &f64)| {
            (self.sum - gone) / ((self.counts[task] - c.count as f64) * other)
        };
        clusters.map(of).collect()
    }
}

/// `x / √(a b)`, where that is a number.
pub(super) fn ratio(product: f64, [a, b]: [f64; 2]) -> Option<f64> {
    (a > 0.0 && b > 0.0).then(|| product / (a.sqrt() * b.sqrt()))
}

/// The unbiased overlap with its jackknife error.
pub(super) fn overlap(
    across: &Across,
    tasks: [&Moments; 2],
    level: f64,
) -> Result<Option<Overlap>> {
    let [Some(a), Some(b)] = tasks.map(Moments::square) else {
        return Ok(None);
    };
    let Some(value) = ratio(across.product(), [a, b]) else {
        return Ok(None);
    };
    let without = |task: usize| -> Option<Vec<(usize, f64)>> {
        let moments = tasks[task];
        let others = [b, a][task];
        let products = across.without(task, moments).into_iter();
        let left = products.zip(moments.squares_without()?);
        let left = left.map(|(product, square)| ratio(product, [square, others]));
        let counts = moments.clusters.iter().map(|c| c.count);
        counts.zip(left).map(|(n, x)| Some((n, x?))).collect()
    };
    let (Some(x), Some(y)) = (without(0), without(1)) else {
        return Ok(None);
    };
    let found = Jackknife::of_deletions(value, [&x, &y], level)?;
    Ok(found.map(|found| Overlap {
        value: found.mean,
        standard_error: found.standard_error,
        interval: found.interval,
    }))
}
