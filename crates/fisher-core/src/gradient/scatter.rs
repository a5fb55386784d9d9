//! Values added at places of a tensor.

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

/// Places that are added at in one go: burn-cubecl 0.22.1 on Vulkan leaves out, without a word, what
/// comes after the first 65 536.
const PLACES: usize = 1 << 15;

/// `tensor` with `values` added at the places `at` of axis `axis`; a place may occur several times.
pub fn add_at<const D: usize>(
    tensor: Tensor<D>,
    axis: usize,
    at: Tensor<1, Int>,
    values: Tensor<D>,
) -> Tensor<D> {
    let places = at.dims()[0];
    (0..places).step_by(PLACES).fold(tensor, |tensor, start| {
        let length = PLACES.min(places - start);
        let at = at.clone().narrow(0, start, length);
        let values = values.clone().narrow(axis, start, length);
        tensor.select_assign(axis, at, values, IndexingUpdateOp::Add)
    })
}

/// Places as a tensor.
pub(crate) fn indices(at: &[usize], device: &Device) -> Tensor<1, Int> {
    let at: Vec<i64> = at.iter().map(|&at| at as i64).collect();
    let length = at.len();
    Tensor::from_data(TensorData::new(at, [length]), device)
}
