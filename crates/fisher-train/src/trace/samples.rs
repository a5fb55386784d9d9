//! On which axis of every traced tensor the samples lie.
//!
//! The tensors of a batch have them first. From there they are followed through each operation: most keep them
//! apart on one axis, sums over that axis give gradients of parameters. Where they meet otherwise, nothing is
//! claimed any more.

use std::collections::HashMap;

use burn::backend::Shape;
use burn::backend::capture::TensorId;
use burn::backend::ir::{
    ActivationOperationIr, BaseOperationIr, FloatOperationIr, IntOperationIr, MatmulOpIr,
    ModuleOperationIr, NumericOperationIr, OperationIr, TensorIr,
};

use super::operations::{adds, convolution, name};

/// Where a tensor has the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Samples {
    /// The tensor is the same whatever the samples are.
    #[default]
    None,
    /// On this axis, as its major part: sample by sample, as many places for each.
    Axis(usize),
    /// Nowhere: it is linear in a sum over the samples.
    Summed,
    /// Lost sight of.
    Lost,
    /// In every element: a sum over the samples came back to them.
    Mixed,
}

/// The places of samples in all tensors of a trace.
#[derive(Debug)]
pub(crate) struct Places {
    samples: usize,
    of: HashMap<TensorId, Samples>,
    /// The first operation after which they were lost, and the first in which they were mixed.
    lost: Option<String>,
    mixed: Option<String>,
}

impl Places {
    /// Follow `samples` samples from the tensors of their `batch` through all operations.
    pub(crate) fn follow(
        operations: &[OperationIr],
        batch: impl IntoIterator<Item = TensorId>,
        samples: usize,
    ) -> Self {
        let mut places = Self {
            samples,
            of: batch.into_iter().map(|id| (id, Samples::Axis(0))).collect(),
            lost: None,
            mixed: None,
        };
        for operation in operations {
            let place = places.after(operation);
            if place == Samples::None {
                continue;
            }
            if place == Samples::Lost {
                places.lost.get_or_insert_with(|| name(operation));
            } else if place == Samples::Mixed {
                places.mixed.get_or_insert_with(|| name(operation));
            }
            for output in operation.outputs() {
                places.of.entry(output.id).or_insert(place);
            }
        }
        places
    }

    pub(crate) fn get(&self, tensor: &TensorIr) -> Samples {
        self.of(tensor.id)
    }

    pub(crate) fn of(&self, id: TensorId) -> Samples {
        self.of.get(&id).copied().unwrap_or_default()
    }

    /// The first operation after which samples were lost sight of.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// The first operation in which they were mixed.
    pub(crate) fn mixed(&self) -> Option<&str> {
        self.mixed.as_deref()
    }

    fn after(&self, operation: &OperationIr) -> Samples {
        let Some(out) = operation.outputs().next() else {
            return Samples::None;
        };
        let inputs: Vec<&TensorIr> = operation.inputs().collect();
        let given: Vec<Samples> = inputs.iter().map(|input| self.get(input)).collect();
        if given.iter().all(|place| *place == Samples::None) {
            return Samples::None;
        }
        for place in [Samples::Mixed, Samples::Lost] {
            if given.contains(&place) {
                return place;
            }
        }
        if given.contains(&Samples::Summed) {
            let apart = given.iter().any(|place| matches!(place, Samples::Axis(_)));
            return if apart {
                Samples::Mixed
            } else {
                Samples::Summed
            };
        }
        match operation {
            OperationIr::BaseFloat(op) | OperationIr::BaseInt(op) | OperationIr::BaseBool(op) => {
                self.base(op, &inputs, out)
            }
            OperationIr::NumericFloat(_, op) | OperationIr::NumericInt(_, op) => {
                self.numeric(op, &inputs, out)
            }
            OperationIr::Int(IntOperationIr::Matmul(op)) => self.matmul(op),
            OperationIr::Bool(_) | OperationIr::Int(_) => self.along(&inputs, &[], out),
            OperationIr::Float(_, op) => match op {
                FloatOperationIr::Matmul(op) => self.matmul(op),
                FloatOperationIr::Cross(op) => self.along(&inputs, &[op.dim], out),
                FloatOperationIr::GridSample2d(_) => self.first(&inputs, out),
                FloatOperationIr::Random(_)
                | FloatOperationIr::Quantize(_)
                | FloatOperationIr::Dequantize(_) => Samples::Lost,
                _ => self.along(&inputs, &[], out),
            },
            OperationIr::Module(op) => self.module(op, &inputs, out),
            OperationIr::Activation(op) => match op {
                ActivationOperationIr::Softmax(op)
                | ActivationOperationIr::LogSoftmax(op)
                | ActivationOperationIr::Softmin(op) => self.along(&inputs, &[op.axis], out),
                _ => self.along(&inputs, &[], out),
            },
            OperationIr::Init(_)
            | OperationIr::Custom(_)
            | OperationIr::Drop(_)
            | OperationIr::Distributed(_) => Samples::Lost,
        }
    }

