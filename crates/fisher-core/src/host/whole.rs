//! Contributions of gradients that are written out, on the host: squared, summed over their sides and
//! accumulated in one pass.

use std::ops::Range;

use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

use super::product::{Moments, SideSums, Sides};
use super::shares::shares;
use super::vectors::sum;
use crate::pieces::pieces;

/// Contributions that are held at a time: they stay in the nearest caches.
const CELLS: usize = 1 << 13;

/// Elements that one thread may have.
const ROW: usize = 1 << 16;

/// Gradients of a parameter `[rows, columns]`.
pub(crate) struct Whole<'a> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// `[samples, rows, columns]`
    pub(crate) gradients: &'a [f32],
    /// What each sample's gradients are multiplied by before they are squared.
    pub(crate) roots: &'a [f64],
}

impl Whole<'_> {
    /// Fold the squares into their elements' moments, if these are wanted, and sum them over the sides;
    /// all in float64.
    pub(crate) fn fold(&self, moments: Option<Moments>, sides: Sides) -> SideSums {
        if self.columns == 1 && (2..=ROW).contains(&self.rows) {
            return self.lying().fold(moments, sides.swapped()).swapped();
        }
        let shares = shares(self.rows, self.columns, moments);
        let work = |(rows, moments): (Range<usize>, _)| {
            let share = Share {
                gradients: self,
                rows: rows.clone(),
                moments,
                sides,
            };
            (rows, AutoArch::new().dispatch(share))
        };
        let parts: Vec<(Range<usize>, SideSums)> = shares.into_par_iter().map(work).collect();
        let samples = self.roots.len();
        let length = |wanted, side| if wanted { samples * side } else { 0 };
        let mut sums = SideSums {
            rows: vec![0.0; length(sides.rows, self.rows)],
            columns: vec![0.0; length(sides.columns, self.columns)],
        };
        for (rows, part) in parts {
            let of_samples = sums.rows.chunks_mut(self.rows);
            for (sums, part) in of_samples.zip(part.rows.chunks(rows.len())) {
                sums[rows.clone()].copy_from_slice(part);
            }
            let columns = sums.columns.iter_mut().zip(&part.columns);
            columns.for_each(|(sum, part)| *sum += part);
        }
        sums
    }

    /// A column, such as a bias is, as a row, whose elements lie side by side.
    fn lying(&self) -> Whole<'_> {
        Whole {
            rows: self.columns,
            columns: self.rows,
            ..*self
        }
    }
}

/// Some rows.
struct Share<'a> {
    gradients: &'a Whole<'a>,
    rows: Range<usize>,
    moments: Option<Moments<'a>>,
    sides: Sides,
}

impl WithSimd for Share<'_> {
    /// `[samples, rows of the share]` and `[samples, columns]`
    type Output = SideSums;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) -> SideSums {
        let Whole {
            rows,
            columns,
            gradients,
            roots,
        } = *self.gradients;
        let (samples, height) = (roots.len(), self.rows.len());
        let length = |wanted, side| if wanted { samples * side } else { 0 };
        let mut sums = SideSums {
            rows: vec![0.0; length(self.sides.rows, height)],
            columns: vec![0.0; length(self.sides.columns, columns)],
        };
        let step = (CELLS / samples).clamp(1, columns.max(1));
        let mut cells = vec![0.0; samples * step];
        let mut of_batch = [vec![0.0; step], vec![0.0; step]];
        for (local, row) in self.rows.clone().enumerate() {
            for piece in pieces(columns, step) {
                let cells = &mut cells[..samples * piece.len()];
                for (sample, cells) in cells.chunks_exact_mut(piece.len()).enumerate() {
                    let start = (sample * rows + row) * columns;
                    let gradients = &gradients[start + piece.start..start + piece.end];
                    let weight = roots[sample] * roots[sample];
                    for (cell, &gradient) in cells.iter_mut().zip(gradients) {
                        *cell = f64::from(gradient) * f64::from(gradient) * weight;
                    }
                    if self.sides.rows {
                        sums.rows[sample * height + local] += sum(cells);
                    }
                    if self.sides.columns {
                        let start = sample * columns;
                        let columns = &mut sums.columns[start + piece.start..start + piece.end];
                        columns.iter_mut().zip(&*cells).for_each(|(s, x)| *s += x);
                    }
                }
                if let Some(moments) = &mut self.moments {
                    let start = local * columns;
                    moments.push(start + piece.start..start + piece.end, cells, &mut of_batch);
                }
            }
        }
        sums
    }
}

