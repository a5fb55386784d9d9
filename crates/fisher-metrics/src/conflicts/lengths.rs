//! Whether the samples of two tasks are of unlike length, which alone can set cosines apart.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

/// Mann and Whitney's test of the active tokens of two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// The median of either task.
    pub medians: [f64; 2],
    /// The two-sided p, by the normal approximation with its correction for ties, over the strata
    /// together where samples are relabelled within strata; 1 where all lengths are equal.
    pub p: f64,
}

impl Lengths {
    pub(super) fn new(tokens: [&[f64]; 2], strata: Option<[&[usize]; 2]>) -> Self {
        let mut all: Vec<(usize, f64, bool)> = Vec::new();
        for (task, tokens) in tokens.into_iter().enumerate() {
            let stratum = |i: usize| strata.map_or(0, |strata| strata[task][i]);
            let of = tokens.iter().enumerate();
            all.extend(of.map(|(i, t)| (stratum(i), *t, task == 0)));
        }
        all.sort_by(|x, y| x.0.cmp(&y.0).then(x.1.total_cmp(&y.1)));
        let parts = all.chunk_by(|x, y| x.0 == y.0).map(deviation);
        let (sum, variance) = parts.fold((0.0, 0.0), |(s, v), (d, w)| (s + d, v + w));
        let z = ((f64::abs(sum) - 0.5).max(0.0)) / variance.sqrt();
        let p = if variance > 0.0 {
            (2.0 * Normal::standard().sf(z)).min(1.0)
        } else {
            1.0
        };
        Self {
            medians: tokens.map(median),
            p,
        }
    }
}

/// Rank sum of the first task less its expectation, and its variance, in one stratum in the order of
/// lengths.
fn deviation(stratum: &[(usize, f64, bool)]) -> (f64, f64) {
    let n = stratum.len() as f64;
    let first = stratum.iter().filter(|x| x.2).count() as f64;
    let (mut sum, mut below, mut ties) = (0.0, 0.0, 0.0);
    for tied in stratum.chunk_by(|x, y| x.1 == y.1) {
        let count = tied.len() as f64;
        let rank = below + (count + 1.0) / 2.0;
        sum += rank * tied.iter().filter(|x| x.2).count() as f64;
        ties += count.powi(3) - count;
        below += count;
    }
    let expected = first * (n + 1.0) / 2.0;
    let spread = if n > 1.0 {
        n + 1.0 - ties / (n * (n - 1.0))
    } else {
        0.0
    };
    (sum - expected, first * (n - first) / 12.0 * spread)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n => 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]),
    }
}

/// The octave of every sample's length: lengths in one differ by less than a factor of two.
pub(super) fn octaves(tokens: &[f64]) -> Vec<usize> {
    tokens.iter().map(|t| t.log2() as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.mannwhitneyu(a, b, method="asymptotic")`
    #[test]
    fn p_is_scipys() {
        let (a, b) = (
            [3.0, 5.0, 5.0, 8.0, 13.0],
            [1.0, 2.0, 2.0, 5.0, 6.0, 7.0, 9.0],
        );
        let found = Lengths::new([&a, &b], None);
        assert_eq!(found.medians, [5.0, 5.0]);
        assert!((found.p - MANN_WHITNEY).abs() < 1e-9, "{}", found.p);
        assert_eq!(Lengths::new([&[4.0; 5], &[4.0; 9]], None).p, 1.0);
        assert!(Lengths::new([&[4.0; 9], &[64.0; 9]], None).p < 1e-3);
        // Within strata that they do not share there is nothing to compare.
        let strata: [&[usize]; 2] = [&[2; 9], &[6; 9]];
        assert_eq!(Lengths::new([&[4.0; 9], &[64.0; 9]], Some(strata)).p, 1.0);
    }
    const MANN_WHITNEY: f64 = 0.412_677_865_008_158;
}
