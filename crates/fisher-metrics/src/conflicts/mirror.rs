//! Which pairs conflict: negative cosines held against the positive ones.
//!
//! Noise that is symmetric about 0 makes as many large positive cosines as large negative ones, so that
//! the positive ones (decoys) tell how many of the negative ones are noise (Barber & Candès 2015;
//! Arias-Castro & Chen 2017). Pairs share their samples: where one task's gradients have a direction
//! in common, one sample of the other makes a whole row of large cosines, all of one sign. So a slice
//! counts only if as much would hardly be called with the signs of the first task's samples drawn at
//! random, nor with those of the second's.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// The pairs across the tasks in one slice, the largest first.
pub(super) struct Mirror<'a> {
    pairs: Vec<Pair>,
    clusters: [&'a [usize]; 2],
    alpha: f64,
}

/// A pair whose cosine is no smaller than the floor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    /// Row-major.
    pub(super) pair: usize,
    pub(super) cosine: f64,
    /// |cos|, or whatever else pairs are ordered by.
    size: f64,
    /// One over the pairs of its two clusters: clusters count once.
    weight: f64,
    /// The cluster of either sample.
    clusters: [usize; 2],
    /// Whether the next pair is smaller by more than rounding.
    last: bool,
    /// The smallest rate at which it is called, were it negative.
    pub(super) q: f64,
}

/// Flips end early once so many have called as much as was observed.
const ENOUGH: usize = 20;

/// After so many flips a slice is given up that cannot be selected.
const FIRST: usize = 1000;

/// Which is one whose p is above so many α: relabelling ends there likewise.
pub(super) const HOPEFUL: f64 = 10.0;

