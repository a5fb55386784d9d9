//! Tensors in another type.

use burn::tensor::{DType, Tensor};

/// A tensor in another type, if it has not that type already.
pub(super) fn cast<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
