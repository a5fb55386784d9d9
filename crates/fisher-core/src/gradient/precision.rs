//! Gradients in types and ranges in which they can be summed and squared.

use burn::tensor::{DType, Tensor};

/// In float32, unless it is float64. Half precision rounds the 257th token of a sum away, and its
/// range ends where gradients begin.
#[doc(hidden)]
pub fn at_least_single<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F64 | DType::F32 => tensor,
        _ => tensor.cast(DType::F32),
    }
}

/// Every row divided by its largest absolute value, so that squares stay in range, and these values,
/// `[rows, 1]`: 1 for a row of zeros.
#[doc(hidden)]
pub fn unit_rows(rows: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let largest = rows.clone().max_abs_dim(1);
    let zero = largest.clone().equal_scalar(0.0);
    let largest = largest.mask_fill(zero, 1.0);
    (rows / largest.clone(), largest)
}
