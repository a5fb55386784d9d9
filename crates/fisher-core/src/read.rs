//! The numbers of a tensor on the host.

use burn::tensor::Tensor;

use crate::error::{Error, Result};

/// In float64, whatever they were computed in.
///
/// # Errors
/// [`Error::Device`] when the device does not give them.
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>> {
    let data = tensor.try_into_data().map_err(Error::device)?;
    Ok(data.iter::<f64>().collect())
}
