//! Damping: what is added to F where it divides.

use burn::config::Config;
use serde::{Deserialize, Serialize};

use crate::error::{Result, check_argument};

/// What is added to F before it divides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Damping {
    /// λ itself, in the unit of F.
    Absolute(f64),
    /// λ as a multiple of the mean of F over the tensor, or of its eigenvalues; no smaller than what the operator says.
    Relative(f64),
}

/// `D(F) = max(F, ε) + λ` with `λ = max(λ_min, λ_rel · median F)`, the median over the slice.
///
/// The damping is relative because F's scale is the model's: a fixed one that is small for one
/// model swamps every entry of another.
#[derive(Config, Debug, PartialEq)]
pub struct Ridge {
    /// ε: entries of F are at least this.
    #[config(default = 1e-12)]
    pub epsilon: f64,
    /// λ_min.
    #[config(default = 1e-12)]
    pub ridge: f64,
    /// λ_rel.
    #[config(default = 1e-6)]
    pub ridge_rel: f64,
}

/// The state of F over a slice, and the damping it got.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Smallest entry.
    pub min: f64,
    /// Median entry.
    pub median: f64,
    /// Largest entry.
    pub max: f64,
    /// Share of the entries below ε.
    pub fraction_below_epsilon: f64,
    /// λ.
    pub ridge_lambda_applied: f64,
}

impl Health {
    /// Whether λ is more than 1 % of the median, so that it decides more than F does.
    pub fn swamped(&self) -> bool {
        self.ridge_lambda_applied > 0.01 * self.median
    }

    /// Whether more than 5 % of the entries are below ε, so that ε stands for them.
    pub fn floored(&self) -> bool {
        self.fraction_below_epsilon > 0.05
    }
}

/// The least that F may be damped by: powers of its inverse and products with gradients stay finite
/// in float64.
const LEAST: f64 = 1e-100;

impl Ridge {
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) when a number is negative or not finite, or nothing
    /// keeps F above 0.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, found) in [
            ("epsilon", self.epsilon),
            ("ridge", self.ridge),
            ("ridge_rel", self.ridge_rel),
        ] {
            let fits = found >= 0.0 && found.is_finite();
            check_argument(fits, name, "finite and at least 0", found)?;
        }
        check_argument(
            self.epsilon + self.ridge >= LEAST,
            "epsilon",
            "at least 1e-100 where ridge is not: F can be 0",
            self.epsilon,
        )
    }

    /// λ over a slice. `fisher` is put in another order.
    pub(crate) fn lambda(&self, fisher: &mut [f64]) -> f64 {
        self.ridge.max(self.ridge_rel * median(fisher))
    }

    /// F's state over a slice; all 0 over an empty one. `fisher` is put in another order.
    pub fn health(&self, fisher: &mut [f64]) -> Health {
        let below = fisher.iter().filter(|f| **f < self.epsilon).count();
        let median = median(fisher);
        let max = fisher.iter().copied().fold(0.0, f64::max);
        Health {
            min: fisher.iter().copied().reduce(f64::min).unwrap_or(0.0),
            median,
            max,
            fraction_below_epsilon: below as f64 / fisher.len().max(1) as f64,
            ridge_lambda_applied: self.ridge.max(self.ridge_rel * median),
        }
    }

    /// `D(F)` of one entry.
    pub(crate) fn damped(&self, fisher: f64, lambda: f64) -> f64 {
        fisher.max(self.epsilon) + lambda
    }
}

/// The median, the mean of the two in the middle where their number is even; 0 of nothing.
fn median(values: &mut [f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let (middle, odd) = (values.len() / 2, values.len() % 2 == 1);
    let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    if odd {
        return upper;
    }
    let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    0.5 * (lower + upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_numpys() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut [7.0]), 7.0);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn damping_that_swamps_is_seen() {
        let small = &mut [1e-15, 2e-15, 3e-15];
        let fixed = Ridge::new().with_ridge(1e-8).health(small);
        assert!(fixed.swamped());
        assert_eq!(fixed.fraction_below_epsilon, 1.0);
        let relative = Ridge::new().with_epsilon(1e-30).with_ridge(0.0);
        assert!(!relative.health(small).swamped());
        assert!(!relative.health(small).floored());
        // ε stands for all of them, and λ is small beside them: the one does not say the other.
        let floor = Ridge::new().with_ridge(0.0).health(small);
        assert!(floor.floored() && !floor.swamped());
    }
}
