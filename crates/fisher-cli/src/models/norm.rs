//! Norms over the last axis.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::module::layer_norm;
use burn::tensor::{DType, Device, Tensor};

use super::cast::cast;
use super::shape::{NormKind, NormShape, QkNorm};

/// A norm over the last axis.
#[derive(Module, Debug)]
pub struct Norm {
    gamma: Option<Param<Tensor<1>>>,
    beta: Option<Param<Tensor<1>>>,
    #[module(skip)]
    shape: NormShape,
}

impl NormShape {
    /// A norm whose weights are still to be loaded.
    pub fn init(&self, width: usize, device: &Device) -> Norm {
        let weights = || Initializer::Ones.init([width], device);
        Norm {
            gamma: (self.kind != NormKind::LayerAlone).then(weights),
            beta: (self.kind == NormKind::Layer).then(weights),
            shape: *self,
        }
    }

    /// Mean 0 where the kind says so, and variance or mean square 1.
    fn normalize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let x = match self.kind {
            NormKind::Rms | NormKind::RmsPlusOne => x,
            _ => x.clone() - x.mean_dim(D - 1),
        };
        let square = (x.clone() * x.clone()).mean_dim(D - 1);
        x / (square + self.epsilon).sqrt()
    }
}

impl Norm {
    /// `[.., width]` to the same, by way of float32.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        cast(self.in_float32(cast(x, DType::F32)), dtype)
    }

    fn in_float32<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let weights = |of: &Option<Param<Tensor<1>>>| {
            let of = of.as_ref().map(Param::val);
            of.map(|of| cast(of, DType::F32))
        };
        let Some(gamma) = weights(&self.gamma) else {
            return self.shape.normalize(x);
        };
        match self.shape.kind {
            NormKind::Rms => self.shape.normalize(x) * gamma.unsqueeze(),
            NormKind::RmsPlusOne => {
                let x = self.shape.normalize(x);
                x.clone() * gamma.unsqueeze() + x
            }
            _ => layer_norm(x, gamma, weights(&self.beta), self.shape.epsilon),
        }
    }
}

/// A norm of queries or keys.
#[derive(Module, Debug)]
pub struct HeadNorm {
    /// Over all heads, or over each with the same weights.
    shared: Option<Norm>,
    /// `[heads, width]`
    gamma: Option<Param<Tensor<2>>>,
    /// One a head.
    norms: Vec<Norm>,
    #[module(skip)]
    kind: QkNorm,
    #[module(skip)]
    shape: NormShape,
}

impl QkNorm {
    /// A norm of `heads` heads whose weights are still to be loaded.
    pub fn init(self, shape: NormShape, heads: usize, width: usize, device: &Device) -> HeadNorm {
        let shared = match self {
            Self::Whole => Some(heads * width),
            Self::Each => Some(width),
            _ => None,
        };
        let apart = if self == Self::OwnApart { heads } else { 0 };
        HeadNorm {
            shared: shared.map(|width| shape.init(width, device)),
            gamma: (self == Self::Own).then(|| Initializer::Ones.init([heads, width], device)),
            norms: (0..apart).map(|_| shape.init(width, device)).collect(),
            kind: self,
            shape,
        }
    }
}

impl HeadNorm {
    /// Before heads are split, `[samples, positions, heads·width]`.
    pub fn before(&self, x: Tensor<3>) -> Tensor<3> {
        match (self.kind, &self.shared) {
            (QkNorm::Whole, Some(norm)) => norm.forward(x),
            _ => x,
        }
    }

    /// After, `[samples, heads, positions, width]`.
    pub fn after(&self, x: Tensor<4>) -> Tensor<4> {
        match (self.kind, &self.shared, &self.gamma) {
            (QkNorm::Whole, ..) => x,
            (_, Some(norm), _) => norm.forward(x),
            (_, _, Some(gamma)) => {
                let dtype = x.dtype();
                let gamma: Tensor<3> = cast(gamma.val(), DType::F32).unsqueeze_dim(1);
                let x = self.shape.normalize(cast(x, DType::F32)) * gamma.unsqueeze();
                cast(x, dtype)
            }
            _ => {
                let head = |(h, norm): (usize, &Norm)| norm.forward(x.clone().narrow(1, h, 1));
                Tensor::cat(self.norms.iter().enumerate().map(head).collect(), 1)
            }
        }
    }
}
