//! Causal attention with grouped queries, and rotary positions.

use burn::nn::attention::generate_autoregressive_mask;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor, TensorData};

/// A score that no softmax gives any weight; finite, since not every device keeps infinities.
const NEVER: f64 = -1e30;

/// `softmax(q kᵀ / √d) v` over positions that are not later. Query head `h` reads key/value head
/// `⌊h / (H / H_kv)⌋`. Padding at the end needs no mask: nothing before it looks there.
///
/// # Shapes
/// - q: `[samples, H, positions, d]`
/// - k, v: `[samples, H_kv, positions, d]`
/// - output: `[samples, positions, H·d]`
pub fn causal_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<3> {
    let [samples, heads, positions, width] = q.dims();
    let kv_heads = k.dims()[1];
    // The queries of one kv head as more rows of it: keys and values are not repeated.
    let grouped = [samples, kv_heads, heads / kv_heads * positions];
    let rows = |columns| [grouped[0], grouped[1], grouped[2], columns];
    let device = q.device().without_autodiff();
    let mask = generate_autoregressive_mask(samples, positions, &device);
    let mask: Tensor<4, Bool> = mask.unsqueeze_dim(1);
    let scores = q
        .reshape(rows(width))
        .matmul(k.transpose())
        .reshape([samples, heads, positions, positions])
        .div_scalar((width as f64).sqrt())
        .mask_fill(mask, NEVER);
    softmax(scores, 3)
        .reshape(rows(positions))
        .matmul(v)
        .reshape([samples, heads, positions, width])
        .swap_dims(1, 2)
        .reshape([samples, positions, heads * width])
}

/// `[samples, positions, heads·d]` to `[samples, heads, positions, d]`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [samples, positions, width] = x.dims();
    x.reshape([samples, positions, heads, width / heads])
        .swap_dims(1, 2)
}

/// Rotary positions (Su et al. 2021, RoFormer) in the order of Hugging Face: element `i` turns with
/// element `i + d/2`. (Burn's `RotaryEncoding` turns neighbours.)
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotation {
    /// The angles `t · θ^(−2i/d)` of positions `t < positions`, for heads of width `d`.
    pub fn new(positions: usize, width: usize, theta: f64, device: &Device) -> Self {
        let half = width / 2;
        let table = |of: fn(f64) -> f64| {
            let angle = |k: usize| {
                let (t, i) = (k / half, k % half);
                of(t as f64 * theta.powf(-2.0 * i as f64 / width as f64)) as f32
            };
            let values: Vec<f32> = (0..positions * half).map(angle).collect();
            Tensor::from_data(TensorData::new(values, [1, 1, positions, half]), device)
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    /// Turn queries or keys, `[samples, heads, positions, d]`.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let turned = first.clone() * cos.clone() - second.clone() * sin.clone();
        Tensor::cat(vec![turned, second * cos + first * sin], 3)
    }
}