impl Moments<'_> {
    /// Take in values of all samples, `[samples, elements of the range]`, by way of their mean and M2.
    #[inline(always)]
    fn push(&mut self, range: Range<usize>, cells: &[f64], [means, m2s]: &mut [Vec<f64>; 2]) {
        let width = range.len();
        let (before, added) = (self.before as f64, (cells.len() / width) as f64);
        let weight = added / (before + added);
        let (means, m2s) = (&mut means[..width], &mut m2s[..width]);
        means.fill(0.0);
        m2s.fill(0.0);
        for cells in cells.chunks_exact(width) {
            means.iter_mut().zip(cells).for_each(|(sum, x)| *sum += x);
        }
        means.iter_mut().for_each(|sum| *sum /= added);
        if let Some(of_m2) = &mut self.m2 {
            for cells in cells.chunks_exact(width) {
                for ((sum, mean), x) in m2s.iter_mut().zip(&*means).zip(cells) {
                    *sum += (x - mean) * (x - mean);
                }
            }
            let ours = self.mean[range.clone()].iter_mut().zip(&*means);
            // Multiplied before it is squared, so that a step whose square alone is out of range counts.
            let share = before * weight;
            for (((mean, theirs), m2), added) in ours.zip(&mut of_m2[range]).zip(m2s) {
                let step = theirs - *mean;
                *m2 += step * share * step + *added;
                *mean += step * weight;
            }
        } else {
            let ours = self.mean[range].iter_mut().zip(&*means);
            ours.for_each(|(mean, theirs)| *mean += (theirs - *mean) * weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that are no two alike, some of them small.
    fn values(length: usize) -> Vec<f32> {
        let value = |k: usize| (k as f32 * 0.7371).sin() * [1.0, 1e-3, 40.0][k % 3];
        (0..length).map(value).collect()
    }

    /// Batches of one, three and seven samples, sides longer than what is held at a time.
    #[test]
    fn moments_and_sums_are_those_of_all_samples_at_once() {
        for [rows, columns] in [[1, 5], [3, 1], [11, 4], [9, 10_000]] {
            let elements = rows * columns;
            let (mut mean, mut m2) = (vec![0.0; elements], vec![0.0; elements]);
            let mut all: Vec<Vec<f64>> = Vec::new();
            let both = Sides {
                rows: true,
                columns: true,
            };
            for samples in [1, 3, 7] {
                let gradients = values((all.len() + samples) * elements);
                let gradients = &gradients[all.len() * elements..];
                let roots: Vec<f64> = (0..samples).map(|k| 0.5 + k as f64).collect();
                let whole = Whole {
                    rows,
                    columns,
                    gradients,
                    roots: &roots,
                };
                let moments = Moments {
                    before: all.len() as u64,
                    mean: &mut mean,
                    m2: Some(&mut m2),
                };
                let sums = whole.fold(Some(moments), both);
                for (sample, root) in gradients.chunks(elements).zip(&roots) {
                    let square = |g: &f32| (f64::from(*g) * root).powi(2);
                    all.push(sample.iter().map(square).collect());
                }
                let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs();
                let batch = &all[all.len() - samples..];
                for (sample, values) in batch.iter().enumerate() {
                    for row in 0..rows {
                        let sum: f64 = values[row * columns..(row + 1) * columns].iter().sum();
                        assert!(near(sums.rows[sample * rows + row], sum));
                    }
                    for column in 0..columns {
                        let sum: f64 = values.iter().skip(column).step_by(columns).sum();
                        assert!(near(sums.columns[sample * columns + column], sum));
                    }
                }
            }
            let n = all.len() as f64;
            for at in 0..elements {
                let own = all.iter().map(|values| values[at]).sum::<f64>() / n;
                let squares: f64 = all.iter().map(|values| (values[at] - own).powi(2)).sum();
                assert!((mean[at] - own).abs() <= 1e-12 * own);
                assert!((m2[at] - squares).abs() <= 1e-11 * squares + 1e-14 * own * own);
            }
        }
    }
}
