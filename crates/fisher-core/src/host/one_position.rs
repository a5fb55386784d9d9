//! Squares of products that have one position a sample: these are products of squares.

use std::ops::Range;

use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

use super::block::{SidesOfBlock, block};
use super::packed::Packed;
use super::panels::{Cells, R, gradient, not_negative, widen};
use super::product::{Moments, Product, SideSums, Sides};

/// Samples whose squares are summed in float32 before they go to float64, where each has one position.
const LONG_BURST: usize = 64;
/// A variance of less than this share of the squared mean is not had from sums of fourth powers.
const CANCELLED: f64 = 1e-2;

impl Product {
    /// `l_i² Σ r_i²` and `r_i² Σ l_i²`, for one position a sample.
    pub(super) fn side_sums(&self, sides: Sides) -> SideSums {
        let mut sums = SideSums::default();
        let square = |x: &f32| f64::from(*x) * f64::from(*x);
        let samples = self
            .left
            .chunks_exact(self.rows)
            .zip(self.right.chunks_exact(self.columns));
        for ((left, right), root) in samples.zip(&self.roots) {
            let weight = square(root);
            if sides.rows {
                let total = right.iter().map(square).sum::<f64>() * weight;
                sums.rows.extend(left.iter().map(|l| square(l) * total));
            }
            if sides.columns {
                let total = left.iter().map(square).sum::<f64>() * weight;
                sums.columns.extend(right.iter().map(|r| square(r) * total));
            }
        }
        sums
    }
}

impl<const C: usize> Packed<C> {
    /// One position a sample: `C_i = l_i² r_i²`, and a sum of those over samples is a product.
    pub(super) fn fold_squares(self, moments: Moments) {
        let squared = Self {
            left: self.left.squared(),
            right: self.right.squared(),
            ..self
        };
        let fourth = moments.m2.is_some().then(|| Self {
            left: squared.left.squared(),
            right: squared.right.squared(),
            ..squared
        });
        let shares = squared.shares(Some(moments));
        let work = |(blocks, moments)| {
            let share = SquaresShare {
                product: &self,
                squares: &squared,
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
    product: &'a Packed<C>,
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
                if cancelled && self.fourth.is_some() {
                    let at = [left, right];
                    let nowhere = SidesOfBlock {
                        rows: &mut [],
                        columns: &mut [],
                        left: [0.0; R],
                        right: [0.0; C],
                    };
                    block(self.product, at, first_row, Some(&mut moments), nowhere);
                    continue;
                }
                // The scales are those of squares already.
                squares.merge([left, right], first_row, &mut moments, &means, &m2s, 1);
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
