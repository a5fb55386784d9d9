//! A product made ready for the kernels, and its share of the accumulators.

use std::ops::Range;

use super::panels::{Cells, Panels, R};
use super::product::{Moments, Product};
use super::shares::shares;

pub(super) struct Packed<const C: usize> {
    pub(super) samples: usize,
    pub(super) positions: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) left: Panels<R>,
    pub(super) right: Panels<C>,
    /// Whether the sides are squared, and with them, having one position a sample, their products.
    pub(super) squared: bool,
}

impl<const C: usize> Packed<C> {
    pub(super) fn new(product: &Product) -> Self {
        let squared = product.positions == 1;
        let ones = vec![1.0; product.samples];
        let [of_left, of_right] = [(product.rows, &ones), (product.columns, &product.roots)];
        let (left, right) = if squared {
            rayon::join(
                || Panels::of_squares(&product.left, of_left.0, of_left.1),
                || Panels::of_squares(&product.right, of_right.0, of_right.1),
            )
        } else {
            rayon::join(
                || Panels::new(&product.left, of_left.0, of_left.1),
                || Panels::new(&product.right, of_right.0, of_right.1),
            )
        };
        Self {
            samples: product.samples,
            positions: product.positions,
            rows: product.rows,
            columns: product.columns,
            left,
            right,
            squared,
        }
    }

    /// Blocks of rows, and the moments of their elements, for one thread after the other.
    pub(super) fn shares<'a>(
        &self,
        moments: Option<Moments<'a>>,
    ) -> Vec<(Range<usize>, Option<Moments<'a>>)> {
        shares(self.left.blocks(), R * self.columns, moments)
    }

    /// Merge what a block's samples come to into the moments of its share: mean and M2 of the
    /// cells, divided by the scales of squares.
    #[inline(always)]
    pub(super) fn merge(
        &self,
        [left, right]: [usize; 2],
        first_row: usize,
        moments: &mut Moments,
        means: &Cells<f64, C>,
        m2s: &Cells<f64, C>,
    ) {
        let power = if self.squared { 1 } else { 2 };
        let (before, added) = (moments.before as f64, self.samples as f64);
        let weight = added / (before + added);
        let width = C.min(self.columns - right * C);
        let mut of_columns = [0.0f64; C];
        for (square, scale) in of_columns.iter_mut().zip(&self.right.scales[right * C..]) {
            *square = scale.powi(power);
        }
        for r in 0..R.min(self.rows - left * R) {
            let of_row = self.left.scales[left * R + r].powi(power);
            let start = (left * R + r - first_row) * self.columns + right * C;
            let row = start..start + width;
            let mut steps = [0.0f64; C];
            let mean = moments.mean[row.clone()].iter_mut();
            for (c, mean) in mean.enumerate() {
                let step = means[r][c] * (of_row * of_columns[c]) - *mean;
                *mean += step * weight;
                steps[c] = step;
            }
            if let Some(m2) = &mut moments.m2 {
                for (c, m2) in m2[row].iter_mut().enumerate() {
                    let square = of_row * of_columns[c];
                    *m2 += m2s[r][c] * square * square + steps[c] * steps[c] * before * weight;
                }
            }
        }
    }
}
