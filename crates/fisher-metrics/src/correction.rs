//! Many tests at once.

use serde::{Deserialize, Serialize};

/// How p-values are corrected for their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Correction {
    /// False discovery rate under independence or positive dependence (Benjamini & Hochberg 1995).
    #[default]
    BenjaminiHochberg,
    /// False discovery rate under any dependence (Benjamini & Yekutieli 2001).
    BenjaminiYekutieli,
    /// Family-wise error rate: `min(1, m p)`.
    Bonferroni,
}

impl Correction {
    /// The q-values (adjusted p-values) of `p`, in its order: rejecting `q ≤ α` holds the error
    /// rate at α. A p that is NaN is no test: its q is NaN, and the others are corrected for their own
    /// number.
    ///
    /// ```
    /// use fisher_metrics::correction::Correction;
    /// let q = Correction::BenjaminiHochberg.q_values(&[0.01, 0.04, 0.03]);
    /// assert_eq!(q, [0.03, 0.04, 0.04]);
    /// ```
    pub fn q_values(self, p: &[f64]) -> Vec<f64> {
        let mut order: Vec<usize> = (0..p.len()).filter(|&i| !p[i].is_nan()).collect();
        order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
        let factor = self.factor(order.len());
        let mut q = vec![f64::NAN; p.len()];
        let mut least = 1f64;
        for (rank, &i) in order.iter().enumerate().rev() {
            least = match self {
                Self::Bonferroni => (p[i] * factor).min(1.0),
                _ => least.min(p[i] * factor / (rank + 1) as f64),
            };
            q[i] = least;
        }
        q
    }

    /// What p is multiplied by where it is the smallest of `tests`.
    pub(crate) fn factor(self, tests: usize) -> f64 {
        let count = tests as f64;
        let harmonic = || (1..=tests).map(|k| 1.0 / k as f64).sum::<f64>();
        match self {
            Self::BenjaminiHochberg | Self::Bonferroni => count,
            Self::BenjaminiYekutieli => count * harmonic(),
        }
    }

    /// The level of intervals to stand beside q-values of which `selected` of `tests` are at most α:
    /// the interval of a selected test leaves out what it was tested against, that of any other does
    /// not, and the expected share of the selected ones that miss the truth is at most α (false
    /// coverage rate; Benjamini & Yekutieli 2005, "False discovery rate-adjusted multiple confidence
    /// intervals for selected parameters"). `1 − α` for a single test.
    ///
    /// ```
    /// use fisher_metrics::correction::Correction;
    /// assert_eq!(Correction::BenjaminiHochberg.coverage(0.05, 20, 5), 0.9875);
    /// assert_eq!(Correction::Bonferroni.coverage(0.05, 20, 5), 0.9975);
    /// ```
    pub fn coverage(self, alpha: f64, tests: usize, selected: usize) -> f64 {
        let share = match self {
            Self::Bonferroni => 1,
            _ => selected.max(1),
        };
        1.0 - alpha * share as f64 / self.factor(tests.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn q_values_keep_the_order_and_are_no_smaller(p in proptest::collection::vec(0.001f64..1.0, 1..40)) {
            let all = [
                Correction::BenjaminiHochberg,
                Correction::BenjaminiYekutieli,
                Correction::Bonferroni,
            ];
            for (strictness, correction) in all.into_iter().enumerate() {
                let q = correction.q_values(&p);
                for i in 0..p.len() {
                    prop_assert!(q[i] >= p[i] - 1e-15 && q[i] <= 1.0);
                    prop_assert!((0..p.len()).all(|j| p[i] > p[j] || q[i] <= q[j]));
                }
                if strictness == 2 {
                    let hochberg = all[0].q_values(&p);
                    prop_assert!(hochberg.iter().zip(&q).all(|(h, b)| h <= b));
                }
            }
        }

        /// Tests that could not be done neither take the smallest q nor shrink that of others.
        #[test]
        fn what_is_no_number_does_not_count(
            p in proptest::collection::vec(0.001f64..1.0, 1..20),
            at in proptest::collection::vec(0usize..20, 0..6),
        ) {
            for correction in [
                Correction::BenjaminiHochberg,
                Correction::BenjaminiYekutieli,
                Correction::Bonferroni,
            ] {
                let expected = correction.q_values(&p);
                let mut holes = p.clone();
                for (k, at) in at.iter().enumerate() {
                    let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
                    holes.insert(at % (holes.len() + 1), f64::NAN.copysign(sign));
                }
                let q = correction.q_values(&holes);
                for (p, q) in holes.iter().zip(&q) {
                    prop_assert_eq!(p.is_nan(), q.is_nan());
                }
                let found: Vec<f64> = q.into_iter().filter(|q| !q.is_nan()).collect();
                prop_assert_eq!(found, expected);
            }
        }

        /// `q ≤ α` is the step-up rule itself: all up to the last k with `p_(k) ≤ αk/m`.
        #[test]
        fn rejecting_by_q_is_the_step_up_rule(p in proptest::collection::vec(0.0f64..0.2, 1..30)) {
            let alpha = 0.05;
            let mut sorted = p.clone();
            sorted.sort_by(f64::total_cmp);
            let m = p.len() as f64;
            let fits = |k: &usize| sorted[*k] * m / (*k + 1) as f64 <= alpha;
            let threshold = (0..p.len()).rfind(fits).map(|k| sorted[k]);
            let q = Correction::BenjaminiHochberg.q_values(&p);
            for (p, q) in p.iter().zip(q) {
                prop_assert_eq!(q <= alpha, threshold.is_some_and(|t| *p <= t));
            }
        }
    }
}
