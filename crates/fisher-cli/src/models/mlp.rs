//! The feed-forward part of a layer.

use burn::module::Module;
use burn::tensor::activation::{relu, silu};
use burn::tensor::{DType, Device, Tensor};

use super::cast::cast;
use super::projection::Projection;
use super::shape::{Activation, Gate, MlpShape};

/// The feed-forward part of a layer.
#[derive(Module, Debug)]
pub struct Mlp {
    gate: Option<Projection>,
    up: Option<Projection>,
    /// The gate's rows, then those of `up`.
    gate_up: Option<Projection>,
    down: Projection,
    #[module(skip)]
    shape: MlpShape,
}

impl MlpShape {
    /// One whose weights are still to be loaded.
    pub fn init(&self, width: usize, inner: usize, device: &Device) -> Mlp {
        let linear = |input, output| Projection::new([input, output], self.bias, device);
        let fused = self.gate == Gate::Fused;
        Mlp {
            gate: (self.gate == Gate::Apart).then(|| linear(width, inner)),
            up: (!fused).then(|| linear(width, inner)),
            gate_up: fused.then(|| linear(width, 2 * inner)),
            down: linear(inner, width),
            shape: *self,
        }
    }
}

impl Mlp {
    /// A projection by its field.
    pub(super) fn projection(&mut self, field: &str) -> Option<&mut Projection> {
        match field {
            "gate" => self.gate.as_mut(),
            "up" => self.up.as_mut(),
            "gate_up" => self.gate_up.as_mut(),
            "down" => Some(&mut self.down),
            _ => None,
        }
    }

    /// `[samples, positions, width]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let act = |x| self.shape.activation.forward(x);
        let inside = match (&self.gate, &self.up, &self.gate_up) {
            (Some(gate), Some(up), _) => act(gate.forward(x.clone())) * up.forward(x),
            (None, Some(up), _) => act(up.forward(x)),
            (_, _, Some(both)) => {
                let both = both.forward(x);
                let inner = both.dims()[2] / 2;
                act(both.clone().narrow(2, 0, inner)) * both.narrow(2, inner, inner)
            }
            _ => x,
        };
        self.down.forward(inside)
    }
}

impl Activation {
    /// Apply it to every element.
    pub fn forward(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Silu => silu(x),
            Self::Gelu => in_float32(x, gelu),
            Self::GeluTanh => in_float32(x, gelu_tanh),
            Self::Relu => relu(x),
            Self::Tanh => x.tanh(),
        }
    }
}

/// Several steps, of which each would be rounded.
fn in_float32(x: Tensor<3>, function: fn(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
    let dtype = x.dtype();
    cast(function(cast(x, DType::F32)), dtype)
}

/// `x Φ(x)`. Burn's own has the derivative of its approximation by tanh on all devices but flex.
fn gelu(x: Tensor<3>) -> Tensor<3> {
    let phi = (x.clone().mul_scalar(std::f64::consts::FRAC_1_SQRT_2)).erf() + 1.0;
    x.mul_scalar(0.5) * phi
}

/// The cube is a product: a power of a negative number is undefined on some devices.
fn gelu_tanh(x: Tensor<3>) -> Tensor<3> {
    let cube = x.clone() * x.clone() * x.clone();
    let inner =
        (x.clone() + cube.mul_scalar(0.044_715)).mul_scalar((2.0 / std::f64::consts::PI).sqrt());
    (inner.tanh() + 1.0) * x.mul_scalar(0.5)
}
