//! Values added at places of a tensor.

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::pieces::pieces;

/// Places that are added at in one go: burn-cubecl 0.22.1 on Vulkan leaves out, without a word, what
/// comes after the first 65 536.
const PLACES: usize = 1 << 15;

/// `tensor` with `values` added at the places `at` of axis `axis`; a place may occur several times.
#[doc(hidden)]
pub fn add_at<const D: usize>(
    tensor: Tensor<D>,
    axis: usize,
    at: Tensor<1, Int>,
    values: Tensor<D>,
) -> Tensor<D> {
    let places = at.dims()[0];
    pieces(places, PLACES).fold(tensor, |tensor, piece| {
        let at = at.clone().narrow(0, piece.start, piece.len());
        let values = values.clone().narrow(axis, piece.start, piece.len());
        tensor.select_assign(axis, at, values, IndexingUpdateOp::Add)
    })
}

/// Places as a tensor.
pub(crate) fn indices(at: &[usize], device: &Device) -> Tensor<1, Int> {
    let at: Vec<i64> = at.iter().map(|&at| at as i64).collect();
    let length = at.len();
    Tensor::from_data(TensorData::new(at, [length]), device)
}
