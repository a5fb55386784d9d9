//! Principal angles between the spaces of the first eigenvectors, from products between samples.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

use super::super::gram::{Gram, Top};
use super::super::halves::halves;
use super::report::Angles;
use crate::error::{Error, Result};

/// How it is done.
pub(super) struct Spaces<'a> {
    pub(super) gram: &'a Gram,
    pub(super) name: &'a str,
    pub(super) elements: usize,
    /// At most so many eigenvectors.
    pub(super) top: usize,
    pub(super) rounding: f64,
}

impl Spaces<'_> {
    fn top(&self, of: &[usize]) -> Result<Top> {
        self.gram.top(of, self.rounding, self.name)
    }

    /// The cosines between the first `count` eigenvectors of two sets of samples.
    fn cosines(&self, [x, y]: [&Top; 2], count: usize) -> Result<Vec<f64>> {
        let products = x.with(self.gram, y, count);
        let found = products.singular_values();
        let found =
            found.map_err(|_| Error::not_finite("the products between eigenvectors", self.name))?;
        // Above 1 by rounding only.
        Ok(found.into_iter().map(|x| x.min(1.0)).collect())
    }

    /// Of the samples of two tasks, the first task's first.
    pub(super) fn angles(
        &self,
        clusters: [&[usize]; 2],
        splits: usize,
        seed: u64,
    ) -> Result<Option<Angles>> {
        let [n, m] = clusters.map(<[usize]>::len);
        let [a, b]: [Vec<usize>; 2] = [(0..n).collect(), (n..n + m).collect()];
        let (x, y) = (self.top(&a)?, self.top(&b)?);
        let count = self.top.min(x.rank).min(y.rank);
        if count == 0 {
            return Ok(None);
        }
        let cosines = self.cosines([&x, &y], count)?;
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let mut across = Vec::new();
        let mut within = [Vec::new(), Vec::new()];
        for _ in 0..splits {
            let drawn = clusters.map(|of| halves(of, rng));
            let [Some(one), Some(other)] = drawn else {
                break;
            };
            let other = other.map(|half| half.into_iter().map(|i| n + i).collect::<Vec<_>>());
            let [[p, q], [r, s]] = [one, other].map(|halves| halves.map(|half| self.top(&half)));
            let tops = [p?, q?, r?, s?];
            // A half has fewer than all.
            let count = tops.iter().map(|top| top.rank).fold(count, usize::min);
            if count == 0 {
                continue;
            }
            let between = |x: usize, y: usize| -> Result<f64> {
                Ok(mean_square(&self.cosines([&tops[x], &tops[y]], count)?))
            };
            within[0].push(between(0, 1)?);
            within[1].push(between(2, 3)?);
            for (x, y) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
                across.push(between(x, y)?);
            }
        }
        let mean =
            |of: &Vec<f64>| (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64);
        Ok(Some(Angles {
            dimensions: count,
            mean_square: mean_square(&cosines),
            cosines,
            chance: (count as f64 / self.elements as f64).min(1.0),
            across: mean(&across),
            within: within.each_ref().map(mean),
        }))
    }
}

fn mean_square(cosines: &[f64]) -> f64 {
    cosines.iter().map(|x| x * x).sum::<f64>() / cosines.len() as f64
}
