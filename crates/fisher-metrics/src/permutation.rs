//! Permutation tests: task labels relabelled over samples.

use std::collections::BTreeMap;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// As many relabellings are counted out; more are sampled.
const EXACT: u128 = 10_000;

/// Sampling ends early once so many relabellings have a statistic as small as was observed: `p_low` is
/// known by then, and is not small (Besag & Clifford 1991).
const ENOUGH: usize = 200;

/// Relabellings after which it ends where `p_low` is too large to matter.
const FIRST: usize = 1000;

/// Ways to call some of the samples the first task. Clusters of samples move whole, and within strata
/// where there are any.
#[derive(Debug, Clone)]
pub(crate) struct Relabellings {
    /// The cluster of each sample, those of the first task first.
    cluster: Vec<usize>,
    /// Samples of each cluster.
    sizes: Vec<f64>,
    /// Clusters of the first task: the first of them.
    first: usize,
    /// Clusters that take each other's place, and how many of them are the first task's.
    strata: Vec<(Vec<u32>, usize)>,
    /// All relabellings, where they are few.
    all: Option<Vec<Vec<u32>>>,
    draws: usize,
    seed: u64,
    /// The largest `p_low` that matters.
    hopeful: f64,
}

/// The test of a matrix of scores between samples against relabelled tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Relabelled {
    /// Mean score between the tasks, less half the sum of the mean scores within each, pairs of one
    /// cluster left out.
    pub statistic: f64,
    /// The share of relabellings whose statistic is as small: small where scores across the tasks are
    /// lower than within them.
    pub p_low: f64,
    /// The share of relabellings whose statistic is as large, of as many as `p_low` took.
    pub p_high: f64,
    /// Whether all relabellings were counted. Otherwise they were sampled and p is
    /// `(1 + hits) / (1 + draws)`, never 0.
    pub exact: bool,
}

impl Relabellings {
    /// All of them where they are at most 10 000, else up to `draws` at random, of clusters of samples, given by every sample's cluster in its task (from 0 without
    /// gaps), and within strata, given by every sample's stratum: a cluster is in the stratum of its
    /// first sample. Both tasks need two clusters.
    pub(crate) fn of_clusters(
        [a, b]: [&[usize]; 2],
        strata: Option<[&[usize]; 2]>,
        draws: usize,
        seed: u64,
    ) -> Self {
        let count = |of: &[usize]| of.iter().max().map_or(0, |last| last + 1);
        let first = count(a);
        let cluster: Vec<usize> = a
            .iter()
            .copied()
            .chain(b.iter().map(|c| first + c))
            .collect();
        let mut sizes = vec![0.0; first + count(b)];
        cluster.iter().for_each(|&c| sizes[c] += 1.0);
        let stratum_of: Vec<usize> = match strata {
            Some([a, b]) => a.iter().chain(b).copied().collect(),
            None => vec![0; cluster.len()],
        };
        let mut of_cluster = vec![None; sizes.len()];
        for (&cluster, &stratum) in cluster.iter().zip(&stratum_of) {
            of_cluster[cluster].get_or_insert(stratum);
        }
        let mut grouped: BTreeMap<Option<usize>, (Vec<u32>, usize)> = BTreeMap::new();
        for (cluster, stratum) in of_cluster.into_iter().enumerate() {
            let (members, of_first) = grouped.entry(stratum).or_default();
            members.push(cluster as u32);
            *of_first += usize::from(cluster < first);
        }
        let strata: Vec<(Vec<u32>, usize)> = grouped.into_values().collect();
        let ways = strata.iter().try_fold(1u128, |product, (members, k)| {
            product.checked_mul(binomial(members.len(), *k)?)
        });
        let all = ways.is_some_and(|ways| ways <= EXACT).then(|| {
            let start = vec![Vec::new()];
            strata
                .iter()
                .fold(start, |sets: Vec<Vec<u32>>, (members, k)| {
                    let of_stratum = combinations(members.len(), *k);
                    let join = |set: &Vec<u32>, more: &Vec<u32>| {
                        let more = more.iter().map(|&i| members[i as usize]);
                        set.iter().copied().chain(more).collect()
                    };
                    let joined = sets.iter();
                    joined
                        .flat_map(|set| of_stratum.iter().map(move |more| join(set, more)))
                        .collect()
                })
        });
        Self {
            cluster,
            sizes,
            first,
            strata,
            all,
            draws,
            seed,
            hopeful: 1.0,
        }
    }

