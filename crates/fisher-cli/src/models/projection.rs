//! A linear layer that may have a low-rank adapter beside it.

use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};

use super::cast::cast;

/// `y = x W + b`, with an adapter `+ s · (x A) B` (Hu et al. 2021, LoRA).
#[derive(Module, Debug)]
pub struct Projection {
    pub(super) linear: Linear,
    pub(super) lora: Option<Lora>,
}

/// A low-rank adapter.
#[derive(Module, Debug)]
pub struct Lora {
    /// `[in, rank]`
    a: Linear,
    /// `[rank, out]`
    b: Linear,
    scale: f64,
}

impl Projection {
    /// One whose weights are still to be loaded.
    pub fn new([input, output]: [usize; 2], bias: bool, device: &Device) -> Self {
        Self {
            linear: linear([input, output], bias, device),
            lora: None,
        }
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match &self.lora {
            None => self.linear.forward(x),
            Some(Lora { a, b, scale }) => {
                let beside = b.forward(a.forward(x.clone())).mul_scalar(*scale);
                self.linear.forward(x) + beside
            }
        }
    }

    /// Put an adapter of this rank beside it, whose weights are still to be loaded.
    pub(super) fn adapt(&mut self, rank: usize, scale: f64) {
        let [input, output] = self.linear.weight.dims();
        let device = self.linear.weight.lazy_device();
        self.lora = Some(Lora {
            a: linear([input, rank], false, &device),
            b: linear([rank, output], false, &device),
            scale,
        });
    }

    /// Take the adapter into the matrix.
    pub(super) fn absorb(&mut self) {
        if let Some(Lora { a, b, scale }) = self.lora.take() {
            let of = |linear: &Linear| cast(linear.weight.val().inner(), DType::F32);
            let change = of(&a).matmul(of(&b)).mul_scalar(scale);
            let weight = self.linear.weight.clone();
            let tensor = cast(of(&self.linear) + change, weight.dtype());
            let id = weight.id;
            self.linear.weight = weight.transform_for_load(Tensor::from_inner(tensor), id);
        }
    }
}

/// Zeros, which are quick to make.
fn linear([input, output]: [usize; 2], bias: bool, device: &Device) -> Linear {
    let config = LinearConfig::new(input, output).with_bias(bias);
    config.with_initializer(Initializer::Zeros).init(device)
}
