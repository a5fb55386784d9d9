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
    /// rate at α.
    ///
    /// ```
    /// use fisher_metrics::correction::Correction;
    /// let q = Correction::BenjaminiHochberg.q_values(&[0.01, 0.04, 0.03]);
    /// assert_eq!(q, [0.03, 0.04, 0.04]);
    /// ```
    pub fn q_values(self, p: &[f64]) -> Vec<f64> {
        let count = p.len() as f64;
        let harmonic = || (1..=p.len()).map(|k| 1.0 / k as f64).sum::<f64>();
        let factor = match self {
            Self::Bonferroni => return p.iter().map(|p| (p * count).min(1.0)).collect(),
            Self::BenjaminiHochberg => count,
            Self::BenjaminiYekutieli => count * harmonic(),
        };
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
        let mut q = vec![0.0; p.len()];
        let mut least = 1f64;
        for (rank, &i) in order.iter().enumerate().rev() {
            least = least.min(p[i] * factor / (rank + 1) as f64);
            q[i] = least;
        }
        q
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
