//! The tests of one slice, before slices are held against each other.

use super::collision::Sums;
use super::config::{ConflictsConfig, PairOrder};
use super::mirror::{HOPEFUL, Mirror};
use crate::damping::Health;
use crate::jackknife::Jackknife;
use crate::pairs::{Dependence, renumbered};
use crate::permutation::{Relabelled, Relabellings};

/// A slice before the slices are compared with each other.
#[derive(Debug)]
pub(super) struct Tested {
    pub(super) name: String,
    pub(super) elements: usize,
    pub(super) health: Option<Health>,
    /// The samples of each task that have a direction.
    pub(super) present: [Vec<usize>; 2],
    pub(super) mean: Option<f64>,
    pub(super) sign: Option<Jackknife>,
    pub(super) relabelled: Option<Relabelled>,
    /// The smallest p that relabelling can give, and that drawing signs can.
    pub(super) least: [f64; 2],
    /// Clusters of each task with a direction.
    pub(super) independent: [usize; 2],
    pub(super) sums: Option<Sums>,
    /// Pairs that may turn out to conflict.
    pub(super) called: Vec<Candidate>,
    /// p of calling as many pairs, where signs of samples are drawn.
    pub(super) flipped: f64,
    /// The most negative pairs.
    pub(super) lowest: Vec<Candidate>,
    /// Cosine and q of every pair of those present, row-major, where they are kept.
    pub(super) all: Option<[Vec<f64>; 2]>,
}

impl Tested {
    /// How many pairs were compared.
    pub(super) fn pairs(&self) -> usize {
        self.present[0].len() * self.present[1].len()
    }
}

/// A pair of samples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Row-major, of the samples present.
    pub(super) pair: usize,
    pub(super) cosine: f64,
    pub(super) q: f64,
}

/// What the tests of all slices share.
pub(super) struct Setting<'a> {
    pub(super) config: &'a ConflictsConfig,
    pub(super) dependence: &'a Dependence<2>,
    /// The stratum of every sample, where relabelling is within strata.
    pub(super) strata: Option<[Vec<usize>; 2]>,
    /// Relabellings, and ways to draw signs, where there are more.
    pub(super) draws: [usize; 2],
    pub(super) slack: f64,
    /// Whether an element may be in several slices.
    pub(super) overlapping: bool,
    /// The relabellings of all samples.
    pub(super) relabellings: Option<Relabellings>,
}

impl Setting<'_> {
    /// Of some samples of either task; `None` where a task has fewer than two clusters.
    pub(super) fn relabel(&self, present: [&[usize]; 2]) -> Option<Relabellings> {
        let clusters = self.clusters(present);
        let alone = |of: &Vec<usize>| of.iter().max().is_none_or(|last| *last == 0);
        if clusters.iter().any(alone) {
            return None;
        }
        let strata = self.strata.as_ref().map(|strata| {
            [0, 1].map(|task| {
                present[task]
                    .iter()
                    .map(|&i| strata[task][i])
                    .collect::<Vec<_>>()
            })
        });
        let strata = strata.as_ref().map(|of| of.each_ref().map(|of| &of[..]));
        let clusters = clusters.each_ref().map(|of| &of[..]);
        let (draws, seed) = (self.draws[0], self.config.seed);
        let relabellings = Relabellings::of_clusters(clusters, strata, draws, seed);
        Some(relabellings.while_below(HOPEFUL * self.config.alpha))
    }

    fn clusters(&self, present: [&[usize]; 2]) -> [Vec<usize>; 2] {
        [0, 1].map(|task| {
            let of = &self.dependence.clusters[task];
            renumbered(&present[task].iter().map(|&i| of[i]).collect::<Vec<_>>())
        })
    }

    /// Test a slice by the inner products of all samples.
    pub(super) fn test(
        &self,
        name: &str,
        elements: usize,
        gram: &[f64],
        health: Option<Health>,
    ) -> Tested {
        let config = self.config;
        let n = gram.len().isqrt();
        let first = self.dependence.clusters[0].len();
        let norms: Vec<f64> = (0..n).map(|i| gram[i * n + i].sqrt()).collect();
        let all: Vec<usize> = (0..n).filter(|&i| norms[i] > 0.0).collect();
        let (here, there) = all.split_at(all.partition_point(|&i| i < first));
        let present = [here.to_vec(), there.iter().map(|i| i - first).collect()];
        let cosine =
            |i: usize, j: usize| (gram[i * n + j] / (norms[i] * norms[j])).clamp(-1.0, 1.0);
        let cross = here
            .iter()
            .flat_map(|&i| there.iter().map(move |&j| cosine(i, j)));
        let cross: Vec<f64> = cross.collect();
        let of = present.each_ref().map(|of| &of[..]);
        let own = (all.len() < n).then(|| self.relabel(of)).flatten();
        let relabellings = if all.len() < n {
            &own
        } else {
            &self.relabellings
        };
        let relabelled = relabellings.as_ref().map(|relabellings| {
            let rows = all
                .iter()
                .flat_map(|&i| all.iter().map(move |&j| cosine(i, j)));
            relabellings.test(&rows.collect::<Vec<_>>(), self.slack)
        });
        let clusters = self.clusters(of);
        let clusters = clusters.each_ref().map(|of| &of[..]);
        let size = |pair: usize| match config.order {
            PairOrder::Cosine => cross[pair].abs(),
            PairOrder::Product => {
                let (i, j) = (here[pair / there.len()], there[pair % there.len()]);
                gram[i * n + j].abs()
            }
        };
        let (alpha, floor) = (config.alpha, config.floor);
        let mirror = Mirror::new(&cross, size, clusters, alpha, floor, self.slack);
        let called = mirror.called().map(|p| Candidate {
            pair: p.pair,
            cosine: p.cosine,
            q: p.q,
        });
        let every = self.dependence.clusters.each_ref().map(|of| &of[..]);
        let mean = cross.iter().sum::<f64>() / cross.len() as f64;
        Tested {
            name: name.into(),
            elements,
            health,
            mean: (!cross.is_empty()).then_some(mean),
            sign: Jackknife::of_pairs(&cross, clusters, config.level),
            relabelled,
            least: [
                relabellings.as_ref().map_or(1.0, Relabellings::least),
                mirror.least(self.draws[1]),
            ],
            independent: mirror.independent(),
            sums: Sums::new(gram, every),
            called: called.collect(),
            flipped: mirror.flipped(self.draws[1], config.seed),
            lowest: lowest(&cross, config.lowest),
            all: config.keep_pairs.then(|| {
                let mut q = vec![1.0; cross.len()];
                let negative = mirror.pairs().iter().filter(|p| p.cosine < 0.0);
                negative.for_each(|p| q[p.pair] = p.q);
                [cross, q]
            }),
            present,
        }
    }
}

/// The most negative pairs.
fn lowest(cross: &[f64], count: usize) -> Vec<Candidate> {
    let negative = cross
        .iter()
        .enumerate()
        .filter(|(_, cosine)| **cosine < 0.0);
    let mut found: Vec<Candidate> = negative
        .map(|(pair, &cosine)| Candidate {
            pair,
            cosine,
            q: 1.0,
        })
        .collect();
    let order =
        |x: &Candidate, y: &Candidate| x.cosine.total_cmp(&y.cosine).then(x.pair.cmp(&y.pair));
    if count < found.len() {
        found.select_nth_unstable_by(count, order);
        found.truncate(count);
    }
    found.sort_by(order);
    found
}