    /// Element by element, shapes aligned at their last axes, but for the axes `dims`, where elements meet.
    fn along(&self, inputs: &[&TensorIr], dims: &[usize], out: &TensorIr) -> Samples {
        let rank = out.shape.num_dims();
        let mut place = Samples::None;
        for input in inputs {
            let Samples::Axis(axis) = self.get(input) else {
                continue;
            };
            let aligned = axis + rank - input.shape.num_dims().min(rank);
            let here = Samples::Axis(aligned);
            let kept = aligned < rank && out.shape[aligned] == input.shape[axis];
            let agrees = place == Samples::None || place == here;
            if !kept || !agrees || dims.contains(&aligned) {
                return Samples::Lost;
            }
            place = here;
        }
        place
    }

    fn summed(&self, input: &TensorIr, dims: &[usize]) -> Samples {
        match self.get(input) {
            Samples::Axis(axis) if dims.contains(&axis) => Samples::Summed,
            place => place,
        }
    }

    /// Samples are the first axis of everything that has them; each may have several places there.
    fn first(&self, inputs: &[&TensorIr], out: &TensorIr) -> Samples {
        let (rank, rows) = (out.shape.num_dims(), out.shape[0]);
        let fits = |t: &TensorIr| t.shape.num_dims() == rank && t.shape[0] == rows;
        let first = |input: &&TensorIr| match self.get(input) {
            Samples::Axis(axis) => axis == 0 && fits(input),
            _ => true,
        };
        if rows.is_multiple_of(self.samples) && inputs.iter().all(first) {
            Samples::Axis(0)
        } else {
            Samples::Lost
        }
    }

    /// Any axis but the last of an input whose others have no samples.
    fn rows(&self, input: &TensorIr, others: &[&TensorIr]) -> Samples {
        let shared = others.iter().all(|other| self.get(other) == Samples::None);
        match self.get(input) {
            Samples::Axis(axis) if shared && axis + 1 < input.shape.num_dims() => {
                Samples::Axis(axis)
            }
            _ => Samples::Lost,
        }
    }

