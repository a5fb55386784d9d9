//! Confidence intervals of a mean over samples.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::error::{Result, check_argument};

/// The distribution an interval's width is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum IntervalMethod {
    /// The standard normal: the large-sample interval.
    Normal,
    /// Student's t with `n − 1` degrees of freedom: wider where samples are few.
    #[default]
    StudentT,
}

/// A two-sided interval `mean ± q · standard error`.
///
/// Contributions are non-negative and skewed, so at small `n` the true coverage is below the
/// nominal level, and the lower end may be below 0; it is not clipped.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ConfidenceInterval {
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
}

impl IntervalMethod {
    /// The quantile `q` for a two-sided interval of `level` from `count` samples; `None` for
    /// fewer than two.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) unless `0 < level < 1`.
    pub fn quantile(self, level: f64, count: u64) -> Result<Option<f64>> {
        let fits = level > 0.0 && level < 1.0;
        check_argument(fits, "level", "between 0 and 1", level)?;
        if count < 2 {
            return Ok(None);
        }
        let upper = 0.5 + level / 2.0;
        let degrees = (count - 1) as f64;
        Ok(match self {
            Self::Normal => Some(Normal::standard().inverse_cdf(upper)),
            Self::StudentT if degrees < 100.0 => StudentsT::new(0.0, 1.0, degrees)
                .ok()
                .map(|t| t.inverse_cdf(upper)),
            Self::StudentT => Some(expand(Normal::standard().inverse_cdf(upper), degrees)),
        })
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

    // Table values of any statistics book.
    #[rstest]
    #[case(IntervalMethod::Normal, 0.95, 10, 1.959_963_984_5)]
    #[case(IntervalMethod::StudentT, 0.95, 2, 12.706_204_736_4)]
    #[case(IntervalMethod::StudentT, 0.95, 11, 2.228_138_852_0)]
    #[case(IntervalMethod::StudentT, 0.99, 31, 2.749_995_653_6)]
    #[case(IntervalMethod::StudentT, 0.95, 101, 1.983_971_518_5)]
    #[case(IntervalMethod::StudentT, 0.95, 1_001, 1.962_339_080_8)]
    #[case(IntervalMethod::StudentT, 0.95, 1_000_001, 1.959_966_358_8)]
    fn quantiles(#[case] d: IntervalMethod, #[case] level: f64, #[case] n: u64, #[case] q: f64) {
        let found = d.quantile(level, n).expect("level").expect("n");
        assert!((found - q).abs() < 1e-7 * q, "{found} against {q}");
    }

    #[test]
    fn undefined_is_none() {
        assert_eq!(
            IntervalMethod::StudentT.quantile(0.95, 1).expect("level"),
            None
        );
        assert!(IntervalMethod::Normal.quantile(1.0, 5).is_err());
    }
}
