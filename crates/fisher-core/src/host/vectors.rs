//! Vectors in the host's memory: to and from tensors, sums and moments.

use burn::tensor::{DType, Device, Element, Tensor, TensorData};
use rayon::prelude::*;

use crate::error::{Error, Result};

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

/// The values, without a copy where nobody else holds the tensor.
pub(crate) fn take<E: Element, const D: usize>(tensor: Tensor<D>) -> Result<Vec<E>> {
    let data = tensor.try_into_data().map_err(Error::device)?;
    data.try_into_vec()
        .map_err(|e| Error::device(format!("{e:?}")))
}

/// The other way.
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
    let rows = gradients.chunks(elements.max(1)).zip(roots);
    let of_piece = |piece: &[f32]| {
        let (chunks, rest) = piece.as_chunks::<8>();
        let mut lanes = [0.0; 8];
        for chunk in chunks {
            for (lane, &g) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(g) * f64::from(g);
            }
        }
        let rest = rest.iter().map(|&g| f64::from(g) * f64::from(g));
        lanes.iter().sum::<f64>() + rest.sum::<f64>()
    };
    let trace = |(row, root): (&[f32], &f64)| {
        let pieces: Vec<f64> = row.par_chunks(PIECE).map(of_piece).collect();
        pieces.iter().sum::<f64>() * root * root
    };
    rows.map(trace).collect()
}

/// Sums over the last axis, `[rows, columns]` to `[rows, 1]`.
pub(crate) fn sum_columns(tensor: Tensor<2>) -> Result<Tensor<2>> {
    let (device, [rows, columns]) = (tensor.device(), tensor.dims());
    if tensor.dtype() != DType::F64 || !is_host(&device) || columns == 0 {
        return Ok(tensor.sum_dim(1));
    }
    let values = take::<f64, 2>(tensor)?;
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

/// Mean and M2 over rows, `[rows, columns]`; M2 where `deviations` are wanted.
pub(crate) fn moments(values: &[f64], columns: usize, m2: bool) -> (Vec<f64>, Option<Vec<f64>>) {
    let rows = (values.len() / columns.max(1)) as f64;
    let mut mean = vec![0.0; columns];
    for row in values.chunks(columns.max(1)) {
        mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    mean.iter_mut().for_each(|sum| *sum /= rows);
    let m2 = m2.then(|| {
        let mut m2 = vec![0.0; columns];
        for row in values.chunks(columns.max(1)) {
            for ((sum, x), mean) in m2.iter_mut().zip(row).zip(&mean) {
                *sum += (x - mean) * (x - mean);
            }
        }
        m2
    });
    (mean, m2)
}
