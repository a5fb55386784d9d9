//! What gives the per-sample gradients of a parameter, in tensors of a trace.

use std::collections::BTreeMap;

use burn::backend::capture::TensorId;
use burn::backend::ir::{ModuleOperationIr, TensorIr};
use burn::tensor::ops::ConvOptions;

/// What gives the gradients of one parameter.
#[derive(Debug, Clone)]
pub(crate) enum Recipe {
    /// The sum over all its uses.
    Uses(Vec<Use>),
    /// What makes the gradient of the batch, done for each sample alone.
    Tail(Tail),
}

/// A use of a parameter whose gradient is a sum over samples.
#[derive(Debug, Clone)]
pub(crate) enum Use {
    /// `g_i = L_iᵀ R_i`
    Product { left: Side, right: Side },
    /// Row `ids_it` of a table got `δ_it`.
    Lookup { ids: TensorIr, delta: TensorIr },
    /// A convolution's weight: products of the patches of `x` that each output saw with its `δ`.
    Patches(Patches),
    /// Sums over the axes `over`, the samples of `axis` apart.
    Sum {
        terms: TensorIr,
        axis: usize,
        over: Vec<usize>,
    },
}

/// A convolution over a line or a plane, without groups.
#[derive(Debug, Clone)]
pub(crate) struct Patches {
    /// `[samples, channels, ..]`
    pub(crate) x: TensorIr,
    /// `[samples, outputs, ..]`
    pub(crate) delta: TensorIr,
    /// A line is a plane of width one.
    pub(crate) kernel: [usize; 2],
    pub(crate) options: ConvOptions<2>,
}

impl Patches {
    /// `None` for other convolutions.
    pub(crate) fn of(op: &ModuleOperationIr) -> Option<Self> {
        match op {
            ModuleOperationIr::Conv1dWeightBackward(op) => Some(Self {
                x: op.x.clone(),
                delta: op.output_grad.clone(),
                kernel: [op.weight.shape[2], 1],
                options: ConvOptions::new_with_padding(
                    [op.options.stride[0], 1],
                    [op.options.padding[0], (0, 0)],
                    [op.options.dilation[0], 1],
                    op.options.groups,
                ),
            }),
            ModuleOperationIr::Conv2dWeightBackward(op) => Some(Self {
                x: op.x.clone(),
                delta: op.output_grad.clone(),
                kernel: [op.weight.shape[2], op.weight.shape[3]],
                options: op.options.clone().into(),
            }),
            _ => None,
        }
        .filter(|patches| patches.options.groups == 1 && patches.are_smaller())
    }

    /// Than the gradients themselves.
    fn are_smaller(&self) -> bool {
        let positions: usize = self.delta.shape.iter().skip(2).product();
        let outputs = self.delta.shape[1];
        let inputs = self.x.shape[1] * self.kernel[0] * self.kernel[1];
        positions * (inputs + outputs) < inputs * outputs
    }
}

/// A side of a product.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) tensor: TensorIr,
    /// Where samples are. All axes but the last (or, `swapped`, the last but one) are positions.
    pub(crate) axis: usize,
    pub(crate) swapped: bool,
}

impl Side {
    /// The axis that is no position.
    pub(crate) fn column(&self) -> usize {
        let rank = self.tensor.shape.num_dims();
        if self.swapped { rank - 2 } else { rank - 1 }
    }

    pub(crate) fn columns(&self) -> usize {
        self.tensor.shape[self.column()]
    }
}

/// Operations from a sum over the samples to a parameter's gradient, linear in that sum.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    /// In order.
    pub(crate) operations: Vec<usize>,
    /// Tensors to cut to one sample, along this axis.
    pub(crate) cuts: BTreeMap<TensorId, (TensorIr, usize)>,
    /// Tensors that every sample shares.
    pub(crate) shared: BTreeMap<TensorId, TensorIr>,
    pub(crate) gradient: TensorIr,
}

impl Recipe {
    /// Whether it gives the gradients of a parameter of these sides as factors, without one of them.
    pub(crate) fn is_factored(&self, sides: [usize; 2], matrix: bool) -> bool {
        let Self::Uses(uses) = self else { return false };
        uses.iter().all(|part| match part {
            Use::Product { left, right } => matrix && [left.columns(), right.columns()] == sides,
            Use::Lookup { .. } | Use::Patches(_) => true,
            Use::Sum { .. } => false,
        })
    }

    /// The tensors that have to be computed for it.
    pub(crate) fn tensors(&self) -> Vec<&TensorIr> {
        match self {
            Self::Uses(uses) => uses.iter().flat_map(Use::tensors).collect(),
            Self::Tail(tail) => {
                let cuts = tail.cuts.values().map(|(tensor, _)| tensor);
                cuts.chain(tail.shared.values()).collect()
            }
        }
    }
}

impl Use {
    fn tensors(&self) -> Vec<&TensorIr> {
        match self {
            Self::Product { left, right } => vec![&left.tensor, &right.tensor],
            Self::Lookup { ids, delta } => vec![ids, delta],
            Self::Patches(patches) => vec![&patches.x, &patches.delta],
            Self::Sum { terms, .. } => vec![terms],
        }
    }
}
