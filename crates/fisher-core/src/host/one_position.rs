//! Squares of products that have one position a sample: these are products of squares.

use std::ops::Range;

use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

use super::block::{SidesOfBlock, block};
use super::packed::Packed;
use super::panels::{Cells, R, gradient, not_negative, widen};
use super::product::{Moments, Product, SideSums, Sides};
use super::vectors::sum_of_squares;

/// Samples whose squares are summed in float32 before they go to float64, where each has one position.
const LONG_BURST: usize = 64;
/// A variance of less than this share of the squared mean is not had from sums of fourth powers.
const CANCELLED: f64 = 1e-2;

/// Samples whose sides are summed at a time.
const SAMPLES: usize = 16;

impl Product {
    /// `l_i² Σ r_i²` and `r_i² Σ l_i²`, for one position a sample.
    pub(super) fn side_sums(&self, sides: Sides) -> SideSums {
        let over = |wanted: bool, values: &[f32], side: usize, others: &[f32], across: usize| {
            if !wanted {
                return Vec::new();
            }
            let mut sums = vec![0.0; self.samples * side];
            let of_samples = sums.par_chunks_mut(SAMPLES * side).enumerate();
            of_samples.for_each(|(at, sums)| {
                let share = SumsOfSamples {
                    values: &values[at * SAMPLES * side..],
                    others: &others[at * SAMPLES * across..],
                    roots: &self.roots[at * SAMPLES..],
                    sums,
                    side,
                    across,
                };
                AutoArch::new().dispatch(share);
            });
            sums
        };
        let (rows, columns) = (self.rows, self.columns);
        SideSums {
            rows: over(sides.rows, &self.left, rows, &self.right, columns),
            columns: over(sides.columns, &self.right, columns, &self.left, rows),
        }
    }
}

/// Some samples, one after the other.
struct SumsOfSamples<'a> {
    values: &'a [f32],
    others: &'a [f32],
    roots: &'a [f32],
    /// Of the values.
    sums: &'a mut [f64],
    side: usize,
    across: usize,
}

impl WithSimd for SumsOfSamples<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let square = |x: &f32| f64::from(*x) * f64::from(*x);
        let values = self.values.chunks_exact(self.side);
        let samples = values.zip(self.others.chunks_exact(self.across));
        let samples = samples.zip(self.sums.chunks_exact_mut(self.side));
        for (((values, others), sums), root) in samples.zip(self.roots) {
            let weight = sum_of_squares(others) * square(root);
            let sums = sums.iter_mut().zip(values);
            sums.for_each(|(sum, value)| *sum = square(value) * weight);
        }
    }
}

impl<const C: usize> Packed<C> {
    /// One position a sample: `C_i = l_i² r_i²`, and a sum of those over samples is a product.
    pub(super) fn fold_squares(self, moments: Moments) {
        // Of a single sample there is no M2.
        let fourth = (moments.m2.is_some() && self.samples > 1).then(|| {
            let (left, right) = rayon::join(|| self.left.squared(), || self.right.squared());
            Self {
                left,
                right,
                ..self
            }
        });
        let shares = self.shares(Some(moments));
        let work = |(blocks, moments)| {
            let share = SquaresShare {
                squares: &self,
                fourth: fourth.as_ref(),
                blocks,
                moments,
            };
            AutoArch::new().dispatch(share)
        };
        shares.into_par_iter().for_each(work);
    }
}

/// Some blocks of rows, where a sample has one position.
struct SquaresShare<'a, const C: usize> {
    squares: &'a Packed<C>,
    fourth: Option<&'a Packed<C>>,
    blocks: Range<usize>,
    moments: Option<Moments<'a>>,
}

impl<const C: usize> WithSimd for SquaresShare<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Some(mut moments) = self.moments else {
            return;
        };
        let squares = self.squares;
        let added = squares.samples as f64;
        let first_row = self.blocks.start * R;
        for right in 0..squares.right.blocks() {
            for left in self.blocks.clone() {
                let mut means = over_samples(squares, left, right);
                let mut m2s = match self.fourth {
                    Some(fourth) => over_samples(fourth, left, right),
                    None => [[0.0; C]; R],
                };
                let mut cancelled = false;
                for r in 0..R {
                    for c in 0..C {
                        let mean = means[r][c] / added;
                        let m2 = m2s[r][c] - added * mean * mean;
                        cancelled |= m2 < CANCELLED * added * mean * mean;
                        m2s[r][c] = not_negative(m2);
                        means[r][c] = mean;
                    }
                }
                let at = [left, right];
                if cancelled && self.fourth.is_some() {
                    let nowhere = SidesOfBlock {
                        rows: &mut [],
                        columns: &mut [],
                        left: [0.0; R],
                        right: [0.0; C],
                    };
                    block(squares, at, first_row, Some(&mut moments), nowhere);
                    continue;
                }
                squares.merge(at, first_row, &mut moments, &means, &m2s);
            }
        }
    }
}

/// `Σ_i l_i r_i`, in float32 over few samples.
#[inline(always)]
fn over_samples<const C: usize>(product: &Packed<C>, left: usize, right: usize) -> Cells<f64, C> {
    let (left, right) = (product.left.block(left), product.right.block(right));
    let mut sums = [[0.0f64; C]; R];
    for (left, right) in left.chunks(LONG_BURST).zip(right.chunks(LONG_BURST)) {
        widen(&mut sums, &mut gradient(left, right));
    }
    sums
}
