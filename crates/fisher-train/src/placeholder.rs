//! Tensors on a capture device that stand for real ones.

use std::collections::HashMap;

use burn::backend::capture::TensorId;
use burn::backend::{BackendTensor, DispatchTensor, DispatchTensorKind};
use burn::tensor::kind::Basic;
use burn::tensor::{Device, Tensor};

/// The id of a tensor on a capture device.
pub(crate) fn id<const D: usize, K: Basic>(tensor: Tensor<D, K>) -> Option<TensorId> {
    fn of(kind: &DispatchTensorKind) -> Option<TensorId> {
        match kind {
            DispatchTensorKind::Capture(tensor) => Some(match tensor {
                BackendTensor::Float(t) | BackendTensor::Int(t) => t.id(),
                BackendTensor::Bool(t) | BackendTensor::Quantized(t) => t.id(),
                BackendTensor::Autodiff(t) => t.primitive().id(),
            }),
            DispatchTensorKind::Autodiff(inner) => of(inner),
            _ => None,
        }
    }
    of(&tensor.into_dispatch().kind)
}

/// A tensor of the same shape and type that stands for `real`.
pub(crate) fn placeholder<const D: usize, K: Basic>(
    real: Tensor<D, K>,
    device: &Device,
    bound: &mut HashMap<TensorId, DispatchTensor>,
) -> Tensor<D, K> {
    let placeholder = Tensor::empty(real.shape(), (device, real.dtype()));
    if let Some(id) = id(placeholder.clone()) {
        bound.insert(id, real.into_dispatch());
    }
    placeholder
}
