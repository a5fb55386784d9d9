//! Confidence intervals of a mean over samples.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::error::{Result, check_argument};

/// Below so many effective samples a mean has no interval: a few samples make it.
pub const FEWEST_FOR_INTERVAL: f64 = 5.0;

/// Below so many effective samples a mean and its interval are to be read with care.
pub const FEWEST_FOR_TRUST: f64 = 30.0;

/// How a two-sided interval of a mean is had from its estimate.
///
/// Contributions are not negative and often skewed, so that `mean ± t · s.e.` covers too little and
/// reaches below 0. The first two are for them, the others for what is symmetric. How often each
/// covers is measured by the bench `claims`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum IntervalMethod {
    /// `m · exp(± t · s.e. / m)`, t of `max(1, n_eff − 1)` degrees of freedom: symmetric on the log
    /// scale, above 0.
    LogEffective,
    /// Hall's transformed interval (1992, "On the removal of skewness by transformation"): with the
    /// skewness `g` and `r = √n`, `T(t) = (3r/g)(∛(1 + (g/r)(t − g/6r)) − 1)` and
    /// `[m − s.e. · T(t), m − s.e. · T(−t)]`, cut at 0. The quantile is Student's of
    /// `max(1, n_eff − 1)` degrees of freedom, which covers better than the normal's where the mean
    /// rests on few samples. Where no skewness is kept, it is [`IntervalMethod::LogEffective`].
    #[default]
    Hall,
    /// `mean ± t · s.e.`, t of `n − 1` degrees of freedom.
    StudentT,
    /// `mean ± z · s.e.`: for many samples of what is symmetric.
    Normal,
}

/// A two-sided interval of a mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ConfidenceInterval {
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
}

/// One mean over samples, and how well it is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanEstimate {
    /// The mean.
    pub mean: f64,
    /// Independent units that it is of: samples, or clusters of samples.
    pub units: u64,
    /// Its standard error; needs two units.
    pub standard_error: Option<f64>,
    /// Kish's effective number, `(Σ C)² / Σ C²` over units: of 4096 samples whose coefficient of
    /// variation is 53, it is 1.5. 0 where all are 0, and `None` of what may be negative.
    pub effective: Option<f64>,
    /// The skewness of units, `m₃ / s³`, where a third moment is kept.
    pub skewness: Option<f64>,
}

impl MeanEstimate {
    /// The interval at `level`; `None` for fewer than two units, and by the methods for skewed
    /// contributions also below [`FEWEST_FOR_INTERVAL`] effective ones.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) unless `0 < level < 1`.
    pub fn interval(
        &self,
        level: f64,
        method: IntervalMethod,
    ) -> Result<Option<ConfidenceInterval>> {
        let fits = level > 0.0 && level < 1.0;
        check_argument(fits, "level", "between 0 and 1", level)?;
        let Some(error) = self.standard_error else {
            return Ok(None);
        };
        let effective = self.effective.unwrap_or(0.0);
        let upper = 0.5 + level / 2.0;
        let mean = self.mean;
        let around = |q: f64| ConfidenceInterval {
            lower: mean - q * error,
            upper: mean + q * error,
        };
        let skewed = effective >= FEWEST_FOR_INTERVAL;
        let few = || student_quantile(upper, (effective - 1.0).max(1.0));
        Ok(match (method, self.skewness) {
            (IntervalMethod::Normal, _) => Some(around(Normal::standard().inverse_cdf(upper))),
            (IntervalMethod::StudentT, _) => {
                Some(around(student_quantile(upper, (self.units - 1) as f64)))
            }
            (IntervalMethod::Hall, Some(skewness)) if skewed && skewness.is_finite() => {
                let root = (self.units as f64).sqrt();
                let end = |t: f64| (mean - error * hall(t, skewness, root)).max(0.0);
                let t = few();
                Some(ConfidenceInterval {
                    lower: end(t),
                    upper: end(-t),
                })
            }
            _ if skewed => {
                let width = (few() * error / mean).exp();
                Some(ConfidenceInterval {
                    lower: mean / width,
                    upper: mean * width,
                })
            }
            _ => None,
        })
    }
}

/// Hall's transformation, turned round; `t` itself where there is no skewness.
fn hall(t: f64, skewness: f64, root: f64) -> f64 {
    let ratio = skewness / root;
    if ratio.abs() < 1e-8 {
        return t;
    }
    3.0 / ratio * ((1.0 + ratio * (t - ratio / 6.0)).cbrt() - 1.0)
}

