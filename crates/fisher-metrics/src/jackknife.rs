//! The sign of a mean over all pairs of samples of two tasks, by the two-sample jackknife.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Whether the mean of a product between samples of two tasks is below or above 0.
///
/// With `r_i` the mean of sample i's products with the other task, `c_j` that of the other task's
/// sample j, the mean of all products has the variance `v = s²_r/n_A + s²_c/n_B`, and `t = mean/√v`
/// is held against Student's t with `min(n_A, n_B) − 1` degrees of freedom. Samples of a cluster
/// are summed first, and clusters are counted instead of samples.
///
/// Where products are skewed, t leans to one side. Hall's transformation (1992) takes the skewness
/// out, and each p is the larger of both, the interval the wider at either end. What samples are too
/// few to show (one in fifty that pulls strongly the other way) no test sees.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SignTest {
    /// The mean of all products.
    pub mean: f64,
    /// `√v`.
    pub standard_error: f64,
    /// The mean over its standard error.
    pub t: f64,
    /// The skewness of the mean: `(κ_r/n_A² + κ_c/n_B²)/v^(3/2)` with third moments κ.
    pub skewness: f64,
    /// Degrees of freedom.
    pub degrees: usize,
    /// p of a mean as low, if the expected one is not below 0.
    pub p_negative: f64,
    /// p of a mean as high, if the expected one is not above 0.
    pub p_positive: f64,
    /// The interval of the mean.
    pub interval: [f64; 2],
}

/// One side of the pairs: every sample's mean product with the other side, and its cluster.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) means: &'a [f64],
    /// Numbers of clusters, from 0 without gaps.
    pub(crate) clusters: &'a [usize],
}

impl SignTest {
    /// The test of what two sides say of their pairs. `None` where a side has fewer than two
    /// clusters, or where nothing varies by more than `slack` of the largest mean, which is rounding:
    /// then there is no error to hold the mean against.
    pub(crate) fn new([a, b]: [Side; 2], level: f64, slack: f64) -> Option<Self> {
        // Cubes of small and of large numbers stay in float64's range.
        let means = a.means.iter().chain(b.means);
        let scale = means.fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let mean = a.means.iter().map(|x| x / scale).sum::<f64>() / a.means.len() as f64;
        let [(v_a, k_a, n_a), (v_b, k_b, n_b)] = [a.moments(scale)?, b.moments(scale)?];
        let standard_error = (v_a + v_b).sqrt();
        // It is no number where all is 0.
        if standard_error.is_nan() || standard_error <= slack {
            return None;
        }
        let degrees = n_a.min(n_b) - 1;
        let student = StudentsT::new(0.0, 1.0, degrees as f64).ok()?;
        let t = mean / standard_error;
        let skewness = (k_a + k_b) / standard_error.powi(3);
        let hall = transformed(t, skewness);
        let quantile = student.inverse_cdf(0.5 + level / 2.0);
        let end = |z: f64| {
            let plain = mean - standard_error * z;
            let hall = mean - standard_error * back(z, skewness);
            [plain, hall]
        };
        let [lower, upper] = [end(quantile), end(-quantile)];
        Some(Self {
            mean: scale * mean,
            standard_error: scale * standard_error,
            t,
            skewness,
            degrees,
            p_negative: student.cdf(t).max(student.cdf(hall)),
            p_positive: student.sf(t).max(student.sf(hall)),
            interval: [
                scale * lower[0].min(lower[1]),
                scale * upper[0].max(upper[1]),
            ],
        })
    }

    /// The test of `cross`, `[first, others]` row-major.
    pub(crate) fn of_pairs(
        cross: &[f64],
        clusters: [&[usize]; 2],
        level: f64,
        slack: f64,
    ) -> Option<Self> {
        let [rows, columns] = margins(cross, clusters.map(<[usize]>::len))?;
        let side = |means, clusters| Side { means, clusters };
        let sides = [
            side(&rows[..], clusters[0]),
            side(&columns[..], clusters[1]),
        ];
        Self::new(sides, level, slack)
    }
}

/// Means of the rows and of the columns of `cross`; `None` where it is empty.
pub(crate) fn margins(cross: &[f64], [first, others]: [usize; 2]) -> Option<[Vec<f64>; 2]> {
    if first == 0 || others == 0 {
        return None;
    }
    let rows = cross.chunks_exact(others);
    let rows = rows.map(|row| row.iter().sum::<f64>() / others as f64);
    let mut columns = vec![0.0; others];
    for row in cross.chunks_exact(others) {
        columns.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    columns.iter_mut().for_each(|sum| *sum /= first as f64);
    Some([rows.collect(), columns])
}

impl Side<'_> {
    /// This side's part of the variance and of the third moment of the mean, in units of `scale`, and
    /// how many clusters there are.
    fn moments(&self, scale: f64) -> Option<(f64, f64, usize)> {
        let count = self.clusters.iter().max().map_or(0, |last| last + 1);
        if count < 2 {
            return None;
        }
        let n = self.means.len() as f64;
        let mean = self.means.iter().map(|x| x / scale).sum::<f64>() / n;
        let mut sums = vec![0.0; count];
        for (x, &cluster) in self.means.iter().zip(self.clusters) {
            sums[cluster] += (x / scale - mean) / n;
        }
        let power = |k| sums.iter().map(|u: &f64| u.powi(k)).sum::<f64>();
        let g = count as f64;
        let third = match count {
            2 => 0.0,
            _ => g * g / ((g - 1.0) * (g - 2.0)) * power(3),
        };
        Some((g / (g - 1.0) * power(2), third, count))
    }
}

