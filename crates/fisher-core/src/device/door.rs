//! Tensors of Burn as CubeCL's, and back.

use std::any::Any;

use burn::backend::{BackendTypes, Cube};
use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;

type Primitive = <Cube as BackendTypes>::FloatTensorPrimitive;

/// The tensor on its CubeCL device. `None` for other devices, and where operations are fused: then the
/// values may not be there yet.
pub(super) fn open<const D: usize>(tensor: Tensor<D>) -> Option<CubeTensor> {
    let primitive = tensor.try_into_primitive::<Cube>().ok()?;
    // With fusion the type is another.
    let primitive: Box<dyn Any> = Box::new(primitive);
    primitive.downcast().ok().map(|cube| *cube)
}

/// Whether a tensor opens.
pub(crate) fn opens<const D: usize>(tensor: &Tensor<D>) -> bool {
    open(tensor.clone()).is_some()
}

/// The other way; `None` as above.
pub(super) fn close<const D: usize>(tensor: CubeTensor) -> Option<Tensor<D>> {
    let tensor: Box<dyn Any> = Box::new(tensor);
    let primitive: Box<Primitive> = tensor.downcast().ok()?;
    Some(Tensor::from_primitive::<Cube>(*primitive))
}
