//! Vectors in the host's memory: to and from tensors, sums and moments.

use burn::tensor::{DType, Device, Tensor, TensorData};
use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

use super::values::Values;
use crate::error::Result;

/// Whether tensors of `device` can be read and made without a transfer.
pub(crate) fn is_host(device: &Device) -> bool {
    let known = [
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "supported as long as Burn has it")]
        Device::ndarray(),
    ];
    known.contains(device)
}

/// Whether a device is one of CubeCL's.
#[cfg(feature = "cube")]
pub(crate) fn is_cube(device: &Device) -> bool {
    matches!(device.as_dispatch(), burn::backend::DispatchDevice::Cube(_))
}

/// Values as a tensor of the host.
pub(crate) fn give<const D: usize>(
    values: Vec<f64>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F64))
}

/// `g² · root²`, `[samples, elements]`, and its sums over elements, `[samples]`.
pub(crate) fn contributions(gradients: &[f32], roots: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let elements = gradients.len() / roots.len().max(1);
    let mut squares = Vec::with_capacity(gradients.len());
    let mut sums = Vec::with_capacity(roots.len());
    for (row, root) in gradients.chunks(elements.max(1)).zip(roots) {
        let start = squares.len();
        let weight = root * root;
        squares.extend(row.iter().map(|&g| f64::from(g) * f64::from(g) * weight));
        sums.push(sum(&squares[start..]));
    }
    (squares, sums)
}

/// `Σ g² · root²` over elements, `[samples]`.
pub(crate) fn traces(gradients: &[f32], roots: &[f64]) -> Vec<f64> {
    // Not by the number of threads, on which no rounding may depend.
    const PIECE: usize = 1 << 16;
    let elements = gradients.len() / roots.len().max(1);
    let rows = gradients.par_chunks(elements.max(1)).zip(roots);
    let trace = |(row, root): (&[f32], &f64)| {
        let pieces = row.par_chunks(PIECE);
        let pieces = pieces.map(|piece| AutoArch::new().dispatch(SumOfSquares(piece)));
        let pieces: Vec<f64> = pieces.collect();
        pieces.iter().sum::<f64>() * root * root
    };
    rows.map(trace).collect()
}

/// In float64.
struct SumOfSquares<'a>(&'a [f32]);

impl WithSimd for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> f64 {
        sum_of_squares(self.0)
    }
}

/// In lanes, which the compiler turns into vectors.
#[inline(always)]
pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += square(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>()
}

/// Sums over the last axis, `[rows, columns]` to `[rows, 1]`.
pub(crate) fn sum_columns(tensor: Tensor<2>) -> Result<Tensor<2>> {
    let (device, [rows, columns]) = (tensor.device(), tensor.dims());
    if tensor.dtype() != DType::F64 || !is_host(&device) || columns == 0 {
        return Ok(tensor.sum_dim(1));
    }
    let values = Values::<f64>::of(tensor)?;
    let sums = values.chunks(columns).map(sum).collect();
    Ok(give(sums, [rows, 1], &device))
}

/// In lanes, which the compiler turns into vectors.
#[inline(always)]
pub(super) fn sum(values: &[f64]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

/// Columns whose moments are taken at a time.
const COLUMNS: usize = 128;

/// Mean and M2 over rows, `[rows, columns]`; M2 where `deviations` are wanted.
pub(crate) fn moments(
    values: &[f64],
    columns: usize,
    deviations: bool,
) -> (Vec<f64>, Option<Vec<f64>>) {
    let (mut mean, mut m2) = (vec![0.0; columns], vec![0.0; columns]);
    let stripes = mean.par_chunks_mut(COLUMNS);
    let stripes = stripes.zip(m2.par_chunks_mut(COLUMNS)).enumerate();
    stripes.for_each(|(stripe, (mean, m2))| {
        let start = stripe * COLUMNS;
        let m2 = deviations.then_some(m2);
        AutoArch::new().dispatch(MomentsOfColumns {
            values,
            columns,
            start,
            mean,
            m2,
        });
    });
    (mean, deviations.then_some(m2))
}

struct MomentsOfColumns<'a> {
    values: &'a [f64],
    columns: usize,
    start: usize,
    mean: &'a mut [f64],
    m2: Option<&'a mut [f64]>,
}

impl WithSimd for MomentsOfColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let of_all = self.start..self.start + self.mean.len();
        let rows = self.values.chunks_exact(self.columns);
        let count = rows.len() as f64;
        let rows = rows.map(|row| &row[of_all.clone()]);
        for row in rows.clone() {
            self.mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        self.mean.iter_mut().for_each(|sum| *sum /= count);
        if let Some(m2) = self.m2 {
            for row in rows {
                for ((sum, x), mean) in m2.iter_mut().zip(row).zip(&*self.mean) {
                    *sum += (x - mean) * (x - mean);
                }
            }
        }
    }
}
