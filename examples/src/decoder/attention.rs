//! Causal attention.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};

/// Heads of `[samples, heads, positions, width]`, each position looking at itself and what came
/// before, to `[samples, positions, heads × width]`.
pub(crate) fn attend(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> Tensor<3> {
    let [samples, heads, positions, width] = query.dims();
    let scores = query
        .matmul(key.swap_dims(2, 3))
        .div_scalar((width as f64).sqrt());
    let later = Tensor::<2, Bool>::tril_mask([positions, positions], 0, &scores.device());
    let later = later.reshape([1, 1, positions, positions]);
    let scores = scores.mask_fill(later.expand([samples, heads, positions, positions]), -1e30);
    let context = softmax(scores, 3).matmul(value);
    context
        .swap_dims(1, 2)
        .reshape([samples, positions, heads * width])
}
