//! A feed-forward part of several experts, of which each token uses a few.

use burn::module::Module;
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{DType, Device, Tensor};

use super::cast::cast;
use super::mlp::Mlp;
use super::projection::Projection;
use super::shape::{ExpertsShape, MlpShape};

/// `Σ_e w_e expert_e(x)` with `w` the softmax of a router, 0 but for the largest few, and beside it an expert
/// that all tokens use.
///
/// Every expert is computed for every token: what no token chose has a gradient of exactly 0, and a pass costs
/// as much as if all were chosen.
#[derive(Module, Debug)]
pub struct Experts {
    router: Projection,
    experts: Vec<Mlp>,
    shared: Option<Mlp>,
    shared_gate: Option<Projection>,
    #[module(skip)]
    shape: ExpertsShape,
}

impl ExpertsShape {
    /// Experts whose weights are still to be loaded.
    pub fn init(&self, width: usize, mlp: MlpShape, device: &Device) -> Experts {
        let expert = |inner| mlp.init(width, inner, device);
        let linear = |output| Projection::new([width, output], false, device);
        Experts {
            router: linear(self.count),
            experts: (0..self.count).map(|_| expert(self.inner)).collect(),
            shared: self.shared.map(expert),
            shared_gate: self.shared.map(|_| linear(1)),
            shape: *self,
        }
    }
}

impl Experts {
    /// `[samples, positions, width]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let weights = self.weights(x.clone());
        let mut sum = x.zeros_like();
        for (e, expert) in self.experts.iter().enumerate() {
            sum = sum + expert.forward(x.clone()) * weights.clone().narrow(2, e, 1);
        }
        match (&self.shared, &self.shared_gate) {
            (Some(shared), Some(gate)) => {
                let gate = sigmoid(gate.forward(x.clone()));
                sum + shared.forward(x) * gate
            }
            _ => sum,
        }
    }

    /// `[samples, positions, experts]`
    fn weights(&self, x: Tensor<3>) -> Tensor<3> {
        let dtype = x.dtype();
        let weights = softmax(cast(self.router.forward(x), DType::F32), 2);
        // How many are larger: no sorting, which not every engine follows.
        let (one, other) = (
            weights.clone().unsqueeze_dim::<4>(3),
            weights.clone().unsqueeze_dim::<4>(2),
        );
        let larger: Tensor<3> = other.greater(one).int().sum_dim(3).squeeze_dim(3).float();
        let left = larger.greater_equal_elem(self.shape.chosen as f64);
        let weights = weights.mask_fill(left, 0.0);
        let weights = if self.shape.renormalized {
            weights.clone() / weights.sum_dim(2)
        } else {
            weights
        };
        cast(weights, dtype)
    }
}