impl<'a> Mirror<'a> {
    /// Of the cosines `cross`, row-major, between samples of these clusters; at the rate `alpha`, with
    /// this `floor` on |cos|. Pairs are ordered by `size`; those that differ by less than `slack` of the larger
    /// are equal.
    pub(super) fn new(
        cross: &[f64],
        size: impl Fn(usize) -> f64,
        clusters: [&'a [usize]; 2],
        alpha: f64,
        floor: f64,
        slack: f64,
    ) -> Self {
        let sizes = clusters.map(|of| {
            let mut sizes = vec![0usize; of.iter().max().map_or(0, |last| last + 1)];
            of.iter().for_each(|&c| sizes[c] += 1);
            sizes
        });
        let columns = clusters[1].len();
        let large = cross.iter().enumerate();
        let large = large.filter(|(_, cosine)| cosine.abs() >= floor && **cosine != 0.0);
        let pair = |(pair, &cosine): (usize, &f64)| {
            let of = [clusters[0][pair / columns], clusters[1][pair % columns]];
            Pair {
                pair,
                cosine,
                size: size(pair),
                weight: 1.0 / (sizes[0][of[0]] * sizes[1][of[1]]) as f64,
                clusters: of,
                last: true,
                q: 1.0,
            }
        };
        let mut pairs: Vec<Pair> = large.map(pair).collect();
        pairs.sort_by(|x, y| y.size.total_cmp(&x.size).then(x.pair.cmp(&y.pair)));
        for k in 1..pairs.len() {
            pairs[k - 1].last = pairs[k - 1].size - pairs[k].size > slack * pairs[k - 1].size;
        }
        let mut mirror = Self {
            pairs,
            clusters,
            alpha,
        };
        mirror.rates();
        mirror
    }

    /// q: the least ratio of decoys to pairs over all thresholds that would call the pair.
    fn rates(&mut self) {
        let [mut above, mut below] = [0.0, 0.0];
        for pair in &mut self.pairs {
            *(if pair.cosine > 0.0 {
                &mut above
            } else {
                &mut below
            }) += pair.weight;
            pair.q = ratio(above, below);
        }
        let mut least = 1f64;
        for pair in self.pairs.iter_mut().rev() {
            if pair.last {
                least = least.min(pair.q);
            }
            pair.q = least;
        }
    }

    /// All pairs that are large enough to be called or to be decoys.
    pub(super) fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// The pairs that are called.
    pub(super) fn called(&self) -> impl Iterator<Item = &Pair> {
        let called = |p: &&Pair| p.cosine < 0.0 && p.q <= self.alpha;
        self.pairs.iter().filter(called)
    }

    /// How many clusters of either task there are.
    pub(super) fn independent(&self) -> [usize; 2] {
        let count = |of: &[usize]| of.iter().max().map_or(0, |last| last + 1);
        self.clusters.map(count)
    }

    /// The smallest p that [`Mirror::flipped`] can give.
    pub(super) fn least(&self, draws: usize) -> f64 {
        let least = self.independent().map(|count| match counted(count, draws) {
            true => 0.5f64.powi(count as i32),
            false => 1.0 / (1 + draws) as f64,
        });
        least[0].max(least[1])
    }

    /// The larger p of both tasks: the share of ways to draw the signs of the task's samples, those of a
    /// cluster together, that call as much. All of them where they are at most `draws`.
    pub(super) fn flipped(&self, draws: usize, seed: u64) -> f64 {
        let none = self.independent();
        let plain = [vec![false; none[0]], vec![false; none[1]]];
        let observed = self.weight([&plain[0], &plain[1]]);
        if observed == 0.0 {
            return 1.0;
        }
        let as_much = |side: usize, signs: &[bool]| {
            let mut both = [&plain[0][..], &plain[1][..]];
            both[side] = signs;
            self.weight(both) >= observed - 1e-9
        };
        let p = |side: usize| {
            let count = none[side];
            if counted(count, draws) {
                let all = 0..1usize << count;
                let signs =
                    |bits: usize| (0..count).map(|k| bits >> k & 1 == 1).collect::<Vec<_>>();
                let hits = all.filter(|&bits| as_much(side, &signs(bits))).count();
                return hits as f64 / (1usize << count) as f64;
            }
            // Streams of their own, so that they do not depend on how much the other has drawn.
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(1 + side as u64);
            let [mut hits, mut drawn] = [0usize; 2];
            let hopeless = |hits: usize| (1 + hits) as f64 > HOPEFUL * self.alpha * FIRST as f64;
            while drawn < draws && hits < ENOUGH && !(drawn == FIRST && hopeless(hits)) {
                let signs: Vec<bool> = (0..count).map(|_| rng.random()).collect();
                hits += usize::from(as_much(side, &signs));
                drawn += 1;
            }
            (1 + hits) as f64 / (1 + drawn) as f64
        };
        p(0).max(p(1))
    }

    /// The weight of what is called where the clusters' signs are flipped.
    fn weight(&self, flipped: [&[bool]; 2]) -> f64 {
        let [mut above, mut below, mut called] = [0.0; 3];
        for pair in &self.pairs {
            let [a, b] = pair.clusters;
            if (pair.cosine > 0.0) ^ flipped[0][a] ^ flipped[1][b] {
                above += pair.weight;
            } else {
                below += pair.weight;
            }
            if pair.last && ratio(above, below) <= self.alpha {
                called = below;
            }
        }
        called
    }
}

/// Whether all ways to draw the signs of so many clusters are counted out.
fn counted(clusters: usize, draws: usize) -> bool {
    clusters < 32 && 1usize << clusters <= draws
}

fn ratio(above: f64, below: f64) -> f64 {
    (1.0 + above) / below.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made<'a>(
        cross: &[f64],
        clusters: [&'a [usize]; 2],
        alpha: f64,
        floor: f64,
        slack: f64,
    ) -> Mirror<'a> {
        Mirror::new(
            cross,
            |pair| cross[pair].abs(),
            clusters,
            alpha,
            floor,
            slack,
        )
    }

    fn numbers(n: usize) -> Vec<usize> {
        (0..n).collect()
    }

