//! Which scores the samples tell apart.

use fisher_core::clusters::{clustered_mean, column_means};
use fisher_core::moments::{
    ConfidenceInterval, IntervalMethod, MeanEstimate, effective, student_quantile,
};
use fisher_core::statistics::UnitSums;
use fisher_metrics::ranks::{RankSet, rank_sets};
use serde::Serialize;

use super::scored::{Scored, Sums};
use crate::measure::Result;

/// What scores are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Their values at every sample: paired, and the rank sets hold all at once.
    Samples,
    /// Upper bounds of their standard errors, as if all elements of a tensor moved together over samples, by Bonferroni's correction.
    Bounds,
    /// Nothing: no variance was kept, or there are too few samples.
    Nothing,
}

/// How well scores are known.
#[derive(Debug, Clone)]
pub struct Resolution {
    /// How that is known.
    pub by: By,
    /// The ranks that each score may have, the largest having rank 1, at 95 % for all at once.
    pub ranks: Vec<RankSet>,
    /// The interval of each score: 95 % each by samples, all at once by bounds.
    pub intervals: Vec<Option<ConfidenceInterval>>,
}

/// Level of all intervals.
const LEVEL: f64 = 0.95;
/// Draws of the bootstrap.
const DRAWS: usize = 2000;

/// Tell the scores of `scored` apart.
///
/// # Errors
/// None in practice: the level is a level.
pub fn resolve(scored: &Scored, seed: u64) -> Result<Resolution> {
    let count = scored.scores.len();
    if let Some(sums) = &scored.samples {
        let units = units(sums, count);
        if let Some(ranks) = rank_sets(&units, LEVEL, DRAWS, seed) {
            return Ok(Resolution {
                by: By::Samples,
                ranks,
                intervals: intervals(sums, &units)?,
            });
        }
    }
    let known = scored.bounds.as_ref().filter(|_| scored.units > 1);
    let Some(bounds) = known else {
        let all = RankSet {
            best: 1,
            worst: count,
        };
        return Ok(Resolution {
            by: By::Nothing,
            ranks: vec![all; count],
            intervals: vec![None; count],
        });
    };
    let upper = 1.0 - (1.0 - LEVEL) / (2 * count) as f64;
    let quantile = student_quantile(upper, (scored.units - 1) as f64);
    let around = |(score, error): (&f64, &f64)| {
        let width = if *score > 0.0 {
            (quantile * error / score).exp()
        } else {
            1.0
        };
        ConfidenceInterval {
            lower: score / width,
            upper: score * width,
        }
    };
    let intervals: Vec<_> = scored.scores.iter().zip(bounds).map(around).collect();
    let ranks = intervals.iter().map(|own| RankSet {
        best: 1 + intervals.iter().filter(|o| o.lower > own.upper).count(),
        worst: count - intervals.iter().filter(|o| o.upper < own.lower).count(),
    });
    Ok(Resolution {
        by: By::Bounds,
        ranks: ranks.collect(),
        intervals: intervals.iter().copied().map(Some).collect(),
    })
}

/// Scores summed over clusters.
fn units(sums: &Sums, count: usize) -> UnitSums {
    let clusters = sums.clusters.iter().max().map_or(0, |last| last + 1);
    let mut units = UnitSums {
        sums: vec![vec![0.0; count]; clusters],
        sizes: vec![0; clusters],
    };
    for (row, &cluster) in sums.scores.iter().zip(&sums.clusters) {
        units.sizes[cluster] += 1;
        let of = units.sums[cluster].iter_mut().zip(row);
        of.for_each(|(sum, score)| *sum += score);
    }
    units
}

fn intervals(sums: &Sums, units: &UnitSums) -> Result<Vec<Option<ConfidenceInterval>>> {
    let count = units.sums.first().map_or(0, Vec::len);
    let groups = units.sizes.len() as f64;
    let averages = column_means(&units.sums.concat(), count);
    let interval = |at: usize| {
        let values: Vec<f64> = sums.scores.iter().map(|row| row[at]).collect();
        let m2 = units
            .sums
            .iter()
            .map(|row| (row[at] - averages[at]).powi(2))
            .sum();
        let estimate = MeanEstimate {
            effective: Some(effective(groups, averages[at], m2)),
            ..clustered_mean(&values, &sums.clusters)
        };
        Ok(estimate.interval(LEVEL, IntervalMethod::LogEffective)?)
    };
    (0..count).map(interval).collect()
}
