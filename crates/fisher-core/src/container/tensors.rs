//! Tensors as a safetensors file has them, and their names.

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, TensorView};

pub(crate) fn data(name: &str, view: &TensorView) -> Result<TensorData, String> {
    let dtype = match view.dtype() {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        other => {
            return Err(format!(
                "`{name}` is of type {other:?}, expected F64 or F32"
            ));
        }
    };
    let elements = view.data().len() / dtype.size();
    Ok(TensorData::from_bytes_vec(
        view.data().to_vec(),
        [elements],
        dtype,
    ))
}

/// Values of a tensor of uint32.
pub(crate) fn indices(name: &str, view: &TensorView, shape: &[usize]) -> Result<Vec<u32>, String> {
    if view.dtype() != Dtype::U32 || view.shape() != shape {
        return Err(format!("`{name}` is no uint32 of shape {shape:?}"));
    }
    let values = view.data().chunks_exact(4);
    let values = values.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(values.collect())
}

pub(crate) fn view(data: &TensorData) -> Result<TensorView<'_>, String> {
    let dtype = match data.dtype() {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        other => return Err(format!("tensors of type {other:?} are not written")),
    };
    TensorView::new(dtype, data.shape().to_vec(), data.as_bytes()).map_err(|e| e.to_string())
}

/// `/` ends a task's name in tensor names, so it may not be in it; `%` is only before what it stands
/// for, so no name begins with `%g`.
pub(crate) fn encode(task: &str) -> String {
    task.replace('%', "%25").replace('/', "%2F")
}