    /// `t* = min {t ≥ floor : (1 + #{cos ≥ t}) / max(1, #{cos ≤ −t}) ≤ α}`, word by word.
    #[test]
    fn called_is_what_the_definition_calls() {
        let (rows, columns) = (9, 8);
        let cosine =
            |k: usize| (((k * k * 31 + k * 17) % 101) as f64 / 101.0 - 0.7).clamp(-1.0, 1.0);
        let cross: Vec<f64> = (0..rows * columns).map(cosine).collect();
        let (a, b) = (numbers(rows), numbers(columns));
        for alpha in [0.05, 0.1, 0.3] {
            for floor in [0.0, 0.1, 0.5] {
                let rate = |t: f64| {
                    let count =
                        |fits: &dyn Fn(f64) -> bool| cross.iter().filter(|c| fits(**c)).count();
                    (1 + count(&|c| c >= t)) as f64 / count(&|c| c <= -t).max(1) as f64
                };
                let thresholds = cross
                    .iter()
                    .map(|c| c.abs())
                    .filter(|t| *t >= floor && *t > 0.0);
                let fits = thresholds.filter(|t| rate(*t) <= alpha);
                let threshold = fits.fold(f64::INFINITY, f64::min);
                let expected: Vec<usize> = (0..cross.len())
                    .filter(|&k| cross[k] <= -threshold)
                    .collect();
                let mirror = made(&cross, [&a, &b], alpha, floor, 1e-12);
                let mut found: Vec<usize> = mirror.called().map(|p| p.pair).collect();
                found.sort_unstable();
                assert_eq!(found, expected, "{alpha} {floor}");
            }
        }
    }

    /// One sample against a direction that the other task's samples share: a coin that fell once.
    #[test]
    fn one_row_is_no_evidence() {
        let (rows, columns) = (30, 40);
        let noise = |k: usize| {
            if (k * 7 + k / columns).is_multiple_of(2) {
                0.2
            } else {
                -0.2
            }
        };
        let mut cross: Vec<f64> = (0..rows * columns).map(noise).collect();
        cross[..columns].fill(-0.9);
        let (a, b) = (numbers(rows), numbers(columns));
        let mirror = made(&cross, [&a, &b], 0.05, 0.1, 1e-12);
        assert_eq!(mirror.called().count(), columns);
        assert!(mirror.flipped(1000, 0) > 0.3);
        // As many pairs of samples that are all different are.
        let mut cross: Vec<f64> = (0..rows * columns).map(noise).collect();
        (0..25).for_each(|i| cross[i * columns + i] = -0.9);
        let mirror = made(&cross, [&a, &b], 0.05, 0.1, 1e-12);
        assert_eq!(mirror.called().count(), 25);
        assert!(mirror.flipped(1000, 0) <= 1.0 / 1001.0);
    }

    /// Clusters count once: a block of two clusters is one pair, and is flipped as one.
    #[test]
    fn clusters_count_once() {
        let clusters: Vec<usize> = (0..24).map(|i| i / 6).collect();
        let cross: Vec<f64> = (0..24 * 24)
            .map(|k| {
                if (k / 24) / 6 == (k % 24) / 6 {
                    -0.8
                } else {
                    0.3
                }
            })
            .collect();
        let mirror = made(&cross, [&clusters, &clusters], 0.05, 0.1, 1e-12);
        assert_eq!(mirror.called().count(), 0);
        let each = numbers(24);
        let naive = made(&cross, [&each, &each], 0.05, 0.1, 1e-12);
        assert_eq!(naive.called().count(), 144);
    }

    #[test]
    fn few_samples_are_flipped_in_every_way() {
        let (a, b) = (numbers(5), numbers(6));
        let mirror = made(&[-0.5; 30], [&a, &b], 0.05, 0.1, 1e-12);
        assert_eq!(mirror.called().count(), 30);
        assert_eq!(mirror.flipped(1000, 3), 1.0 / 32.0);
    }
}
