//! Which ranks hold: simultaneous confidence sets of the ranks of means over the same samples.

use std::fmt;

use fisher_core::statistics::UnitSums;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The ranks that a value may have, the largest value having rank 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankSet {
    /// The best.
    pub best: usize,
    /// The worst.
    pub worst: usize,
}

impl RankSet {
    /// Whether it is one rank.
    pub fn resolved(&self) -> bool {
        self.best == self.worst
    }
}

impl fmt::Display for RankSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.resolved() {
            write!(f, "{}", self.best)
        } else {
            write!(f, "{}-{}", self.best, self.worst)
        }
    }
}

/// Products that all draws of the bootstrap may take together.
const WORK: usize = 1 << 32;
/// Units that are kept apart at least.
const FEWEST_UNITS: usize = 100;
/// Values beyond which there are no sets: every draw holds the products of all pairs.
pub(crate) const MOST_VALUES: usize = 1024;
/// Relative differences below this are rounding.
const ROUNDING: f64 = 1e-7;

/// Sets that hold the ranks of all values at once with probability `level`, after Mogstad, Romano,
/// Shaikh & Wilhelm (2024), "Inference for ranks".
///
/// Two values are told apart by the logarithm of their ratio over the same samples: with
/// `u_ij = C_ij / F_j − 1` its standard error is `√(Σ_i (u_ij − u_ik)²) / n` (times `√(n/(n−1))`), which is small where two
/// values move together over samples, however much they move. The critical value `c` is the
/// `level` quantile of the largest `|log ratio* − log ratio| / s.e.*` over bootstrap draws of units, the
/// error being taken again in every draw: with the error held fixed, as for differences of means, sets were wrong
/// twice to three times too often where values are skewed unequally. The best rank of `j` is one more
/// than the number of values that are larger beyond `c`, the worst is the number of values less those
/// that are smaller beyond `c`.
///
/// A value that is 0 in all samples has no logarithm; another is above it where that is `c` of its
/// own relative errors above 0. `None` for fewer than two units, and for more than 1024 values, of which all
/// pairs would be too many.
pub fn rank_sets(units: &UnitSums, level: f64, draws: usize, seed: u64) -> Option<Vec<RankSet>> {
    sets(Scale::Logarithm, units, level, draws, seed)
}

/// The same of means of either sign, such as rises of a loss: two are told apart by their difference, with
/// `u_cj = S_cj − n_c m_j` the sums of a unit less its size times the mean, and the standard error
/// `√(G/(G−1) Σ_c (u_cj − u_ck)²) / n`, taken again in every draw.
pub fn rank_sets_of_differences(
    units: &UnitSums,
    level: f64,
    draws: usize,
    seed: u64,
) -> Option<Vec<RankSet>> {
    sets(Scale::Plain, units, level, draws, seed)
}

/// On which scale two means are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Logarithm,
    Plain,
}

fn sets(
    scale: Scale,
    units: &UnitSums,
    level: f64,
    draws: usize,
    seed: u64,
) -> Option<Vec<RankSet>> {
    let values = units.sums.first()?.len();
    if values > MOST_VALUES {
        return None;
    }
    let fold = |units: &UnitSums| {
        let enough = units.sizes.len() / 2 >= FEWEST_UNITS;
        enough && units.sizes.len() * values * values / 2 * draws > WORK
    };
    let mut folded = None;
    while fold(folded.as_ref().unwrap_or(units)) {
        folded = Some(halved(folded.as_ref().unwrap_or(units)));
    }
    let units = &ordered(folded.as_ref().unwrap_or(units));
    let count = units.sizes.len();
    if count < 2 {
        return None;
    }
    let observed = Ratios::of(scale, units, &vec![1.0; count]);
    let largest = |draw: usize| {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(draw as u64);
        let mut weights = vec![0.0; count];
        (0..count).for_each(|_| weights[rng.random_range(0..count)] += 1.0);
        Ratios::of(scale, units, &weights).farthest_from(&observed)
    };
    let mut farthest: Vec<f64> = (0..draws).into_par_iter().map(largest).collect();
    farthest.sort_by(f64::total_cmp);
    let at = (level * (draws + 1) as f64).ceil() as usize;
    let critical = farthest.get(at.max(1) - 1).copied();
    // Too few draws for the level tell nothing apart.
    let critical = critical.unwrap_or(f64::INFINITY);
    let set = |j: usize| {
        let others = (0..values).filter(|k| *k != j);
        let ratios = others.map(|k| observed.ratio(j, k) / observed.error(j, k));
        let (mut best, mut worst) = (1, values);
        for t in ratios {
            best += usize::from(t < -critical);
            worst -= usize::from(t > critical);
        }
        RankSet { best, worst }
    };
    Some((0..values).map(set).collect())
}