/// Hall's transformation of a studentized mean of this skewness: it grows with t, and is about normal.
fn transformed(t: f64, skewness: f64) -> f64 {
    let g = skewness;
    t + g / 3.0 * t * t + g * g / 27.0 * t.powi(3) + g / 6.0
}

/// The t that is transformed into `z`.
fn back(z: f64, skewness: f64) -> f64 {
    let g = skewness;
    if g.abs() < 1e-9 {
        return z;
    }
    3.0 / g * ((1.0 + g * (z - g / 6.0)).cbrt() - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(cross: &[f64], clusters: [&[usize]; 2]) -> Option<SignTest> {
        SignTest::of_pairs(cross, clusters, 0.95, 1e-12)
    }

    /// numpy and scipy: row and column means of a 4 × 3 block, `t.cdf(t, 2)`.
    #[test]
    fn numbers_are_those_of_the_definition() {
        let cross: Vec<f64> = (0..12)
            .map(|k| ((k * k * 7 + 3 * k) % 11) as f64 / 11.0 - 0.3)
            .collect();
        let found = test(&cross, [&[0, 1, 2, 3], &[0, 1, 2]]).expect("a test");
        let rows: Vec<f64> = cross
            .chunks(3)
            .map(|r| r.iter().sum::<f64>() / 3.0)
            .collect();
        let mean = rows.iter().sum::<f64>() / 4.0;
        let column = |j: usize| (0..4).map(|i| cross[3 * i + j]).sum::<f64>() / 4.0;
        let square = |x: f64| (x - mean).powi(2);
        let v_rows = rows.iter().map(|&r| square(r)).sum::<f64>() / 3.0 / 4.0;
        let v_columns = (0..3).map(|j| square(column(j))).sum::<f64>() / 2.0 / 3.0;
        assert!((found.mean - mean).abs() < 1e-15);
        assert!((found.standard_error.powi(2) - v_rows - v_columns).abs() < 1e-15);
        assert_eq!(found.degrees, 2);
        // Student's t with two degrees of freedom in closed form.
        let t = found.t;
        let plain = 0.5 + t / (2.0 * (2.0 + t * t).sqrt());
        assert!(found.p_negative >= plain - 1e-12 && found.p_positive >= 1.0 - plain - 1e-12);
        let [low, high] = found.interval;
        let half = 4.302_652_729_7 * found.standard_error;
        assert!(low <= mean - half + 1e-9 && high >= mean + half - 1e-9);
    }

    #[test]
    fn the_transformation_and_its_inverse_agree() {
        for skewness in [-0.8, -0.1, 0.0, 1e-4, 0.3, 1.2] {
            for z in [-2.5, -0.4, 0.0, 1.0, 3.0] {
                let t = back(z, skewness);
                assert!(
                    (transformed(t, skewness) - z).abs() < 1e-6,
                    "{skewness} {z}"
                );
            }
        }
    }

    /// Samples that come four times in one cluster say as much as once.
    #[test]
    fn copies_in_clusters_change_nothing() {
        let once: Vec<f64> = (0..30)
            .map(|k| ((k * 37 + 11) % 29) as f64 - 20.0)
            .collect();
        let (a, b): (Vec<usize>, Vec<usize>) = ((0..6).collect(), (0..5).collect());
        let expected = test(&once, [&a, &b]).expect("a test");
        let often: Vec<f64> = (0..24 * 20)
            .map(|k| once[(k / 20 / 4) * 5 + (k % 20) / 4])
            .collect();
        let clusters = |n: usize| (0..n).map(|i| i / 4).collect::<Vec<usize>>();
        let found = test(&often, [&clusters(24), &clusters(20)]).expect("a test");
        assert_eq!(found.degrees, expected.degrees);
        for (x, y) in [
            (found.t, expected.t),
            (found.p_negative, expected.p_negative),
        ] {
            assert!((x - y).abs() < 1e-10, "{x} {y}");
        }
        // As if independent, they would say twice as much.
        let all = |n: usize| (0..n).collect::<Vec<usize>>();
        let naive = test(&often, [&all(24), &all(20)]).expect("a test");
        assert!(naive.t.abs() > 1.8 * found.t.abs());
    }

    #[test]
    fn what_does_not_vary_has_no_test() {
        assert!(test(&[1.0; 12], [&[0, 1, 2], &[0, 1, 2, 3]]).is_none());
        assert!(test(&[1.0, 2.0], [&[0], &[0, 1]]).is_none());
        assert!(test(&[1.0, 2.0, 3.0, 4.0], [&[0, 0], &[0, 1]]).is_none());
        assert!(test(&[], [&[], &[]]).is_none());
    }
}
