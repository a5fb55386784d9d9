//! Tensors as a safetensors file has them, and their names.

use burn::tensor::{DType, TensorData};
use safetensors::tensor::Dtype;

use super::source::Source;

pub(crate) fn data(name: &str, tensor: &Source) -> Result<TensorData, String> {
    let dtype = match tensor.dtype() {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        other => {
            return Err(format!(
                "`{name}` is of type {other:?}, expected F64 or F32"
            ));
        }
    };
    let bytes = tensor.bytes().map_err(|e| e.to_string())?.into_owned();
    let elements = bytes.len() / dtype.size();
    Ok(TensorData::from_bytes_vec(bytes, [elements], dtype))
}

/// Values of a tensor of uint32.
pub(crate) fn indices(name: &str, tensor: &Source, shape: &[usize]) -> Result<Vec<u32>, String> {
    if tensor.dtype() != Dtype::U32 || tensor.shape() != shape {
        return Err(format!("`{name}` is no uint32 of shape {shape:?}"));
    }
    let bytes = tensor.bytes().map_err(|e| e.to_string())?;
    let values = bytes.chunks_exact(4);
    let values = values.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(values.collect())
}

/// Values of a tensor of float64.
pub(crate) fn floats(name: &str, tensor: &Source, shape: &[usize]) -> Result<Vec<f64>, String> {
    if tensor.dtype() != Dtype::F64 || tensor.shape() != shape {
        return Err(format!("`{name}` is no float64 of shape {shape:?}"));
    }
    let bytes = tensor.bytes().map_err(|e| e.to_string())?;
    let values = bytes.as_chunks::<8>().0.iter();
    Ok(values.map(|bytes| f64::from_le_bytes(*bytes)).collect())
}

/// `/` ends a task's name in tensor names, so it may not be in it; `%` is only before what it stands
/// for, so no name begins with `%g`.
pub(crate) fn encode(task: &str) -> String {
    task.replace('%', "%25").replace('/', "%2F")
}