    /// The same, that give up after 1000 draws where `p_low` is above `hopeful` by then.
    pub(crate) fn while_below(self, hopeful: f64) -> Self {
        Self { hopeful, ..self }
    }

    /// The smallest p there can be.
    pub(crate) fn least(&self) -> f64 {
        // Where both tasks take as many of each stratum, calling the one the other changes nothing.
        let mirrored = self
            .strata
            .iter()
            .all(|(members, k)| members.len() == 2 * k);
        match &self.all {
            Some(all) if mirrored => (2.0 / all.len() as f64).min(1.0),
            Some(all) => 1.0 / all.len() as f64,
            None => 1.0 / (1 + self.draws) as f64,
        }
    }

    /// Test `scores`, `[samples, samples]` row-major with the first task's samples first. Pairs of one
    /// cluster do not count, nor does the diagonal. Statistics that differ by less than `slack` times
    /// the mean size of scores are equal: the difference is rounding, of which every score has its share.
    pub(crate) fn test(&self, scores: &[f64], slack: f64) -> Relabelled {
        let of = &self.cluster;
        let pairs = scores.iter().enumerate();
        let pairs = pairs.filter(|(k, _)| of[k / of.len()] != of[k % of.len()]);
        let sizes: Vec<f64> = pairs.map(|(_, score)| score.abs()).collect();
        let slack = slack * sizes.iter().sum::<f64>() / sizes.len().max(1) as f64;
        self.test_by(scores, slack, |cross, [a, b]| cross - 0.5 * (a + b))
    }

