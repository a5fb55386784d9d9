//! Permutation tests: task labels relabelled over samples.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// As many relabellings are counted out; more are sampled.
const EXACT: u128 = 10_000;

/// Ways to call `first` of `samples` samples the first task.
#[derive(Debug, Clone)]
pub(crate) struct Relabellings {
    samples: usize,
    first: usize,
    sets: Vec<Vec<u32>>,
    exact: bool,
}

/// The test of a matrix of scores between samples against relabelled tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Relabelled {
    /// Mean score between the tasks, less half the sum of the mean scores within each.
    pub statistic: f64,
    /// The share of relabellings whose statistic is as small: small where the tasks collide.
    pub p_low: f64,
    /// The share of relabellings whose statistic is as large.
    pub p_high: f64,
    /// Whether all relabellings were counted. Otherwise they were sampled and p is
    /// `(1 + hits) / (1 + draws)`, never 0.
    pub exact: bool,
}

impl Relabelled {
    /// `min(1, 2 · min(p_low, p_high))`.
    pub fn two_sided(&self) -> f64 {
        (2.0 * self.p_low.min(self.p_high)).min(1.0)
    }
}

impl Relabellings {
    /// All of them where they are at most 10 000, else `draws` at random. Both tasks need two
    /// samples.
    pub(crate) fn new(first: usize, second: usize, draws: usize, seed: u64) -> Self {
        let samples = first + second;
        let exact = binomial(samples, first).is_some_and(|count| count <= EXACT);
        let sets = if exact {
            combinations(samples, first)
        } else {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            (0..draws).map(|_| draw(samples, first, rng)).collect()
        };
        Self {
            samples,
            first,
            sets,
            exact,
        }
    }

    /// Test `scores`, `[samples, samples]` row-major with the first task's samples first. The
    /// diagonal does not count. Statistics that differ by less than `slack` times the mean size of
    /// scores are equal: the difference is rounding, of which every score has its share.
    pub(crate) fn test(&self, scores: &[f64], slack: f64) -> Relabelled {
        let n = self.samples;
        let rows: Vec<f64> = (0..n)
            .map(|i| scores[i * n..(i + 1) * n].iter().sum::<f64>() - scores[i * n + i])
            .collect();
        let mut columns: Vec<f64> = (0..n).map(|i| -scores[i * n + i]).collect();
        for row in scores.chunks_exact(n) {
            columns.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let total: f64 = rows.iter().sum();
        let [a, b] = [self.first as f64, (n - self.first) as f64];
        let statistic = |set: &[u32]| {
            let (mut within, mut from, mut to) = (0.0, 0.0, 0.0);
            for &i in set {
                let row = &scores[i as usize * n..(i as usize + 1) * n];
                within += set.iter().map(|&j| row[j as usize]).sum::<f64>() - row[i as usize];
                from += rows[i as usize];
                to += columns[i as usize];
            }
            let others = total - from - to + within;
            let inside = within / (a * (a - 1.0)) + others / (b * (b - 1.0));
            (from - within) / (a * b) - 0.5 * inside
        };
        let first: Vec<u32> = (0..self.first as u32).collect();
        let observed = statistic(&first);
        let off_diagonal = scores.iter().enumerate().filter(|(k, _)| k / n != k % n);
        let sizes: f64 = off_diagonal.map(|(_, score)| score.abs()).sum();
        let slack = slack * sizes / (n * (n - 1)) as f64;
        let [mut low, mut high] = [0usize; 2];
        for set in &self.sets {
            let found = statistic(set);
            low += usize::from(found <= observed + slack);
            high += usize::from(found >= observed - slack);
        }
        let share = |hits: usize| {
            if self.exact {
                hits as f64 / self.sets.len() as f64
            } else {
                (1 + hits) as f64 / (1 + self.sets.len()) as f64
            }
        };
        Relabelled {
            statistic: observed,
            p_low: share(low),
            p_high: share(high),
            exact: self.exact,
        }
    }
}

/// `n` over `k`, unless it is larger than any count here.
fn binomial(n: usize, k: usize) -> Option<u128> {
    let mut result = 1u128;
    for i in 0..k.min(n - k) as u128 {
        result = result.checked_mul(n as u128 - i)? / (i + 1);
    }
    Some(result)
}

fn combinations(n: usize, k: usize) -> Vec<Vec<u32>> {
    let mut set: Vec<u32> = (0..k as u32).collect();
    let mut sets = vec![set.clone()];
    // The last member that can still move up does, and those after it follow.
    while let Some(at) = (0..k).rfind(|&i| (set[i] as usize) < n - k + i) {
        let start = set[at] + 1;
        (at..k).zip(start..).for_each(|(i, x)| set[i] = x);
        sets.push(set.clone());
    }
    sets
}

/// `k` of `n`, each set as likely as any other (Fisher and Yates, begun and not finished).
fn draw(n: usize, k: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n as u32).collect();
    for i in 0..k {
        all.swap(i, rng.random_range(i..n));
    }
    all.truncate(k);
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(n: usize, score: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        (0..n * n).map(|k| score(k / n, k % n)).collect()
    }