/// Student's quantile at `p`.
///
/// # Panics
/// Not for degrees of freedom above 0.
pub fn student_quantile(p: f64, degrees: f64) -> f64 {
    let student = (degrees < 100.0)
        .then(|| StudentsT::new(0.0, 1.0, degrees).ok())
        .flatten();
    match student {
        Some(student) => student.inverse_cdf(p),
        None => expand(Normal::standard().inverse_cdf(p), degrees),
    }
}

/// Student's quantile from the normal one, for many degrees of freedom, where inverting the
/// incomplete beta function loses digits (Abramowitz & Stegun 26.7.5).
fn expand(z: f64, degrees: f64) -> f64 {
    let z2 = z * z;
    let first = z * (z2 + 1.0) / 4.0;
    let second = z * (z2 * (5.0 * z2 + 16.0) + 3.0) / 96.0;
    let third = z * (z2 * (z2 * (3.0 * z2 + 19.0) + 17.0) - 15.0) / 384.0;
    z + (first + (second + third / degrees) / degrees) / degrees
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn estimate(skewness: Option<f64>) -> MeanEstimate {
        MeanEstimate {
            mean: 2.0,
            units: 11,
            standard_error: Some(0.5),
            effective: Some(11.0),
            skewness,
        }
    }

    // Table values of any statistics book.
    #[rstest]
    #[case(1.0, 12.706_204_736_4)]
    #[case(10.0, 2.228_138_852_0)]
    #[case(100.0, 1.983_971_518_5)]
    #[case(1_000.0, 1.962_339_080_8)]
    #[case(1e6, 1.959_966_358_8)]
    fn quantiles(#[case] degrees: f64, #[case] expected: f64) {
        let found = student_quantile(0.975, degrees);
        assert!((found - expected).abs() < 1e-7 * expected, "{found}");
    }

    // Computed by hand from the formulas, t = 2.228138852.
    #[rstest]
    #[case(IntervalMethod::Normal, None, [1.020_018_007_7, 2.979_981_992_3])]
    #[case(IntervalMethod::StudentT, None, [0.885_930_574, 3.114_069_426])]
    #[case(IntervalMethod::LogEffective, None, [1.145_810_753, 3.490_977_886])]
    #[case(IntervalMethod::Hall, None, [1.145_810_753, 3.490_977_886])]
    #[case(IntervalMethod::Hall, Some(0.0), [0.885_930_574, 3.114_069_426])]
    fn intervals(
        #[case] method: IntervalMethod,
        #[case] skewness: Option<f64>,
        #[case] expected: [f64; 2],
    ) {
        let found = estimate(skewness).interval(0.95, method);
        let found = found.expect("a level").expect("an interval");
        for (found, expected) in [found.lower, found.upper].into_iter().zip(expected) {
            assert!((found - expected).abs() < 2e-7, "{found} for {expected}");
        }
    }

    /// Hall's interval lies further up the more the samples are skewed upwards.
    #[test]
    fn skewness_moves_hall_up() {
        let of = |skewness| estimate(Some(skewness)).interval(0.95, IntervalMethod::Hall);
        let [none, some] = [0.0, 1.5].map(|g| of(g).expect("a level").expect("an interval"));
        assert!(some.lower > none.lower && some.upper > none.upper);
        // Turned round it is the transformation itself.
        let (g, root) = (1.5, 11f64.sqrt());
        let x = hall(2.0, g, root);
        let ratio = g / root;
        let back = x + ratio * x * x / 3.0 + ratio * ratio * x * x * x / 27.0 + ratio / 6.0;
        assert!((back - 2.0).abs() < 1e-12, "{back}");
    }

    #[test]
    fn undefined_is_none() {
        let few = MeanEstimate {
            effective: Some(4.9),
            ..estimate(Some(1.0))
        };
        for method in [IntervalMethod::LogEffective, IntervalMethod::Hall] {
            assert_eq!(few.interval(0.95, method).expect("a level"), None);
        }
        let one = MeanEstimate {
            standard_error: None,
            ..few
        };
        let found = one.interval(0.95, IntervalMethod::StudentT);
        assert_eq!(found.expect("a level"), None);
        assert!(few.interval(1.0, IntervalMethod::Hall).is_err());
    }
}
