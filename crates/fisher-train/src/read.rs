//! The numbers of a tensor on the host.

use burn::tensor::Tensor;
use fisher_core::Error as CoreError;

/// In float64, whatever they were computed in.
pub(crate) fn read(tensor: Tensor<1>) -> fisher_core::Result<Vec<f64>> {
    let data = tensor.try_into_data().map_err(|e| CoreError::Device {
        reason: e.to_string(),
    })?;
    Ok(data.iter::<f64>().collect())
}