    #[test]
    fn every_set_comes_once() {
        let mut sets = combinations(7, 3);
        assert_eq!(sets.len(), 35);
        assert_eq!(binomial(7, 3), Some(35));
        sets.dedup();
        assert_eq!(sets.len(), 35);
        assert!(sets.iter().all(|s| s.windows(2).all(|w| w[0] < w[1])));
    }

    #[test]
    fn the_statistic_is_its_definition() {
        let n = 7;
        let m = scores(n, |i, j| ((i * 31 + j * 17) % 23) as f64);
        let mean = |pairs: &mut dyn Iterator<Item = (usize, usize)>| {
            let all: Vec<f64> = pairs.map(|(i, j)| m[i * n + j]).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        let within = |range: std::ops::Range<usize>| {
            let of = range.clone();
            mean(&mut of.flat_map(|i| range.clone().filter(move |&j| j != i).map(move |j| (i, j))))
        };
        let cross = mean(&mut (0..3).flat_map(|i| (3..n).map(move |j| (i, j))));
        let expected = cross - 0.5 * (within(0..3) + within(3..n));
        let test = Relabellings::new(3, 4, 0, 0).test(&m, 1e-12);
        assert!((test.statistic - expected).abs() < 1e-12);
        assert!(test.exact);
    }

    #[test]
    fn what_no_relabelling_changes_is_not_significant() {
        // Equal up to rounding noise, which a comparison without slack would rank.
        let noise = |i: usize, j: usize| 1.0 + 1e-15 * ((i * 7 + j * 13) % 5) as f64;
        for (first, second) in [(4, 4), (30, 30)] {
            let test = Relabellings::new(first, second, 500, 1);
            let test = test.test(&scores(first + second, noise), 1e-12);
            assert_eq!((test.p_low, test.p_high), (1.0, 1.0));
        }
    }

    /// One score a million times the others, which one task's two samples have: what the others say
    /// is still heard where rounding is float32's.
    #[test]
    fn an_outlier_does_not_make_ties() {
        let side = |i: usize| if i < 5 { 1.0 } else { -1.0 };
        let opposed = |i: usize, j: usize| side(i) * side(j);
        let outlier = |i: usize, j: usize| match (i.min(j), i.max(j)) {
            (0, 1) => 3e6,
            _ => opposed(i, j),
        };
        let test = Relabellings::new(5, 5, 0, 0);
        let found = test.test(&scores(10, outlier), 1e-6);
        assert_eq!(found.p_low, 2.0 / 252.0);
        // A score of a sample with itself is no score.
        let diagonal = |i: usize, j: usize| if i == j { 1e9 } else { opposed(i, j) };
        let found = test.test(&scores(10, diagonal), 1e-6);
        assert_eq!(found.p_low, 2.0 / 252.0);
    }

    #[test]
    fn opposed_tasks_have_the_smallest_p_there_is() {
        let side = |i: usize| if i < 5 { 1.0 } else { -1.0 };
        let m = scores(10, |i, j| side(i) * side(j));
        let test = Relabellings::new(5, 5, 0, 0).test(&m, 1e-12);
        assert_eq!(test.statistic, -2.0);
        // The relabelling itself and its mirror image, of 252.
        assert_eq!(test.p_low, 2.0 / 252.0);
        assert_eq!(test.p_high, 1.0);

        let side = |i: usize| if i < 20 { 1.0 } else { -1.0 };
        let m = scores(40, |i, j| side(i) * side(j));
        let test = Relabellings::new(20, 20, 999, 3).test(&m, 1e-12);
        assert_eq!(test.p_low, 1.0 / 1000.0);
        assert!(!test.exact);
    }
}
