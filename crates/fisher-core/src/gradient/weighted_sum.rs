//! Weighted sums over samples of gradients that are never held whole.

use burn::tensor::{DType, Tensor};

use super::precision::at_least_single;
use super::sample_gradient::SampleGradient;
use super::scatter::{add_at, indices};

impl SampleGradient {
    /// `before + Σ_i w_i g_i` over these samples and their weights, flattened and in float32 at least.
    #[doc(hidden)]
    pub fn add_to(
        &self,
        before: Option<Tensor<1>>,
        samples: &[usize],
        weights: &[f64],
    ) -> Tensor<1> {
        let weigh = |tensor: &Tensor<3>| weighted(chosen(tensor.clone(), samples), weights);
        let sum = match self {
            Self::Full(gradient) => {
                let gradient = gradient.tensor();
                let [_, elements] = gradient.dims();
                weigh(&gradient.clone().unsqueeze_dim(1))
                    .sum_dim(0)
                    .reshape([elements])
            }
            Self::Outer { left, right } => {
                let left = flat(at_least_single(chosen(left.clone(), samples)));
                let product = left.transpose().matmul(flat(weigh(right)));
                product.flatten(0, 1)
            }
            Self::Rows { ids, delta, table } => {
                let delta = weigh(delta);
                let [_, _, width] = delta.dims();
                let ids = ids.clone().unsqueeze_dim::<3>(2);
                let ids = chosen(ids, samples).flatten(0, 2);
                let size = [table * width];
                let zeros = || Tensor::zeros(size, (&delta.device(), delta.dtype()));
                let sum: Tensor<1> = before.unwrap_or_else(zeros);
                let sum = sum.reshape([*table, width]);
                return add_at(sum, 0, ids, flat(delta)).reshape(size);
            }
            Self::Tied(tied) => {
                let sum = tied.product().add_to(before, samples, weights);
                return tied.lookup().add_to(Some(sum), samples, weights);
            }
            Self::Zero {
                elements, device, ..
            } => {
                let zeros = || Tensor::zeros([*elements], (device, DType::F32));
                return before.unwrap_or_else(zeros);
            }
        };
        match before {
            Some(before) => before + sum,
            None => sum,
        }
    }
}

fn chosen<K: burn::tensor::kind::Basic>(tensor: Tensor<3, K>, samples: &[usize]) -> Tensor<3, K> {
    if samples.iter().copied().eq(0..tensor.dims()[0]) {
        return tensor;
    }
    let at = indices(samples, &tensor.device());
    tensor.select(0, at)
}

fn weighted(tensor: Tensor<3>, weights: &[f64]) -> Tensor<3> {
    let tensor = at_least_single(tensor);
    if weights.iter().all(|weight| *weight == 1.0) {
        return tensor;
    }
    let column = (&tensor.device(), tensor.dtype());
    let column = Tensor::<1>::from_data(weights, column);
    tensor * column.reshape([weights.len(), 1, 1])
}

/// All positions of all samples as rows.
fn flat(tensor: Tensor<3>) -> Tensor<2> {
    tensor.flatten(0, 1)
}