    fn base(&self, op: &BaseOperationIr, inputs: &[&TensorIr], out: &TensorIr) -> Samples {
        use BaseOperationIr as Op;
        match op {
            Op::Reshape(op) => match self.get(&op.input) {
                Samples::Axis(axis) => {
                    let to = reshaped(&op.input.shape, axis, &op.out.shape, self.samples);
                    to.map_or(Samples::Lost, Samples::Axis)
                }
                place => place,
            },
            Op::SwapDims(op) => match self.get(&op.input) {
                Samples::Axis(axis) if axis == op.dim1 => Samples::Axis(op.dim2),
                Samples::Axis(axis) if axis == op.dim2 => Samples::Axis(op.dim1),
                place => place,
            },
            Op::Permute(op) => match self.get(&op.input) {
                Samples::Axis(axis) => {
                    let to = op.axes.iter().position(|&from| from == axis);
                    to.map_or(Samples::Lost, Samples::Axis)
                }
                place => place,
            },
            Op::Flip(op) => self.along(inputs, &op.axes, out),
            Op::Unfold(op) => match self.get(&op.input) {
                Samples::Axis(axis) if axis != op.dim => Samples::Axis(axis),
                _ => Samples::Lost,
            },
            Op::Slice(op) => self.along(inputs, &stepped(&op.ranges), out),
            Op::SliceAssign(op) => self.along(inputs, &stepped(&op.ranges), out),
            Op::Gather(op) => {
                let shared = self.get(&op.tensor) == Samples::None;
                let dims = if shared { vec![] } else { vec![op.dim] };
                self.along(inputs, &dims, out)
            }
            Op::Scatter(op) => {
                let shared = self.get(&op.tensor) == Samples::None;
                let place = self.along(&[&op.indices, &op.value], &[], &op.indices);
                if place == Samples::Axis(op.dim) && shared && adds(&op.update) {
                    return Samples::Summed;
                }
                self.along(inputs, &[op.dim], out)
            }
            Op::Select(op) => match (self.get(&op.tensor), self.get(&op.indices)) {
                (Samples::Axis(axis), Samples::None) if axis != op.dim => Samples::Axis(axis),
                (Samples::None, Samples::Axis(0)) => Samples::Axis(op.dim),
                _ => Samples::Lost,
            },
            Op::SelectAssign(op) => {
                let shared = self.get(&op.tensor) == Samples::None;
                match (self.get(&op.indices), self.get(&op.value)) {
                    (Samples::Axis(0) | Samples::None, Samples::Axis(axis))
                        if axis == op.dim && shared && adds(&op.update) =>
                    {
                        Samples::Summed
                    }
                    (Samples::None, Samples::Axis(_)) => self.along(inputs, &[op.dim], out),
                    _ => Samples::Lost,
                }
            }
            Op::RepeatDim(op) => self.along(inputs, &[op.dim], out),
            Op::Cat(op) => self.along(inputs, &[op.dim], out),
            Op::Expand(_)
            | Op::MaskWhere(_)
            | Op::MaskFill(_)
            | Op::Equal(_)
            | Op::EqualElem(_)
            | Op::NotEqual(_)
            | Op::NotEqualElem(_)
            | Op::Cast(_) => self.along(inputs, &[], out),
            Op::AllDim(op) | Op::AnyDim(op) => self.along(inputs, &[op.axis], out),
            Op::Empty(_) | Op::Ones(_) | Op::Zeros(_) => Samples::None,
            Op::All(_) | Op::Any(_) | Op::ScatterNd(_) | Op::GatherNd(_) => Samples::Lost,
        }
    }

    fn numeric(&self, op: &NumericOperationIr, inputs: &[&TensorIr], out: &TensorIr) -> Samples {
        use NumericOperationIr as Op;
        match op {
            Op::SumDim(op) | Op::MeanDim(op) => self.summed(&op.input, &[op.axis]),
            Op::SumDims(op) => self.summed(&op.input, &op.axes),
            Op::Sum(_) | Op::Mean(_) => Samples::Summed,
            Op::ProdDim(op)
            | Op::ArgMax(op)
            | Op::ArgMin(op)
            | Op::ArgTopK(op)
            | Op::TopK(op)
            | Op::MaxDim(op)
            | Op::MinDim(op)
            | Op::MaxAbsDim(op) => self.along(inputs, &[op.axis], out),
            Op::MaxDimWithIndices(op) | Op::MinDimWithIndices(op) => {
                self.along(inputs, &[op.dim], out)
            }
            Op::TopKWithIndices(op) => self.along(inputs, &[op.dim], out),
            Op::CumSum(op) | Op::CumProd(op) | Op::CumMin(op) | Op::CumMax(op) => {
                self.along(inputs, &[op.axis], out)
            }
            Op::Sort(op) | Op::ArgSort(op) => self.along(inputs, &[op.dim], out),
            Op::SortWithIndices(op) => self.along(inputs, &[op.dim], out),
            Op::Prod(_) | Op::Max(_) | Op::Min(_) | Op::MaxAbs(_) | Op::IntRandom(_) => {
                Samples::Lost
            }
            Op::Full(_) => Samples::None,
            // A padded axis has another length.
            Op::Pad(_)
            | Op::Add(_)
            | Op::AddScalar(_)
            | Op::Sub(_)
            | Op::SubScalar(_)
            | Op::Div(_)
            | Op::DivScalar(_)
            | Op::Rem(_)
            | Op::RemScalar(_)
            | Op::Mul(_)
            | Op::MulScalar(_)
            | Op::Abs(_)
            | Op::Greater(_)
            | Op::GreaterElem(_)
            | Op::GreaterEqual(_)
            | Op::GreaterEqualElem(_)
            | Op::Lower(_)
            | Op::LowerElem(_)
            | Op::LowerEqual(_)
            | Op::LowerEqualElem(_)
            | Op::Clamp(_)
            | Op::ClampMin(_)
            | Op::ClampMax(_)
            | Op::Powi(_)
            | Op::PowiScalar(_)
            | Op::Neg(_)
            | Op::Sign(_) => self.along(inputs, &[], out),
        }
    }

