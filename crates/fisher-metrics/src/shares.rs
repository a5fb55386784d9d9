//! Shares of a trace, and their intervals.

use std::fmt;

use fisher_core::moments::{
    ConfidenceInterval, FEWEST_FOR_INTERVAL, SampleMoments, effective, student_quantile,
};
use fisher_core::statistics::UnitSums;
use serde::{Deserialize, Serialize};

use crate::error::{Result, check_level};

/// A part of a whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// From 0 to 1.
    pub value: f64,
    /// Its interval, inside 0 and 1; `None` below 5 effective samples of the part or of the whole, and
    /// where the samples' totals are not at hand.
    pub interval: Option<ConfidenceInterval>,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", 100.0 * self.value)?;
        match self.interval {
            Some(of) => write!(f, " ({:.1} … {:.1})", 100.0 * of.lower, 100.0 * of.upper),
            None => Ok(()),
        }
    }
}

/// `s = F_G / F` of every mean, with its interval as a ratio over the same samples; `None` where
/// the whole is 0.
///
/// With the residuals `r_i = C_iG − s C_i` its standard error is `√(Σ_i r_i² · n/(n−1)) / (n F)`, smaller
/// than that of `F_G` where part and whole grow together. The interval is symmetric for
/// `log(s / (1 − s))`, with Student's quantile of `max(1, n_eff − 1)` degrees of freedom, `n_eff` that of the part.
///
/// `units` are the part's sums over units of samples and the whole's.
pub(crate) fn shares(
    moments: &SampleMoments,
    units: Option<(&UnitSums, &Vec<f64>)>,
    whole: f64,
    level: f64,
) -> Result<Vec<Option<Share>>> {
    check_level(level)?;
    let means = moments.mean.iter().flatten().enumerate();
    let share = |(k, mean): (usize, &f64)| {
        (whole > 0.0).then(|| {
            let value = mean / whole;
            let known = units.zip(moments.effective.as_ref());
            let interval = known.and_then(|((units, wholes), effective)| {
                interval(value, whole, effective[k], units, k, wholes, level)
            });
            Share { value, interval }
        })
    };
    Ok(means.map(share).collect())
}

fn interval(
    share: f64,
    whole: f64,
    of_part: f64,
    units: &UnitSums,
    part: usize,
    wholes: &[f64],
    level: f64,
) -> Option<ConfidenceInterval> {
    let count = wholes.len() as f64;
    let samples = units.sizes.iter().sum::<u64>() as f64;
    let average = wholes.iter().sum::<f64>() / count;
    let m2 = wholes.iter().map(|x| (x - average).powi(2)).sum();
    let enough = of_part.min(effective(count, average, m2)) >= FEWEST_FOR_INTERVAL;
    if !enough || share <= 0.0 || share >= 1.0 {
        return None;
    }
    let residuals = units.sums.iter().zip(wholes);
    let squares: f64 = residuals
        .map(|(sums, whole)| (sums[part] - share * whole).powi(2))
        .sum();
    let error = (squares * count / (count - 1.0)).sqrt() / (samples * whole);
    let t = student_quantile(0.5 + level / 2.0, (of_part - 1.0).max(1.0));
    let odds = share / (1.0 - share);
    let width = (t * error / (share * (1.0 - share))).exp();
    let back = |odds: f64| {
        if odds.is_finite() {
            odds / (1.0 + odds)
        } else {
            1.0
        }
    };
    Some(ConfidenceInterval {
        lower: back(odds / width),
        upper: back(odds * width),
    })
}
