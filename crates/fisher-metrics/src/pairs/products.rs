//! Products between the gradients of samples, over slices of the model.
//!
//! Each slice's share of a tile is gathered, weighed by the caller, and multiplied on the device.
//! Memory is bounded by the tile and by one `[rows, rows]` matrix a slice.

use std::borrow::Cow;

use burn::tensor::{DType, Device, Element, Tensor, TensorData};
use fisher_core::read;

use super::rows::{Piece, Rows, for_each_piece};
use super::slices::Slice;
use crate::error::Result;

/// A type products are computed in.
pub(crate) trait Real: Element + Copy + Default {
    const DTYPE: DType;

    fn of(x: f64) -> Self;
}

impl Real for f32 {
    const DTYPE: DType = DType::F32;

    fn of(x: f64) -> Self {
        x as Self
    }
}

impl Real for f64 {
    const DTYPE: DType = DType::F64;

    fn of(x: f64) -> Self {
        x
    }
}

/// How one side of a product is weighed: slice, row, where the run begins in the slice, its
/// gradients, and where the weighed values go.
pub(crate) trait Weigh: Fn(usize, usize, usize, &[f32], &mut [f64]) {}
impl<F: Fn(usize, usize, usize, &[f32], &mut [f64])> Weigh for F {}

/// `Σ_k left_ik right_jk` over the elements of every slice: `[left rows, right rows]`, row-major.
/// Sides are weighed in float64 and multiplied in `T`.
pub(crate) fn products<T: Real>(
    slices: &[Slice],
    (left, weigh_left): (&Rows, impl Weigh),
    (right, weigh_right): (&Rows, impl Weigh),
    device: &Device,
    bytes: usize,
) -> Result<Vec<Vec<f64>>> {
    let size = left.len() * right.len();
    let mut sums = vec![vec![0.0; size]; slices.len()];
    for_each_piece(slices, &[left, right], bytes, |piece, read| {
        let left = Side::of::<T>(piece, &read[0], &weigh_left, device);
        let right = Side::of::<T>(piece, &read[1], &weigh_right, device);
        add(&mut sums[piece.slice], &left, &right)
    })?;
    Ok(sums)
}

/// [`products`] of rows with themselves.
pub(crate) fn gram<T: Real>(
    slices: &[Slice],
    rows: &Rows,
    weigh: impl Weigh,
    device: &Device,
    bytes: usize,
) -> Result<Vec<Vec<f64>>> {
    let mut sums = vec![vec![0.0; rows.len() * rows.len()]; slices.len()];
    for_each_piece(slices, &[rows], bytes, |piece, read| {
        let side = Side::of::<T>(piece, &read[0], &weigh, device);
        add(&mut sums[piece.slice], &side, &side)
    })?;
    Ok(sums)
}

/// One side of a product. Every row is divided by a power of two near its largest element, which is
/// exact, so that no element is too large for float32 and none too small that counts.
struct Side {
    rows: Tensor<2>,
    scales: Vec<f64>,
}

impl Side {
    fn of<T: Real>(
        piece: &Piece,
        rows: &[Cow<[f32]>],
        weigh: &impl Weigh,
        device: &Device,
    ) -> Self {
        let mut values = vec![T::default(); rows.len() * piece.elements];
        let mut weighed = vec![0.0; piece.elements];
        let mut scales = Vec::with_capacity(rows.len());
        let into = values.chunks_exact_mut(piece.elements);
        for (row, (values, into)) in rows.iter().zip(into).enumerate() {
            let mut rest = &mut weighed[..];
            for &(start, at, length) in &piece.spans {
                let (run, others) = rest.split_at_mut(length);
                weigh(piece.slice, row, at, &values[start..start + length], run);
                rest = others;
            }
            let scale = power_of_two(&weighed);
            let factor = scale.recip();
            let terms = into.iter_mut().zip(&weighed);
            terms.for_each(|(into, x)| *into = T::of(x * factor));
            scales.push(scale);
        }
        let data = TensorData::new(values, [rows.len(), piece.elements]);
        Self {
            rows: Tensor::from_data(data, (device, T::DTYPE)),
            scales,
        }
    }
}

/// The power of two at or below the largest element; 1 where there is none.
fn power_of_two(values: &[f64]) -> f64 {
    // Eight at a time, which the compiler turns into vectors.
    let mut largest = [0.0f64; 8];
    for run in values.chunks(8) {
        for (largest, x) in largest.iter_mut().zip(run) {
            *largest = if x.abs() > *largest {
                x.abs()
            } else {
                *largest
            };
        }
    }
    let largest = largest.into_iter().fold(0.0, f64::max);
    if largest.is_normal() {
        // Its exponent without its digits.
        f64::from_bits(largest.to_bits() & f64::INFINITY.to_bits())
    } else {
        1.0
    }
}

fn add(sums: &mut [f64], left: &Side, right: &Side) -> Result<()> {
    let product = left.rows.clone().matmul(right.rows.clone().transpose());
    let mut terms = read(product)?.into_iter();
    for (sums, x) in sums.chunks_mut(right.scales.len().max(1)).zip(&left.scales) {
        // `zip` asks its left side first: no term is lost.
        for ((sum, y), term) in sums.iter_mut().zip(&right.scales).zip(&mut terms) {
            *sum += term * x * y;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_of_two_is_found() {
        let of = |x: f64| power_of_two(&[0.0, 1e-300, -x, f64::MIN_POSITIVE]);
        for (x, expected) in [(1.0, 1.0), (3.9, 2.0), (0.3, 0.25), (1e200, 2f64.powi(664))] {
            assert_eq!(of(x), expected, "{x}");
        }
        assert_eq!(power_of_two(&[0.0; 11]), 1.0);
        assert_eq!(power_of_two(&[]), 1.0);
    }
}