    fn module(&self, op: &ModuleOperationIr, inputs: &[&TensorIr], out: &TensorIr) -> Samples {
        use ModuleOperationIr as Op;
        match op {
            Op::Embedding(op) => match (self.get(&op.weights), self.get(&op.indices)) {
                (Samples::None, place) => place,
                _ => Samples::Lost,
            },
            Op::EmbeddingBackward(op) => match (self.get(&op.out_grad), self.get(&op.indices)) {
                (Samples::Axis(a), Samples::Axis(b)) if a == b => Samples::Summed,
                (Samples::Axis(_), Samples::None) => Samples::Summed,
                _ => Samples::Lost,
            },
            Op::Linear(op) => {
                let others: Vec<&TensorIr> = op.bias.iter().chain([&op.weight]).collect();
                self.rows(&op.x, &others)
            }
            Op::LinearXBackward(op) => self.rows(&op.output_grad, &[&op.weight]),
            Op::LinearWeightBackward(op) => {
                let (x, delta) = (self.get(&op.x), self.get(&op.output_grad));
                let inner = |axis: usize| axis + 1 < op.x.shape.num_dims();
                match x {
                    Samples::Axis(axis) if x == delta && inner(axis) => Samples::Summed,
                    _ => Samples::Lost,
                }
            }
            Op::LinearBiasBackward(op) => match self.get(&op.output_grad) {
                Samples::Axis(axis) if axis + 1 < op.output_grad.shape.num_dims() => {
                    Samples::Summed
                }
                _ => Samples::Lost,
            },
            Op::LayerNorm(op) => {
                let others: Vec<&TensorIr> = op.beta.iter().chain([&op.gamma]).collect();
                self.rows(&op.input, &others)
            }
            Op::Conv1dWeightBackward(_)
            | Op::Conv1dBiasBackward(_)
            | Op::Conv2dWeightBackward(_)
            | Op::Conv2dBiasBackward(_)
            | Op::Conv3dWeightBackward(_)
            | Op::Conv3dBiasBackward(_)
            | Op::ConvTranspose1dWeightBackward(_)
            | Op::ConvTranspose1dBiasBackward(_)
            | Op::ConvTranspose2dWeightBackward(_)
            | Op::ConvTranspose2dBiasBackward(_)
            | Op::ConvTranspose3dWeightBackward(_)
            | Op::ConvTranspose3dBiasBackward(_) => self.convolved(op),
            Op::DeformableConv2d(_)
            | Op::DeformableConv2dBackward(_)
            | Op::CtcLoss(_)
            | Op::CtcLossBackward(_) => Samples::Lost,
            // Input, weight, and what else there is.
            Op::BatchNorm(_)
            | Op::Conv1d(_)
            | Op::Conv1dXBackward(_)
            | Op::Conv2d(_)
            | Op::Conv2dXBackward(_)
            | Op::Conv3d(_)
            | Op::Conv3dXBackward(_)
            | Op::ConvTranspose1d(_)
            | Op::ConvTranspose2d(_)
            | Op::ConvTranspose3d(_) => match self.get(inputs[1]) {
                Samples::None => self.first(inputs, out),
                _ => Samples::Lost,
            },
            Op::AvgPool1d(_)
            | Op::AvgPool2d(_)
            | Op::AvgPool1dBackward(_)
            | Op::AvgPool2dBackward(_)
            | Op::AdaptiveAvgPool1d(_)
            | Op::AdaptiveAvgPool2d(_)
            | Op::AdaptiveAvgPool1dBackward(_)
            | Op::AdaptiveAvgPool2dBackward(_)
            | Op::AdaptiveAvgPool3d(_)
            | Op::AdaptiveAvgPool3dBackward(_)
            | Op::MaxPool1d(_)
            | Op::MaxPool1dWithIndices(_)
            | Op::MaxPool1dWithIndicesBackward(_)
            | Op::MaxPool2d(_)
            | Op::MaxPool2dWithIndices(_)
            | Op::MaxPool2dWithIndicesBackward(_)
            | Op::Interpolate(_)
            | Op::InterpolateBackward(_)
            | Op::Attention(_)
            | Op::Unfold4d(_) => self.first(inputs, out),
        }
    }

