//! The sign of the mean of signed scores, with what Î owes to each sample.
//!
//! Î is of the very samples that are scored. Where these are skewed, an element in which they happen
//! to be large has a large Î, so that the mean of scores leans to one side: taken as given, Î made
//! the test of unrelated tasks reject in up to half of all cases where it was to reject in 5 %. So
//! samples are left out of both, means and F, and the bias that shows is taken off.

use super::config::{InterferenceConfig, PairAggregate, Pool};
use crate::error::Result;
use crate::jackknife::{Jackknife, members};
use crate::pairs::{Rows, Slice, Work, for_each_run};

/// Sums over samples of a slice's gradients and contributions.
struct Sums {
    gradient: Vec<f64>,
    contribution: Vec<f64>,
    samples: f64,
}

/// The test of the sign of `⟨ḡ_A, ḡ_B⟩` over Î, of every slice. Î is over all samples whatever the
/// estimate, and its λ is held at that of `lambdas`.
pub(super) fn tests(
    config: &InterferenceConfig,
    slices: &[Slice],
    rows: [&Rows; 2],
    lambdas: &[f64],
    work: &Work,
) -> Result<Vec<Option<Jackknife>>> {
    let clusters = rows.map(|rows| members(&rows.clusters));
    if clusters.iter().any(|clusters| clusters.len() < 2) {
        return Ok(vec![None; slices.len()]);
    }
    let total: f64 = rows[1].tokens.iter().sum();
    let factors = [
        vec![1.0; rows[0].len()],
        rows[1]
            .tokens
            .iter()
            .map(|tokens| config.normalize.factor(*tokens, total))
            .collect(),
    ];
    let sums = |task: usize, which: &[usize]| {
        Sums::of(slices, rows[task], &factors[task], which, work.bytes)
    };
    let all: [Vec<usize>; 2] = rows.map(|rows| (0..rows.len()).collect());
    let whole = [sums(0, &all[0])?, sums(1, &all[1])?];
    let mut values = Vec::with_capacity(slices.len());
    for (slice, lambda) in lambdas.iter().enumerate() {
        values.push(value(config, [&whole[0][slice], &whole[1][slice]], *lambda));
    }
    let mut without = vec![[Vec::new(), Vec::new()]; slices.len()];
    for (task, clusters) in clusters.iter().enumerate() {
        for cluster in clusters {
            let gone = sums(task, cluster)?;
            for (slice, lambda) in lambdas.iter().enumerate() {
                let left = whole[task][slice].less(&gone[slice]);
                let mut of = [&whole[0][slice], &whole[1][slice]];
                of[task] = &left;
                let value = value(config, of, *lambda);
                without[slice][task].push((cluster.len(), value));
            }
        }
    }
    let tests = values
        .into_iter()
        .zip(&without)
        .map(|(value, [a, b])| Jackknife::of_deletions(value, [a, b], 1.0 - config.alpha));
    tests.collect()
}

/// The mean score.
fn value(config: &InterferenceConfig, [a, b]: [&Sums; 2], lambda: f64) -> f64 {
    let shares = match config.pool {
        Pool::A => [1.0, 0.0],
        Pool::B => [0.0, 1.0],
        Pool::Pooled => [0.5, 0.5],
    };
    let [of_a, of_b] = [shares[0] / a.samples, shares[1] / b.samples];
    let term = |k: usize| {
        let fisher = of_a * a.contribution[k] + of_b * b.contribution[k];
        a.gradient[k] * b.gradient[k] / config.ridge.damped(fisher, lambda)
    };
    let elements = a.gradient.len();
    let sum = (0..elements).map(term).sum::<f64>() / (a.samples * b.samples);
    match config.aggregate {
        PairAggregate::Mean => sum / elements as f64,
        PairAggregate::Sum => sum,
    }
}

impl Sums {
    /// Over the rows `which`, gradients multiplied by their row's factor, of every slice.
    fn of(
        slices: &[Slice],
        rows: &Rows,
        factors: &[f64],
        which: &[usize],
        bytes: usize,
    ) -> Result<Vec<Self>> {
        let zeros = |slice: &Slice| Self {
            gradient: vec![0.0; slice.elements],
            contribution: vec![0.0; slice.elements],
            samples: which.len() as f64,
        };
        let mut sums: Vec<Self> = slices.iter().map(zeros).collect();
        let rows = rows.pick(which);
        for_each_run(slices, &rows, bytes, |slice, row, at, run| {
            let (factor, tokens) = (factors[which[row]], rows.tokens[row]);
            let sums = &mut sums[slice];
            let into = sums.gradient[at..]
                .iter_mut()
                .zip(&mut sums.contribution[at..]);
            for ((gradient, contribution), &g) in into.zip(run) {
                let g = f64::from(g);
                *gradient += factor * g;
                *contribution += g * g / tokens;
            }
        })?;
        Ok(sums)
    }

    fn less(&self, gone: &Self) -> Self {
        let gradients = self.gradient.iter().zip(&gone.gradient);
        let contributions = self.contribution.iter().zip(&gone.contribution);
        Self {
            gradient: gradients.map(|(all, gone)| all - gone).collect(),
            // A sum less its largest term can round to below 0.
            contribution: contributions
                .map(|(all, gone)| (all - gone).max(0.0))
                .collect(),
            samples: self.samples - gone.samples,
        }
    }
}
