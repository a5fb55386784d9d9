//! Values of tensors in the host's memory, read where they are.

use std::ops::Deref;

#[cfg(feature = "flex")]
use burn::backend::{BackendTypes, Flex};
use burn::tensor::{Element, Tensor};
use bytemuck::Pod;

use crate::error::{Error, Result};

#[cfg(feature = "flex")]
type FlexTensor = <Flex as BackendTypes>::FloatTensorPrimitive;

/// The values of a tensor, row by row.
#[derive(Debug, Clone)]
pub(crate) enum Values<E> {
    /// In the tensor's own memory; of type `E`, without gaps.
    #[cfg(feature = "flex")]
    Borrowed(FlexTensor),
    Owned(Vec<E>),
}

impl<E: Element + Pod> Values<E> {
    /// Copied only where the tensor is of another type, has gaps, or its device keeps its memory to
    /// itself.
    pub(crate) fn of<const D: usize>(tensor: Tensor<D>) -> Result<Self> {
        #[cfg(feature = "flex")]
        if let Ok(flex) = tensor.clone().try_into_primitive::<Flex>() {
            let flex = flex.to_contiguous();
            if flex.as_slice::<E>().is_some() {
                return Ok(Self::Borrowed(flex));
            }
        }
        take(tensor).map(Self::Owned)
    }
}

impl<E: Element + Pod> Deref for Values<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        match self {
            #[cfg(feature = "flex")]
            Self::Borrowed(flex) => flex.as_slice().unwrap_or_default(),
            Self::Owned(values) => values,
        }
    }
}

/// The values, without a copy where nobody else holds the tensor.
pub(crate) fn take<E: Element, const D: usize>(tensor: Tensor<D>) -> Result<Vec<E>> {
    let data = tensor.try_into_data().map_err(Error::device)?;
    data.try_into_vec()
        .map_err(|e| Error::device(format!("{e:?}")))
}