    /// The gradient of a convolution's weight or bias: a sum over the samples of what went in and came back.
    fn convolved(&self, op: &ModuleOperationIr) -> Samples {
        let Some((input, gradient)) = convolution(op) else {
            return Samples::Lost;
        };
        let fits = |t: &TensorIr| self.get(t) == Samples::Axis(0);
        if input.is_none_or(fits) && fits(gradient) {
            Samples::Summed
        } else {
            Samples::Lost
        }
    }

    fn matmul(&self, op: &MatmulOpIr) -> Samples {
        let rank = op.out.shape.num_dims();
        let full = |tensor: &TensorIr| tensor.shape.num_dims() == rank;
        if rank < 2 || !full(&op.lhs) || !full(&op.rhs) {
            return Samples::Lost;
        }
        let (rows, columns) = (rank - 2, rank - 1);
        let kept = |axis: usize, tensor: &TensorIr| tensor.shape[axis] == op.out.shape[axis];
        match (self.get(&op.lhs), self.get(&op.rhs)) {
            (Samples::Axis(a), Samples::Axis(b)) if a == b && a < rows => Samples::Axis(a),
            (Samples::Axis(a), Samples::Axis(b)) if a == columns && b == rows => Samples::Summed,
            (Samples::Axis(a), Samples::None) if a == columns => Samples::Summed,
            (Samples::Axis(a), Samples::None) if kept(a, &op.lhs) => Samples::Axis(a),
            (Samples::None, Samples::Axis(b)) if b == rows => Samples::Summed,
            (Samples::None, Samples::Axis(b)) if kept(b, &op.rhs) => Samples::Axis(b),
            _ => Samples::Lost,
        }
    }
}

/// The axis of `out` that has the samples as its major part, as `axis` of `input` had.
fn reshaped(input: &Shape, axis: usize, out: &Shape, samples: usize) -> Option<usize> {
    let before = |shape: &Shape, axis: usize| shape.iter().take(axis).product::<usize>();
    let outside = before(input, axis);
    let fits = |&to: &usize| out[to] != 0 && out[to].is_multiple_of(samples);
    (0..out.num_dims()).find(|to| fits(to) && before(out, *to) == outside)
}

/// The axes along which a slice leaves elements out.
fn stepped(ranges: &[burn::tensor::Slice]) -> Vec<usize> {
    let stepped = ranges.iter().enumerate().filter(|(_, r)| r.step != 1);
    stepped.map(|(axis, _)| axis).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stay_the_major_part_of_an_axis() {
        let to = |input: &[usize], axis, out: &[usize]| {
            reshaped(
                &Shape::from(input.to_vec()),
                axis,
                &Shape::from(out.to_vec()),
                4,
            )
        };
        assert_eq!(to(&[4, 3, 5], 0, &[12, 5]), Some(0));
        assert_eq!(to(&[12, 5], 0, &[4, 3, 5]), Some(0));
        assert_eq!(to(&[12, 5], 0, &[1, 4, 3, 5]), Some(1));
        assert_eq!(to(&[3, 4, 5], 1, &[3, 20]), Some(1));
        // Positions before samples: no axis is the samples' any more.
        assert_eq!(to(&[3, 4, 5], 1, &[12, 5]), None);
        assert_eq!(to(&[12, 5], 0, &[6, 10]), None);
    }
}