    /// The same of any statistic of the mean score between the tasks and those within each; values that
    /// differ by less than `slack` are equal.
    pub(crate) fn test_by(
        &self,
        scores: &[f64],
        slack: f64,
        of: impl Fn(f64, [f64; 2]) -> f64,
    ) -> Relabelled {
        let clusters = self.sizes.len();
        let mut sums = vec![0.0; clusters * clusters];
        for (row, &c) in scores.chunks_exact(self.cluster.len()).zip(&self.cluster) {
            let sums = &mut sums[c * clusters..(c + 1) * clusters];
            row.iter()
                .zip(&self.cluster)
                .for_each(|(x, &d)| sums[d] += x);
        }
        (0..clusters).for_each(|c| sums[c * clusters + c] = 0.0);
        let rows: Vec<f64> = sums
            .chunks_exact(clusters)
            .map(|row| row.iter().sum())
            .collect();
        let mut columns = vec![0.0; clusters];
        for row in sums.chunks_exact(clusters) {
            columns.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let total: f64 = rows.iter().sum();
        let samples = self.cluster.len() as f64;
        let squares: f64 = self.sizes.iter().map(|n| n * n).sum();
        let statistic = |set: &[u32]| {
            let (mut within, mut from, mut to) = (0.0, 0.0, 0.0);
            let (mut a, mut a_squares) = (0.0, 0.0);
            for &c in set {
                let c = c as usize;
                let row = &sums[c * clusters..(c + 1) * clusters];
                within += set.iter().map(|&d| row[d as usize]).sum::<f64>();
                from += rows[c];
                to += columns[c];
                a += self.sizes[c];
                a_squares += self.sizes[c] * self.sizes[c];
            }
            let b = samples - a;
            let others = total - from - to + within;
            let inside = [
                within / (a * a - a_squares),
                others / (b * b - (squares - a_squares)),
            ];
            of((from - within) / (a * b), inside)
        };
        let first: Vec<u32> = (0..self.first as u32).collect();
        let observed = statistic(&first);
        let [mut low, mut high] = [0usize; 2];
        let mut count = |set: &[u32]| {
            let found = statistic(set);
            low += usize::from(found <= observed + slack);
            high += usize::from(found >= observed - slack);
            low
        };
        let share = |hits: usize| match &self.all {
            Some(all) => hits as f64 / all.len() as f64,
            None => (1 + hits) as f64,
        };
        let drawn = match &self.all {
            Some(all) => {
                all.iter().for_each(|set| {
                    count(set);
                });
                1.0
            }
            None => {
                let rng = &mut ChaCha8Rng::seed_from_u64(self.seed);
                let hopeless = |low: usize| (1 + low) as f64 > self.hopeful * FIRST as f64;
                let ends =
                    |drawn: usize, low: usize| low >= ENOUGH || (drawn == FIRST && hopeless(low));
                let enough = (1..=self.draws).find(|k| ends(*k, count(&self.draw(rng))));
                (1 + enough.unwrap_or(self.draws)) as f64
            }
        };
        Relabelled {
            statistic: observed,
            p_low: share(low) / drawn,
            p_high: share(high) / drawn,
            exact: self.all.is_some(),
        }
    }

    /// One relabelling, each as likely as any other (Fisher and Yates, begun and not finished).
    fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<u32> {
        let mut set = Vec::with_capacity(self.first);
        for (members, k) in &self.strata {
            let mut all = members.clone();
            for i in 0..*k {
                all.swap(i, rng.random_range(i..members.len()));
            }
            set.extend_from_slice(&all[..*k]);
        }
        set.sort_unstable();
        set
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every sample is a cluster of its own.
    fn relabellings(first: usize, second: usize, draws: usize, seed: u64) -> Relabellings {
        let numbers = |n: usize| (0..n).collect::<Vec<usize>>();
        let clusters = [numbers(first), numbers(second)];
        Relabellings::of_clusters(clusters.each_ref().map(|c| &c[..]), None, draws, seed)
    }

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
        let test = relabellings(3, 4, 0, 0).test(&m, 1e-12);
        assert!((test.statistic - expected).abs() < 1e-12);
        assert!(test.exact);
    }

    #[test]
    fn what_no_relabelling_changes_is_not_significant() {
        // Equal up to rounding noise, which a comparison without slack would rank.
        let noise = |i: usize, j: usize| 1.0 + 1e-15 * ((i * 7 + j * 13) % 5) as f64;
        for (first, second) in [(4, 4), (30, 30)] {
            let test = relabellings(first, second, 500, 1);
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
        let test = relabellings(5, 5, 0, 0);
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
        let test = relabellings(5, 5, 0, 0).test(&m, 1e-12);
        assert_eq!(test.statistic, -2.0);
        // The relabelling itself and its mirror image, of 252.
        assert_eq!(test.p_low, 2.0 / 252.0);
        assert_eq!(test.p_high, 1.0);

        let side = |i: usize| if i < 20 { 1.0 } else { -1.0 };
        let m = scores(40, |i, j| side(i) * side(j));
        let test = relabellings(20, 20, 999, 3).test(&m, 1e-12);
        assert_eq!(test.p_low, 1.0 / 1000.0);
        assert!(!test.exact);
    }

    /// Whole clusters move, and only within their stratum; pairs of one cluster do not count.
    #[test]
    fn clusters_move_whole_and_within_strata() {
        let m = scores(8, |i, j| ((i * 31 + j * 31 + i * j * 7) % 23) as f64);
        let clusters: [&[usize]; 2] = [&[0, 0, 1, 2], &[0, 1, 1, 2]];
        let relabellings = Relabellings::of_clusters(clusters, None, 0, 0);
        assert_eq!(relabellings.all.as_ref().map(Vec::len), Some(20));
        assert_eq!(relabellings.least(), 0.1);
        let of = |i: usize| [0, 0, 1, 2, 3, 4, 4, 5][i];
        let mean = |a: &[usize], b: &[usize]| {
            let pairs = a.iter().flat_map(|&i| b.iter().map(move |&j| (i, j)));
            let pairs = pairs.filter(|&(i, j)| of(i) != of(j));
            let all: Vec<f64> = pairs.map(|(i, j)| m[i * 8 + j]).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        let (a, b) = ([0, 1, 2, 3], [4, 5, 6, 7]);
        let expected = mean(&a, &b) - 0.5 * (mean(&a, &a) + mean(&b, &b));
        let test = relabellings.test(&m, 1e-12);
        assert!((test.statistic - expected).abs() < 1e-12, "{test:?}");

        let strata: [&[usize]; 2] = [&[0, 0, 0, 1], &[0, 1, 1, 1]];
        let within = Relabellings::of_clusters(clusters, Some(strata), 0, 0);
        // Two of three, and one of three.
        assert_eq!(within.all.as_ref().map(Vec::len), Some(9));
        let apart: [&[usize]; 2] = [&[0; 4], &[1; 4]];
        let none = Relabellings::of_clusters(clusters, Some(apart), 0, 0);
        assert_eq!((none.least(), none.test(&m, 1e-12).p_low), (1.0, 1.0));
    }
}
