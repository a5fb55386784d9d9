//! How alike the scores of two tasks are.

use std::fmt;

use burn::config::Config;
use fisher_core::provenance::Provenance;
use serde::{Deserialize, Serialize};

use super::scores::{Scores, join};
use crate::error::Result;
use crate::report::if_finite;

/// Version of the form of [`ComparisonReport`].
const SCHEMA: u64 = 1;

/// Likeness of two tasks' scores over the same groups or elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonReport {
    /// Version of this form.
    pub schema: u64,
    /// The tasks.
    pub tasks: [String; 2],
    /// Where their statistics come from.
    pub provenance: [Provenance; 2],
    /// Cosine of the angle between the scores; `None` where one is all 0.
    pub cosine: Option<f64>,
    /// Spearman's rank correlation, ties at their mean rank; `None` where one is constant.
    pub spearman: Option<f64>,
    /// Jensen-Shannon divergence of the shares, in nats: 0 for equal shares, ln 2 for disjoint
    /// ones; `None` where one is all 0.
    pub jensen_shannon: Option<f64>,
}

/// Configuration of [`Comparison`].
#[derive(Config, Debug)]
pub struct ComparisonConfig {}

impl ComparisonConfig {
    /// The operator.
    pub fn init(&self) -> Comparison {
        Comparison {}
    }
}

/// How alike two tasks' scores are over the same groups or elements.
#[derive(Debug, Clone)]
pub struct Comparison {}

impl Comparison {
    /// Compare the scores of two tasks.
    ///
    /// # Errors
    /// [`Error::Keys`](crate::Error::Keys), [`Error::Sizes`](crate::Error::Sizes) or
    /// [`Error::Groups`](crate::Error::Groups) when they are not of the same groups,
    /// [`Error::OtherFisher`](crate::Error::OtherFisher) when groups' F are means on one side and sums on
    /// the other.
    pub fn forward(&self, a: &Scores, b: &Scores) -> Result<ComparisonReport> {
        join(a, b)?;
        let values = |scores: &Scores| -> Vec<f64> {
            let sets = scores.sets.iter();
            sets.flat_map(|set| set.values.iter().copied()).collect()
        };
        let (x, y) = (values(a), values(b));
        Ok(ComparisonReport {
            schema: SCHEMA,
            tasks: [a.task.clone(), b.task.clone()],
            provenance: [a.provenance.clone(), b.provenance.clone()],
            cosine: cosine(&x, &y),
            spearman: spearman(&x, &y),
            jensen_shannon: jensen_shannon(&x, &y),
        })
    }
}

/// Spearman's rank correlation, ties at their mean rank; `None` where one side is constant.
///
/// # Panics
/// When the lengths differ.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "pairs of values");
    cosine(&centered(ranks(x)), &centered(ranks(y)))
}

impl fmt::Display for ComparisonReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.3}"));
        write!(
            f,
            "{} and {}: cosine {}, Spearman {}, Jensen-Shannon {} nats",
            self.tasks[0],
            self.tasks[1],
            number(self.cosine),
            number(self.spearman),
            number(self.jensen_shannon)
        )
    }
}

/// Scores may be as small as squares of squares: divided by the largest, their own squares are in
/// range.
fn cosine(x: &[f64], y: &[f64]) -> Option<f64> {
    let unit = |values: &[f64]| -> Vec<f64> {
        let largest = values.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        values.iter().map(|x| x / largest).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (x, y) = (unit(x), unit(y));
    let norms = dot(&x, &x).sqrt() * dot(&y, &y).sqrt();
    (norms > 0.0).then(|| dot(&x, &y) / norms)
}

/// Ranks from 1, equal values at the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0.0;
    for run in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let length = run.len() as f64;
        for &i in run {
            ranks[i] = first + (length + 1.0) / 2.0;
        }
        first += length;
    }
    ranks
}

fn centered(mut values: Vec<f64>) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter_mut().for_each(|v| *v -= mean);
    values
}

fn jensen_shannon(x: &[f64], y: &[f64]) -> Option<f64> {
    let (sum_x, sum_y) = (x.iter().sum::<f64>(), y.iter().sum::<f64>());
    if sum_x <= 0.0 || sum_y <= 0.0 {
        return None;
    }
    let term = |p: f64, m: f64| if p > 0.0 { p * (p / m).ln() } else { 0.0 };
    let terms = x.iter().zip(y).map(|(x, y)| {
        let (p, q) = (x / sum_x, y / sum_y);
        let m = 0.5 * (p + q);
        0.5 * (term(p, m) + term(q, m))
    });
    if_finite(terms.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 0.0]), [3.5, 2.0, 3.5, 1.0]);
    }

    #[test]
    fn known_values() {
        let (x, y) = ([1.0, 0.0, 1.0], [0.0, 2.0, 0.0]);
        assert_eq!(cosine(&x, &y), Some(0.0));
        let disjoint = jensen_shannon(&x, &y).expect("mass");
        assert!((disjoint - std::f64::consts::LN_2).abs() < 1e-12);
        assert!(jensen_shannon(&x, &x).expect("mass").abs() < 1e-15);
        assert_eq!(jensen_shannon(&x, &[0.0; 3]), None);
        assert_eq!(cosine(&x, &[0.0; 3]), None);
        // Whose own squares are 0 or infinite.
        for scale in [1e-200, 1e200] {
            let scaled = x.map(|x| scale * x);
            assert_eq!(cosine(&scaled, &scaled), cosine(&x, &x));
        }
    }
}
