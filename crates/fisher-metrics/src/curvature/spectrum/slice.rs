//! The spectrum of one slice, from its products between samples.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

use super::super::gram::{Gram, Top};
use super::super::halves::halves;
use super::super::moments::Moments;
use super::config::SpectrumConfig;
use super::dimension;
use super::report::{Direction, Part, SliceSpectrum};
use crate::error::Result;
use crate::jackknife::members;
use crate::report::{SampleRef, finite};

/// What the slices share.
pub(super) struct Setting<'a> {
    pub(super) config: &'a SpectrumConfig,
    pub(super) task: &'a str,
    pub(super) ids: Vec<&'a str>,
    pub(super) clusters: &'a [usize],
    /// Products are rounded at this share of the trace.
    pub(super) rounding: f64,
}

impl Setting<'_> {
    pub(super) fn spectrum(
        &self,
        name: &str,
        elements: usize,
        gram: &Gram,
    ) -> Result<SliceSpectrum> {
        let config = self.config;
        let every: Vec<usize> = (0..gram.n).collect();
        let top = gram.top(&every, self.rounding, name)?;
        let moments = Moments::new(gram, 0, self.clusters);
        let trace = moments.trace_estimate(config.level);
        finite(trace.value, name)?;
        let rank = top.rank;
        let mut eigenvalues = top.eigen.values.clone();
        eigenvalues[rank..].fill(0.0);
        let square = finite(moments.plain_square(), name)?;
        let sum: f64 = eigenvalues.iter().sum();
        let cutoff = config.cutoff.of(sum);
        let dimension = dimension::estimate(
            &top.eigen,
            rank,
            &moments,
            &members(self.clusters),
            config.cutoff,
            name,
        )?;
        let held = self.held_out(gram, name)?;
        let direction = |k: usize| Direction {
            eigenvalue: eigenvalues[k],
            held_out: held.get(k).copied(),
            parts: self.parts(&top, k),
        };
        Ok(SliceSpectrum {
            name: name.into(),
            elements,
            rank,
            rounding: self.rounding * sum,
            trace,
            square,
            unbiased_square: moments.square_estimate(config.level),
            stable_rank: (rank > 0).then(|| sum / eigenvalues[0]),
            participation: (square > 0.0).then(|| trace.value * trace.value / square),
            unbiased_participation: moments.participation(config.level),
            cutoff,
            dimension,
            holding: (rank > 0).then(|| [0.5, 0.9, 0.99].map(|s| holding(&eigenvalues, s * sum))),
            top: (0..config.top.min(rank)).map(direction).collect(),
            eigenvalues,
        })
    }

    /// The samples that make eigenvector `k`.
    fn parts(&self, top: &Top, k: usize) -> Vec<Part> {
        let share = |i: usize| top.eigen.vectors[(i, k)].powi(2);
        let mut order: Vec<usize> = (0..self.ids.len()).collect();
        order.sort_by(|&i, &j| share(j).total_cmp(&share(i)).then(i.cmp(&j)));
        order.truncate(self.config.listed);
        let part = |i: usize| Part {
            sample: SampleRef {
                task: self.task.into(),
                id: self.ids[i].into(),
            },
            share: share(i),
        };
        order.into_iter().map(part).collect()
    }

    /// Of the first eigenvectors of a half: the other half's Fisher along each.
    fn held_out(&self, gram: &Gram, name: &str) -> Result<Vec<f64>> {
        let rng = &mut ChaCha8Rng::seed_from_u64(self.config.seed);
        let mut all: Vec<Vec<f64>> = Vec::new();
        for _ in 0..self.config.splits {
            let Some([one, other]) = halves(self.clusters, rng) else {
                break;
            };
            for (of, rest) in [(&one, &other), (&other, &one)] {
                let top = gram.top(of, self.rounding, name)?;
                let along = |k: usize| {
                    let squares = rest.iter().map(|&j| top.along(gram, j, k).powi(2));
                    squares.sum::<f64>() / rest.len() as f64
                };
                let count = self.config.top.min(top.rank);
                all.push((0..count).map(along).collect());
            }
        }
        let shortest = all.iter().map(Vec::len).min().unwrap_or(0);
        let mean = |k: usize| all.iter().map(|of| of[k]).sum::<f64>() / all.len() as f64;
        Ok((0..shortest).map(mean).collect())
    }
}

/// How many of the first eigenvalues add up to `share`.
fn holding(eigenvalues: &[f64], share: f64) -> usize {
    let mut sum = 0.0;
    let found = eigenvalues.iter().position(|v| {
        sum += v;
        sum >= share
    });
    found.map_or(eigenvalues.len(), |at| at + 1)
}
