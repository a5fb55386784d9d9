//! What recorded operations do, as far as samples and sums are concerned.

use burn::backend::Shape;
use burn::backend::ir::{ModuleOperationIr, OperationIr, ScalarIr, SwapDimsOpIr, TensorIr};
use burn::tensor::IndexingUpdateOp;

/// What a convolution's weight (`Some` first) or bias gets its gradient from: input and the output's gradient.
pub(crate) fn convolution(op: &ModuleOperationIr) -> Option<(Option<&TensorIr>, &TensorIr)> {
    use ModuleOperationIr as Op;
    Some(match op {
        Op::Conv1dWeightBackward(op) => (Some(&op.x), &op.output_grad),
        Op::Conv2dWeightBackward(op) => (Some(&op.x), &op.output_grad),
        Op::Conv3dWeightBackward(op) => (Some(&op.x), &op.output_grad),
        Op::ConvTranspose1dWeightBackward(op) => (Some(&op.x), &op.output_grad),
        Op::ConvTranspose2dWeightBackward(op) => (Some(&op.x), &op.output_grad),
        Op::ConvTranspose3dWeightBackward(op) => (Some(&op.x), &op.output_grad),
        Op::Conv1dBiasBackward(op) => (None, &op.output_grad),
        Op::Conv2dBiasBackward(op) => (None, &op.output_grad),
        Op::Conv3dBiasBackward(op) => (None, &op.output_grad),
        Op::ConvTranspose1dBiasBackward(op) => (None, &op.output_grad),
        Op::ConvTranspose2dBiasBackward(op) => (None, &op.output_grad),
        Op::ConvTranspose3dBiasBackward(op) => (None, &op.output_grad),
        _ => return None,
    })
}

pub(crate) fn adds(update: &IndexingUpdateOp) -> bool {
    matches!(update, IndexingUpdateOp::Add)
}

/// An operation by its name, such as `SumDim`.
pub(crate) fn name(operation: &OperationIr) -> String {
    let text = format!("{operation:?}");
    let mut words = text.split(|c: char| !c.is_alphanumeric());
    let group = words.next().unwrap_or_default();
    // Between group and operation may be a type, such as `F32`.
    let own = words.find(|word| word.chars().skip(1).any(char::is_lowercase));
    own.unwrap_or(group).to_owned()
}

pub(crate) fn is_zero(value: &ScalarIr) -> bool {
    match value {
        ScalarIr::Float(value) => *value == 0.0,
        ScalarIr::Int(value) => *value == 0,
        ScalarIr::UInt(value) => *value == 0,
        ScalarIr::Bool(_) => false,
    }
}

pub(crate) fn same_but_ones(a: &Shape, b: &Shape) -> bool {
    let strip = |shape: &Shape| -> Vec<usize> {
        let lengths = shape.iter().copied();
        lengths.filter(|&length| length != 1).collect()
    };
    strip(a) == strip(b)
}

pub(crate) fn swaps_last_two(op: &SwapDimsOpIr) -> bool {
    let rank = op.input.shape.num_dims();
    op.dim1.min(op.dim2) + 2 == rank && op.dim1.max(op.dim2) + 1 == rank
}

pub(crate) fn leading_ones(shape: &Shape) -> bool {
    let leading = shape.num_dims().saturating_sub(2);
    shape.iter().take(leading).all(|&length| length == 1)
}

#[cfg(test)]
mod tests {
    use burn::backend::capture::TensorId;
    use burn::backend::ir::{FloatOperationIr, NumericOperationIr, UnaryOpIr};
    use burn::tensor::DType;

    use super::*;

    #[test]
    fn operations_have_names() {
        let tensor = || TensorIr::uninit(TensorId::new(0), Shape::from(vec![1]), DType::F32);
        let unary = || UnaryOpIr {
            input: tensor(),
            out: tensor(),
        };
        let neg = OperationIr::NumericFloat(DType::F32, NumericOperationIr::Neg(unary()));
        assert_eq!(name(&neg), "Neg");
        let tanh = OperationIr::Float(DType::BF16, FloatOperationIr::Tanh(unary()));
        assert_eq!(name(&tanh), "Tanh");
    }
}