/// In an order of their own, so that draws do not depend on the order in which samples came.
fn ordered(units: &UnitSums) -> UnitSums {
    let mut order: Vec<usize> = (0..units.sizes.len()).collect();
    order.sort_by(|&a, &b| {
        let pairs = units.sums[a].iter().zip(&units.sums[b]);
        let differ = pairs.map(|(x, y)| x.total_cmp(y)).find(|o| o.is_ne());
        differ.unwrap_or_else(|| units.sizes[a].cmp(&units.sizes[b]))
    });
    UnitSums {
        sums: order.iter().map(|&unit| units.sums[unit].clone()).collect(),
        sizes: order.iter().map(|&unit| units.sizes[unit]).collect(),
    }
}

/// Neighbouring units put together, two and two.
fn halved(units: &UnitSums) -> UnitSums {
    let add = |pair: &[Vec<f64>]| match pair {
        [a, b] => a.iter().zip(b).map(|(a, b)| a + b).collect(),
        rest => rest.concat(),
    };
    UnitSums {
        sums: units.sums.chunks(2).map(add).collect(),
        sizes: units
            .sizes
            .chunks(2)
            .map(|pair| pair.iter().sum())
            .collect(),
    }
}

/// Ratios of the means of all values in a draw, or their differences, and their errors.
struct Ratios {
    /// `log F`, `None` where F is 0; or F itself.
    logs: Vec<Option<f64>>,
    /// `Σ_c w_c u_cj u_ck / n²` times `G/(G−1)`, `[values, values]`.
    products: Vec<f64>,
    /// Errors below this are rounding.
    rounding: f64,
}

impl Ratios {
    /// Units weighed by how often they were drawn.
    fn of(scale: Scale, units: &UnitSums, weights: &[f64]) -> Self {
        let values = units.sums[0].len();
        let count = units.sizes.len() as f64;
        let drawn = || weights.iter().enumerate().filter(|(_, w)| **w > 0.0);
        let mut means = vec![0.0; values];
        let mut samples = 0.0;
        for (c, weight) in drawn() {
            samples += weight * units.sizes[c] as f64;
            for (mean, sum) in means.iter_mut().zip(&units.sums[c]) {
                *mean += weight * sum;
            }
        }
        means.iter_mut().for_each(|mean| *mean /= samples);
        let mut products = vec![0.0; values * values];
        let mut u = vec![0.0; values];
        for (c, weight) in drawn() {
            let size = units.sizes[c] as f64;
            for (u, (sum, mean)) in u.iter_mut().zip(units.sums[c].iter().zip(&means)) {
                *u = match scale {
                    Scale::Plain => sum - size * mean,
                    Scale::Logarithm if *mean > 0.0 => sum / mean - size,
                    Scale::Logarithm => 0.0,
                };
            }
            for j in 0..values {
                let left = weight * u[j];
                let row = &mut products[j * values..=j * values + j];
                row.iter_mut().zip(&u).for_each(|(sum, u)| *sum += left * u);
            }
        }
        let factor = count / (count - 1.0) / (samples * samples);
        products.iter_mut().for_each(|product| *product *= factor);
        let logs = means.iter().map(|mean| match scale {
            Scale::Plain => Some(*mean),
            Scale::Logarithm => (*mean > 0.0).then(|| mean.ln()),
        });
        let largest = means.iter().fold(0.0, |m: f64, mean| m.max(mean.abs()));
        Self {
            logs: logs.collect(),
            products,
            rounding: match scale {
                Scale::Plain => ROUNDING * largest,
                Scale::Logarithm => ROUNDING,
            },
        }
    }

    fn product(&self, j: usize, k: usize) -> f64 {
        self.products[j.max(k) * self.logs.len() + j.min(k)]
    }

    /// Of the logarithm of `F_j / F_k`.
    fn error(&self, j: usize, k: usize) -> f64 {
        let variance = self.product(j, j) + self.product(k, k) - 2.0 * self.product(j, k);
        variance.max(0.0).sqrt().max(self.rounding)
    }

    /// The logarithm of `F_j / F_k`; 1 beside a value that is 0.
    fn ratio(&self, j: usize, k: usize) -> f64 {
        match (self.logs[j], self.logs[k]) {
            (Some(a), Some(b)) => a - b,
            (Some(_), None) => 1.0,
            (None, Some(_)) => -1.0,
            (None, None) => 0.0,
        }
    }

