//! One side of a product in the order the kernels read it, and what they do with a piece of it.

use macerator::{Simd, WithSimd};
use rayon::prelude::*;

/// The number of float32 in a vector of this machine.
pub(super) struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> usize {
        S::lanes32()
    }
}

/// Rows that are worked on at a time.
pub(super) const R: usize = 6;
/// Columns that are worked on at a time, at most.
pub(super) const LARGEST_BLOCK: usize = 32;

/// One side of a product in the order it is read: blocks of `W` columns, each `[length, W]`.
///
/// Every column is divided by a power of two close to its largest value, so that squares and their
/// squares stay in float32's range whatever the scale of layer and loss.
pub(super) struct Panels<const W: usize> {
    values: Vec<[f32; W]>,
    length: usize,
    /// Of every column, and of padding.
    pub(super) scales: Vec<f64>,
    pub(super) largest: f64,
}

/// Columns that are packed at a time: a few cache lines of every row.
const STRIPE: usize = 96;

impl<const W: usize> Panels<W> {
    /// `factors` are of samples, which are equal stretches of `values`.
    pub(super) fn new(values: &[f32], side: usize, factors: &[f32]) -> Self {
        Self::of(values, side, factors, |value| value)
    }

    /// The same of squares.
    pub(super) fn of_squares(values: &[f32], side: usize, factors: &[f32]) -> Self {
        let panels = Self::of(values, side, factors, |value| value * value);
        Self {
            scales: panels.scales.iter().map(|scale| scale * scale).collect(),
            largest: panels.largest * panels.largest,
            ..panels
        }
    }

    fn of(values: &[f32], side: usize, factors: &[f32], turn: impl Fn(f32) -> f32 + Sync) -> Self {
        let length = values.len() / side;
        let positions = length / factors.len();
        let blocks = side.div_ceil(W);
        let mut panels = vec![[0.0; W]; blocks * length];
        let mut scales = vec![0.0f32; blocks * W];
        let of_stripe = STRIPE.div_ceil(W);
        let fill = |(stripe, (panels, scales)): (usize, (&mut [[f32; W]], &mut [f32]))| {
            let start = stripe * of_stripe * W;
            let columns = start..side.min(start + of_stripe * W);
            let rows = || values.chunks_exact(side).map(|row| &row[columns.clone()]);
            for row in rows() {
                for (largest, value) in scales.iter_mut().zip(row) {
                    // Unlike `max`, this takes a vector instruction.
                    let value = value.abs();
                    *largest = if value > *largest { value } else { *largest };
                }
            }
            let mut inverses = [0.0; STRIPE + LARGEST_BLOCK];
            for (inverse, scale) in inverses.iter_mut().zip(scales) {
                *scale = power_of_two(*scale);
                *inverse = scale.recip();
            }
            for (at, row) in rows().enumerate() {
                let factor = factors[at / positions];
                let blocks = row.chunks(W).zip(inverses.chunks(W)).enumerate();
                for (block, (row, inverses)) in blocks {
                    let cells = panels[block * length + at].iter_mut();
                    for ((cell, value), inverse) in cells.zip(row).zip(inverses) {
                        *cell = turn(value * inverse * factor);
                    }
                }
            }
        };
        let stripes = panels.par_chunks_mut((of_stripe * length).max(1));
        let stripes = stripes.zip(scales.par_chunks_mut(of_stripe * W));
        stripes.enumerate().for_each(fill);
        Self {
            values: panels,
            length,
            largest: scales.iter().copied().fold(0.0, f32::max).into(),
            scales: scales.into_iter().map(f64::from).collect(),
        }
    }

    #[inline(always)]
    pub(super) fn block(&self, block: usize) -> &[[f32; W]] {
        &self.values[block * self.length..(block + 1) * self.length]
    }

    pub(super) fn blocks(&self) -> usize {
        self.scales.len() / W
    }

    /// Squares of a block's scales, as shares of the largest.
    pub(super) fn weights(&self, block: usize, largest: f64) -> [f32; W] {
        let mut weights = [0.0; W];
        for (weight, scale) in weights.iter_mut().zip(&self.scales[block * W..]) {
            *weight = (scale / largest).powi(2) as f32;
        }
        weights
    }

    /// Values squared, for sums of squares over samples as products.
    pub(super) fn squared(&self) -> Self {
        let square = |row: &[f32; W]| row.map(|value| value * value);
        Self {
            values: self.values.par_iter().map(square).collect(),
            length: self.length,
            scales: self.scales.iter().map(|scale| scale * scale).collect(),
            largest: self.largest * self.largest,
        }
    }
}

/// The power of two at or below `x`, or the smallest scale there is: a column of zeros must not
/// count as a large one.
pub(super) fn power_of_two(x: f32) -> f32 {
    let power = f32::from_bits(x.to_bits() & 0xff80_0000);
    if power.is_finite() {
        power.clamp(SMALLEST, SMALLEST.recip())
    } else {
        1.0
    }
}

pub(super) const SMALLEST: f32 = f32::from_bits(27 << 23); // 2⁻¹⁰⁰

/// `x`, or 0 where rounding left less; NaN stays NaN, which `f64::max` would hide.
#[inline]
pub(super) fn not_negative(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// Of `R` rows and `C` columns.
pub(super) type Cells<T, const C: usize> = [[T; C]; R];

/// One gradient's elements at `R` rows and `C` columns.
#[inline(always)]
pub(super) fn gradient<const C: usize>(left: &[[f32; R]], right: &[[f32; C]]) -> Cells<f32, C> {
    let mut sums = [[0.0f32; C]; R];
    for (left, right) in left.iter().zip(right) {
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = left[r].mul_add(right[c], sums[r][c]);
            }
        }
    }
    sums
}

#[inline(always)]
pub(super) fn widen<const C: usize>(sums: &mut Cells<f64, C>, burst: &mut Cells<f32, C>) {
    for r in 0..R {
        for c in 0..C {
            sums[r][c] += f64::from(burst[r][c]);
        }
    }
    *burst = [[0.0; C]; R];
}
