//! Samples and their active tokens.

use burn::tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};

/// One sequence, or one example of a classifier: an id and its number of active tokens `T_i ≥ 1`.
///
/// Active tokens are the label positions that count, after the shift and after masking. A
/// classifier has one. The id is free text and is never parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    id: String,
    tokens: u64,
}

impl Sample {
    /// A sample with `tokens` active tokens.
    ///
    /// # Errors
    /// [`Error::NoActiveTokens`] when `tokens` is 0.
    pub fn new(id: impl Into<String>, tokens: u64) -> Result<Self> {
        let id = id.into();
        if tokens == 0 {
            return Err(Error::NoActiveTokens { sample: id });
        }
        Ok(Self { id, tokens })
    }

    /// The sample's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The number of active tokens, at least 1.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

/// The active tokens of a batch of samples, on a device.
///
/// # Shapes
/// `[samples, 1]`, so that it divides the rows of a `[samples, elements]` matrix.
#[derive(Debug, Clone)]
pub struct Tokens(Tensor<2>);

impl Tokens {
    /// The token counts of `samples`.
    pub fn of(samples: &[Sample], device: &Device) -> Self {
        let counts: Vec<f32> = samples.iter().map(|s| s.tokens as f32).collect();
        // In float32 on any device: half precision would round 257 tokens to 256.
        let column = Tensor::<1>::from_data(counts.as_slice(), (device, DType::F32));
        Self(column.reshape([samples.len(), 1]))
    }

    pub(crate) fn column(&self, dtype: DType) -> Tensor<2> {
        self.0.clone().cast(dtype)
    }
}
