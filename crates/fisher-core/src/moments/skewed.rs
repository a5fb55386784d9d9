//! Mean, variance and skewness of a few values over many samples, on the host.

/// Mean and the second and third sums of powers of deviations over samples, of each value, in
/// float64. Two merge exactly: Pébay (2008), "Formulas for robust, one-pass parallel computation of
/// covariances and arbitrary-order statistical moments", equations 2.1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Skewed {
    pub(crate) count: u64,
    pub(crate) mean: Vec<f64>,
    pub(crate) m2: Vec<f64>,
    /// `None` where part of what was merged has none.
    pub(crate) m3: Option<Vec<f64>>,
}

impl Skewed {
    pub(crate) fn new(values: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; values],
            m2: vec![0.0; values],
            m3: Some(vec![0.0; values]),
        }
    }

    /// Take in the values of one sample.
    pub(crate) fn push(&mut self, values: &[f64]) {
        self.merge(&Self {
            count: 1,
            mean: values.to_vec(),
            ..Self::new(values.len())
        });
    }

    /// Take in what another has seen.
    pub(crate) fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            self.clone_from(other);
            return;
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let n = a + b;
        self.m3 = self.m3.take().zip(other.m3.as_ref()).map(|(m3, theirs)| {
            let of = |k: usize| {
                let step = other.mean[k] - self.mean[k];
                let cube = step * step * step * (a * b * (a - b) / (n * n));
                m3[k] + theirs[k] + cube + 3.0 * step * (a * other.m2[k] - b * self.m2[k]) / n
            };
            (0..m3.len()).map(of).collect()
        });
        for k in 0..self.mean.len() {
            let step = other.mean[k] - self.mean[k];
            self.m2[k] += other.m2[k] + step * step * (a * b / n);
            self.mean[k] += step * (b / n);
        }
        self.count += other.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Any split gives what two passes over all samples give.
        #[test]
        fn any_split_is_one_pass(
            values in prop::collection::vec(0.0f64..9.0, 1..40),
            cut in 0usize..40,
            offset in prop::sample::select(vec![0.0, 1e3]),
        ) {
            let values: Vec<f64> = values.iter().map(|x| x * x + offset).collect();
            let cut = cut.min(values.len());
            let of = |values: &[f64]| {
                let mut all = Skewed::new(1);
                values.iter().for_each(|x| all.push(&[*x]));
                all
            };
            let mut found = of(&values[..cut]);
            found.merge(&of(&values[cut..]));
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let power = |k| values.iter().map(|x| (x - mean).powi(k)).sum::<f64>();
            prop_assert_eq!(found.count, values.len() as u64);
            let close = |x: f64, y: f64, scale: f64| (x - y).abs() <= 1e-9 * scale.max(1.0);
            prop_assert!(close(found.mean[0], mean, mean));
            prop_assert!(close(found.m2[0], power(2), power(2)));
            let cubes = values.iter().map(|x| (x - mean).abs().powi(3)).sum::<f64>();
            prop_assert!(close(found.m3.expect("a third")[0], power(3), cubes));
        }
    }
}
