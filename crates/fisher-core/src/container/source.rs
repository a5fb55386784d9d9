//! Tensors whose bytes are asked for when they are needed: a file may be larger than memory.

use std::borrow::Cow;

use burn::tensor::{DType, TensorData};
use safetensors::Dtype;

use crate::error::{Error, Result};

/// A tensor of a file: its type and shape are known, its bytes are asked for when they are written
/// or read.
///
/// `E` is what can go wrong there.
pub struct Source<'a, E = Error> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Box<dyn Fn() -> Result<Cow<'a, [u8]>, E> + 'a>,
}

impl<'a, E> Source<'a, E> {
    /// A tensor whose little-endian bytes `bytes` gives: the same ones whenever it is asked.
    pub fn new(
        dtype: Dtype,
        shape: impl Into<Vec<usize>>,
        bytes: impl Fn() -> Result<Cow<'a, [u8]>, E> + 'a,
    ) -> Self {
        Self {
            dtype,
            shape: shape.into(),
            bytes: Box::new(bytes),
        }
    }

    /// Values in float64 that `values` gives.
    pub fn float64(
        shape: impl Into<Vec<usize>>,
        values: impl Fn() -> Result<Vec<f64>, E> + 'a,
    ) -> Self {
        Self::new(Dtype::F64, shape, move || {
            let mut bytes = Vec::new();
            let values = values()?;
            bytes.reserve_exact(8 * values.len());
            values.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
            Ok(Cow::Owned(bytes))
        })
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        let elements = self.shape.iter().product::<usize>();
        elements * self.dtype.bitsize() / 8
    }

    /// Its bytes.
    ///
    /// # Errors
    /// What kept them from being had.
    pub fn bytes(&self) -> Result<Cow<'a, [u8]>, E> {
        (self.bytes)()
    }
}

impl<E> std::fmt::Debug for Source<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.dtype, self.shape)
    }
}

impl From<TensorData> for Source<'_> {
    fn from(data: TensorData) -> Self {
        let (bytes, shape, dtype) = data.into_parts();
        Self::new(dtype_of(dtype), shape.to_vec(), move || {
            Ok(Cow::Owned(bytes.to_vec()))
        })
    }
}

/// What safetensors calls a type of numbers.
///
/// # Panics
/// For a type that no file of this library has.
pub(crate) fn dtype_of(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        other => panic!("tensors of type {other:?} are not written"),
    }
}
