//! Sums of squares over one side of products, from products of positions with positions.

use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

use super::panels::{Lanes, R, SMALLEST, gradient, not_negative, power_of_two};
use super::values::Values;

/// A sum of squares of less than this share of what it can be at most is not had by a ghost.
pub(crate) const GHOST: f64 = 1e-3;
/// One in so many such sums may be had from its gradients; with more, ghosts are not worth it.
pub(crate) const LOST: usize = 8;

/// `Σ_k (Σ_t o_tk i_tc)²` over one side of products, from the other side's products of positions with
/// positions: `i_·cᵀ G i_·c`, with `G = O Oᵀ` of `[samples, positions, positions]` and factors `outer` of
/// `[samples, positions, other side]` and `inner` of `[samples, positions, side]`. `[samples, side]`, not
/// negative; `None` where too few digits are left of too many.
///
/// The sum is a square, so terms that cancel in the gradient are squared in it: it keeps half as many
/// digits as the gradient does. Each sum is judged by itself, since one that is lost is nothing beside
/// the others of its sample; what is lost is computed from the gradient.
pub(crate) fn ghost(
    gram: &[f32],
    factors: &[Values<f32>; 2],
    samples: usize,
    side: usize,
) -> Option<Vec<f64>> {
    match AutoArch::new().dispatch(Lanes) {
        16 => ghost_in::<32>(gram, factors, samples, side),
        _ => ghost_in::<16>(gram, factors, samples, side),
    }
}

fn ghost_in<const C: usize>(
    gram: &[f32],
    [outer, inner]: &[Values<f32>; 2],
    samples: usize,
    side: usize,
) -> Option<Vec<f64>> {
    let positions = inner.len() / (samples * side).max(1);
    let mut sums = vec![0.0; samples * side];
    let outers = outer.par_chunks_exact(outer.len() / samples);
    let grams = gram.par_chunks_exact(positions * positions).zip(outers);
    let samples = grams.zip(inner.par_chunks_exact(positions * side));
    let samples = samples.zip(sums.par_chunks_exact_mut(side));
    let kept = samples.all(|(((gram, outer), inner), sums)| {
        AutoArch::new().dispatch(GhostOfSample::<C> {
            gram,
            outer,
            inner,
            sums,
            positions,
        })
    });
    kept.then_some(sums)
}

struct GhostOfSample<'a, const C: usize> {
    gram: &'a [f32],
    outer: &'a [f32],
    inner: &'a [f32],
    sums: &'a mut [f64],
    positions: usize,
}

impl<const C: usize> WithSimd for GhostOfSample<'_, C> {
    /// Whether enough digits are left.
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> bool {
        let (positions, side) = (self.positions, self.sums.len());
        let norms = self.gram.iter().step_by(positions + 1);
        let largest = norms.clone().copied().fold(0.0f32, f32::max);
        if !(SMALLEST..SMALLEST.recip()).contains(&largest) {
            return false;
        }
        let mut lost = Vec::new();
        // The gram matrix is its own transpose, so rows serve as columns.
        let blocks = positions.div_ceil(R);
        let mut panels = vec![[0.0f32; R]; blocks * positions];
        for (at, row) in self.gram.chunks_exact(positions).enumerate() {
            for (position, value) in row.iter().enumerate() {
                panels[position / R * positions + at][position % R] = *value;
            }
        }
        let mut columns = vec![[0.0f32; C]; positions];
        for start in (0..side).step_by(C) {
            let width = C.min(side - start);
            let mut largest = 0.0f32;
            for (column, row) in columns.iter_mut().zip(self.inner.chunks_exact(side)) {
                let row = &row[start..start + width];
                for (cell, value) in column.iter_mut().zip(row) {
                    *cell = *value;
                    largest = if value.abs() > largest {
                        value.abs()
                    } else {
                        largest
                    };
                }
            }
            let scale = power_of_two(largest);
            for column in &mut columns {
                column.iter_mut().for_each(|cell| *cell /= scale);
            }
            let mut sums = [0.0f32; C];
            for (block, panel) in panels.chunks_exact(positions).enumerate() {
                let products = gradient(panel, &columns);
                let own = columns[block * R..].iter().take(R);
                for (products, own) in products.iter().zip(own) {
                    for c in 0..C {
                        sums[c] = products[c].mul_add(own[c], sums[c]);
                    }
                }
            }
            let mut most = [0.0f32; C];
            for (column, norm) in columns.iter().zip(norms.clone()) {
                for c in 0..C {
                    most[c] = (column[c] * column[c]).mul_add(*norm, most[c]);
                }
            }
            let square = f64::from(scale) * f64::from(scale);
            let into = self.sums[start..start + width].iter_mut();
            for (c, into) in into.enumerate() {
                let sum = not_negative(sums[c].into());
                // NaN is not lost: it stays, for those who can say whose it is.
                if sum < GHOST * positions as f64 * f64::from(most[c]) {
                    lost.push(start + c);
                }
                *into = sum * square;
            }
        }
        if lost.len() > side / LOST {
            return false;
        }
        let mut gradient = vec![0.0f64; self.outer.len() / positions];
        for column in lost {
            gradient.fill(0.0);
            let rows = self.outer.chunks_exact(gradient.len());
            let inner = self.inner.iter().skip(column).step_by(side);
            for (row, inner) in rows.zip(inner) {
                let inner = f64::from(*inner);
                for (sum, outer) in gradient.iter_mut().zip(row) {
                    *sum += inner * f64::from(*outer);
                }
            }
            self.sums[column] = gradient.iter().map(|g| g * g).sum();
        }
        true
    }
}
