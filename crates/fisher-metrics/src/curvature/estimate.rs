//! A positive number estimated from samples, with its error.

use fisher_core::moments::{FEWEST_FOR_INTERVAL, student_quantile};
use serde::{Deserialize, Serialize};

/// A number above 0 estimated from samples, and how well it is known.
///
/// The error is the jackknife's on the scale of logs: a cluster of `n_c` of the `n` samples moves `ln x` by
/// `u_c = (1 − n_c/n)(ln x − ln x without c)`, and `v = G/(G−1) Σ (u_c − ū)²` over `G` clusters. The interval is
/// `x exp(± t √v)`, with Student's t of `effective − 1` degrees of freedom.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// `x √v`; `None` for fewer than two clusters, or where leaving one out leaves nothing.
    pub standard_error: Option<f64>,
    /// On how many equal clusters the estimate rests: `(Σ s_c)² / Σ s_c²` of what each gives to it.
    pub effective: f64,
    /// `None` where there is no error, where it is no more than rounding, or below 5 effective clusters.
    pub interval: Option<[f64; 2]>,
}

/// An error below this share is that of float32 and not of samples.
const ROUNDING: f64 = 1e-6;

impl Estimate {
    /// Of a value and, for every cluster, the number of samples in it and the value without them.
    pub(super) fn on_logs(
        value: f64,
        without: &[(usize, f64)],
        effective: f64,
        level: f64,
    ) -> Self {
        let variance = log_variance(value, without);
        let error = variance.map(f64::sqrt);
        let trusted = effective >= FEWEST_FOR_INTERVAL;
        let interval = error.filter(|error| trusted && *error > ROUNDING);
        Self {
            value,
            standard_error: error.map(|error| value * error),
            effective,
            interval: interval.map(|error| {
                let t = student_quantile(0.5 + level / 2.0, (effective - 1.0).max(1.0));
                [-t, t].map(|t| value * (t * error).exp())
            }),
        }
    }

    /// The same without an interval, where the estimate is known to be biased.
    pub(super) fn without_interval(self) -> Self {
        Self {
            interval: None,
            ..self
        }
    }
}

fn log_variance(value: f64, without: &[(usize, f64)]) -> Option<f64> {
    let positive = |x: f64| (x > 0.0 && x.is_finite()).then(|| x.ln());
    let all = positive(value)?;
    let n = without.iter().map(|(count, _)| count).sum::<usize>() as f64;
    let moved =
        |(count, value): &(usize, f64)| Some((1.0 - *count as f64 / n) * (all - positive(*value)?));
    let moved = without.iter().map(moved).collect::<Option<Vec<f64>>>()?;
    let clusters = moved.len() as f64;
    if moved.len() < 2 {
        return None;
    }
    let mean = moved.iter().sum::<f64>() / clusters;
    let squares: f64 = moved.iter().map(|u| (u - mean).powi(2)).sum();
    Some(clusters / (clusters - 1.0) * squares)
}

/// Kish's number of equal parts.
pub(super) fn effective(parts: impl Iterator<Item = f64>) -> f64 {
    let parts: Vec<f64> = parts.collect();
    let largest = parts.iter().fold(0.0, |m: f64, x| m.max(*x));
    if largest <= 0.0 {
        return 0.0;
    }
    let [sum, squares] = [1, 2].map(|power| {
        let terms = parts.iter().map(|x| (x / largest).powi(power));
        terms.sum::<f64>()
    });
    sum * sum / squares
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a mean, the jackknife on logs is the error of the mean over the mean, to first order.
    #[test]
    fn the_error_of_a_mean_is_found() {
        let values: Vec<f64> = (0..200).map(|i| 1.0 + 0.01 * f64::from(i % 7)).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let without: Vec<(usize, f64)> = values
            .iter()
            .map(|x| (1, (n * mean - x) / (n - 1.0)))
            .collect();
        let found = Estimate::on_logs(mean, &without, n, 0.95);
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let error = (squares / (n * (n - 1.0))).sqrt();
        let standard = found.standard_error.expect("an error");
        assert!((standard / error - 1.0).abs() < 1e-3, "{standard} {error}");
        let [low, high] = found.interval.expect("an interval");
        assert!((low * high / (mean * mean) - 1.0).abs() < 1e-12);
        assert!(
            Estimate::on_logs(mean, &without, 4.9, 0.95)
                .interval
                .is_none()
        );
        assert!(
            Estimate::on_logs(mean, &without[..1], 9.0, 0.95)
                .standard_error
                .is_none()
        );
        assert!(
            Estimate::on_logs(1.0, &[(1, 1.0), (1, 0.0)], 9.0, 0.95)
                .standard_error
                .is_none()
        );
    }

    #[test]
    fn equal_parts_are_counted() {
        assert_eq!(effective([2e200; 7].into_iter()), 7.0);
        assert_eq!(effective([0.0, 3.0].into_iter()), 1.0);
        assert_eq!(effective(std::iter::empty()), 0.0);
    }
}
