//! The operations of a trace as a graph.

use std::collections::HashMap;

use burn::backend::capture::TensorId;
use burn::backend::ir::{BaseOperationIr, NumericOperationIr, OperationIr, TensorIr};

use super::operations::is_zero;
use super::samples::{Places, Samples};

/// The operations of a trace, where their samples are, and which of them makes a tensor.
pub(crate) struct Graph<'a> {
    pub(super) operations: &'a [OperationIr],
    pub(super) places: &'a Places,
    pub(super) producers: HashMap<TensorId, usize>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(operations: &'a [OperationIr], places: &'a Places) -> Self {
        let mut producers = HashMap::new();
        for (index, operation) in operations.iter().enumerate() {
            // What is initialized has values, and no operation that makes it.
            if !matches!(operation, OperationIr::Init(_)) {
                producers.extend(operation.outputs().map(|output| (output.id, index)));
            }
        }
        Self {
            operations,
            places,
            producers,
        }
    }

    pub(super) fn producer(&self, id: TensorId) -> Option<&'a OperationIr> {
        self.producers.get(&id).map(|&at| &self.operations[at])
    }

    pub(super) fn axis(&self, tensor: &TensorIr) -> Option<usize> {
        match self.places.get(tensor) {
            Samples::Axis(axis) => Some(axis),
            _ => None,
        }
    }

    /// Whether two tensors that are summed together over these axes have the samples there. One of them may be the same
    /// for all samples, as a first state of zeros is.
    pub(super) fn meet(
        &self,
        (left, at_left): (&TensorIr, usize),
        (right, at_right): (&TensorIr, usize),
    ) -> bool {
        match (self.places.get(left), self.places.get(right)) {
            (Samples::Axis(l), Samples::Axis(r)) => l == at_left && r == at_right,
            (Samples::None, Samples::Axis(r)) => r == at_right,
            (Samples::Axis(l), Samples::None) => l == at_left,
            _ => false,
        }
    }

    /// Whether a tensor is zeros, to which gradients are assigned.
    pub(super) fn is_zeros(&self, id: TensorId) -> bool {
        match self.producer(id) {
            Some(OperationIr::BaseFloat(BaseOperationIr::Zeros(_))) => true,
            Some(OperationIr::NumericFloat(_, NumericOperationIr::Full(op))) => is_zero(&op.value),
            _ => false,
        }
    }
}