    /// The largest deviation of a ratio from the one that was observed, in errors of this draw.
    fn farthest_from(&self, observed: &Self) -> f64 {
        let mut farthest: f64 = 0.0;
        for j in 0..self.logs.len() {
            for k in 0..j {
                // What moves together to the last digit has no error to be drawn.
                if observed.error(j, k) <= observed.rounding {
                    continue;
                }
                let vanished = |at: usize| self.logs[at].is_none() && observed.logs[at].is_some();
                if vanished(j) || vanished(k) {
                    return f64::INFINITY;
                }
                let deviation = match (observed.logs[j], observed.logs[k]) {
                    (Some(_), Some(_)) => self.ratio(j, k) - observed.ratio(j, k),
                    (Some(a), None) => self.logs[j].map_or(f64::INFINITY, |b| b - a),
                    (None, Some(a)) => self.logs[k].map_or(f64::INFINITY, |b| b - a),
                    (None, None) => 0.0,
                };
                farthest = farthest.max(deviation.abs() / self.error(j, k));
            }
        }
        farthest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(rows: Vec<Vec<f64>>) -> UnitSums {
        UnitSums {
            sizes: vec![1; rows.len()],
            sums: rows,
        }
    }

    /// Skewed as they may be: what is larger in every sample by one factor is larger.
    #[test]
    fn values_that_move_together_are_told_apart() {
        let size = |i: usize| (0.9 * (i * 37 % 16) as f64).exp();
        let rows = |i| (0..8).map(|k| size(i) * (1.0 + 0.1 * k as f64)).collect();
        let sets = rank_sets(&units((0..16).map(rows).collect()), 0.95, 200, 1);
        for (k, set) in sets.expect("units").into_iter().enumerate() {
            assert_eq!((set.best, set.worst), (8 - k, 8 - k));
        }
    }

    #[test]
    fn noise_is_not_ranked_and_zero_is_last() {
        let rng = &mut ChaCha8Rng::seed_from_u64(3);
        let mut row = |_| {
            let noise = |k: usize| (1.0 + 0.01 * k as f64) * rng.random::<f64>();
            let mut values: Vec<f64> = (0..4).map(noise).collect();
            values.push(0.0);
            values
        };
        let sets = rank_sets(&units((0..64).map(&mut row).collect()), 0.95, 400, 1);
        let sets = sets.expect("units");
        for set in &sets[..4] {
            assert!(!set.resolved() && set.worst == 4, "{set}");
        }
        assert_eq!((sets[4].best, sets[4].worst), (5, 5));
    }

    #[test]
    fn the_order_of_samples_does_not_matter() {
        let rng = &mut ChaCha8Rng::seed_from_u64(5);
        let row = |_| (1..6).map(|k| k as f64 * rng.random::<f64>()).collect();
        let mut rows: Vec<Vec<f64>> = (0..40).map(row).collect();
        let found = rank_sets(&units(rows.clone()), 0.95, 200, 1);
        rows.reverse();
        assert_eq!(rank_sets(&units(rows), 0.95, 200, 1), found);
    }

    /// Of either sign: what clusters of copies say is what their samples say, and noise about 0 is not ranked.
    #[test]
    fn differences_are_ranked_over_clusters() {
        let rng = &mut ChaCha8Rng::seed_from_u64(7);
        let means = [-1.0, 0.0, 0.0, 2.0];
        let row = |_| means.map(|mean| mean + rng.random::<f64>() - 0.5).to_vec();
        let rows: Vec<Vec<f64>> = (0..40).map(row).collect();
        let alone = units(rows.clone());
        let sets = |of: &UnitSums| rank_sets_of_differences(of, 0.95, 400, 1).expect("units");
        let found = sets(&alone);
        let ranks: Vec<String> = found.iter().map(RankSet::to_string).collect();
        assert_eq!(ranks, ["4", "2-3", "2-3", "1"]);
        let times = |x: &f64| 4.0 * x;
        let copied = UnitSums {
            sums: rows
                .iter()
                .map(|row| row.iter().map(times).collect())
                .collect(),
            sizes: vec![4; 40],
        };
        assert_eq!(sets(&copied), found);
        let nothing = sets(&units(vec![vec![0.0; 3]; 8]));
        assert!(nothing.iter().all(|set| (set.best, set.worst) == (1, 3)));
    }

    #[test]
    fn few_draws_or_units_tell_nothing() {
        let rows = vec![vec![1.0, 9.0], vec![1.1, 9.5], vec![1.3, 9.2]];
        let sets = rank_sets(&units(rows.clone()), 0.95, 10, 1).expect("units");
        assert_eq!((sets[0].best, sets[0].worst), (1, 2));
        assert!(rank_sets(&units(rows[..1].to_vec()), 0.95, 100, 1).is_none());
        assert!(rank_sets(&units(Vec::new()), 0.95, 100, 1).is_none());
    }

    #[test]
    fn halves_are_sums() {
        let rows = vec![vec![1.0, 2.0], vec![3.0, 4.0], vec![5.0, 6.0]];
        let found = halved(&units(rows));
        assert_eq!(found.sums, [vec![4.0, 6.0], vec![5.0, 6.0]]);
        assert_eq!(found.sizes, [2, 1]);
    }
}
