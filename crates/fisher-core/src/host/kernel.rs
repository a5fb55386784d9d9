//! Contributions of gradients that are products, on the host: multiplied, squared, reduced and
//! accumulated while they are in registers, so that no gradient is ever written to memory.

use std::ops::Range;

use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

use super::block::{LANES, SidesOfBlock, block};
use super::packed::Packed;
use super::panels::{Lanes, R};
use super::product::{Moments, Product, SideSums, Sides};

impl Product {
    /// Fold the squares of the gradients into their elements' moments, if these are wanted, and
    /// sum them over the sides.
    ///
    /// Squares of elements are summed in float32 over few samples, then in float64; sums over the
    /// sides are float32 along the side. With one position a sample, M2 comes from sums of fourth
    /// powers, but where contributions hardly vary.
    ///
    /// Columns are scaled, samples are not: where all that a column has is 1e-19 of its largest
    /// value in another sample, or 1e-10 for M2, it may read 0.
    pub(crate) fn fold(self, moments: Option<Moments>, sides: Sides) -> SideSums {
        // As many columns at a time as two vectors have: the sums then fit the registers.
        match AutoArch::new().dispatch(Lanes) {
            16 => self.fold_in::<32>(moments, sides),
            _ => self.fold_in::<16>(moments, sides),
        }
    }

    fn fold_in<const C: usize>(self, moments: Option<Moments>, sides: Sides) -> SideSums {
        if self.positions > 1 {
            return Packed::<C>::new(&self).fold(moments, sides);
        }
        if let Some(moments) = moments {
            Packed::<C>::new(&self).fold_squares(moments);
        }
        self.side_sums(sides)
    }
}

impl<const C: usize> Packed<C> {
    fn fold(self, moments: Option<Moments>, sides: Sides) -> SideSums {
        let shares = self.shares(moments);
        let work = |(blocks, moments)| {
            let share = Share {
                product: &self,
                blocks,
                moments,
                sides,
            };
            AutoArch::new().dispatch(share)
        };
        let parts: Vec<Part> = shares.into_par_iter().map(work).collect();
        let length = |wanted, side| if wanted { self.samples * side } else { 0 };
        let mut sums = SideSums {
            rows: vec![0.0; length(sides.rows, self.rows)],
            columns: vec![0.0; length(sides.columns, self.columns)],
        };
        for part in parts {
            let rows = part.first_row..self.rows;
            for (row, of_samples) in rows.zip(part.rows.chunks(self.samples)) {
                let scale = (self.left.scales[row] * self.right.largest).powi(2);
                for (sample, lanes) in of_samples.iter().enumerate() {
                    let sum: f64 = lanes.iter().map(|&lane| f64::from(lane)).sum();
                    sums.rows[sample * self.rows + row] = sum * scale;
                }
            }
            let columns = sums.columns.iter_mut().zip(&part.columns);
            columns.for_each(|(sum, part)| *sum += part);
        }
        for of_sample in sums.columns.chunks_mut(self.columns) {
            for (sum, scale) in of_sample.iter_mut().zip(&self.right.scales) {
                *sum *= (self.left.largest * scale).powi(2);
            }
        }
        sums
    }
}

/// Sums of a share over the sides: over columns divided by the square of the row's scale and of the
/// largest of columns, over rows likewise.
struct Part {
    first_row: usize,
    /// `[rows, samples]`, as partial sums.
    rows: Vec<[f32; LANES]>,
    /// `[samples, columns]`
    columns: Vec<f64>,
}

/// Some blocks of rows.
struct Share<'a, const C: usize> {
    product: &'a Packed<C>,
    blocks: Range<usize>,
    moments: Option<Moments<'a>>,
    sides: Sides,
}

impl<const C: usize> WithSimd for Share<'_, C> {
    type Output = Part;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) -> Part {
        let product = self.product;
        let samples = product.samples;
        let rows = if self.sides.rows {
            self.blocks.len() * R * samples
        } else {
            0
        };
        let columns = if self.sides.columns {
            samples * product.columns
        } else {
            0
        };
        let mut part = Part {
            first_row: self.blocks.start * R,
            rows: vec![[0.0; LANES]; rows],
            columns: vec![0.0; columns],
        };
        let (of_left, of_right) = (product.left.largest, product.right.largest);
        let mut of_columns = vec![[0.0f32; C]; samples];
        for right in 0..product.right.blocks() {
            let right_weights = product.right.weights(right, of_right);
            for left in self.blocks.clone() {
                let left_weights = product.left.weights(left, of_left);
                let local = left - self.blocks.start;
                let of_rows = if self.sides.rows {
                    &mut part.rows[local * R * samples..][..R * samples]
                } else {
                    &mut []
                };
                let side = SidesOfBlock {
                    rows: of_rows,
                    columns: if self.sides.columns {
                        &mut of_columns
                    } else {
                        &mut []
                    },
                    left: left_weights,
                    right: right_weights,
                };
                block(
                    product,
                    [left, right],
                    part.first_row,
                    self.moments.as_mut(),
                    side,
                );
            }
            if self.sides.columns {
                let width = C.min(product.columns - right * C);
                for (sample, sums) in of_columns.iter_mut().enumerate() {
                    let start = sample * product.columns + right * C;
                    let cells = part.columns[start..start + width].iter_mut();
                    cells
                        .zip(&*sums)
                        .for_each(|(cell, &sum)| *cell = f64::from(sum));
                    *sums = [0.0; C];
                }
            }
        }
        part
    }
}
