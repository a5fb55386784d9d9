//! How a model is loaded.

use burn::tensor::DType;

use super::adapter::Adapter;

/// How a model is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loading {
    /// A low-rank adapter on it. Its two factors of each matrix are all that trains, unless it is merged.
    pub adapter: Option<Adapter>,
    /// The type of its weights.
    pub weights: WeightType,
}

/// The type that weights have on the device, and that the model computes in: norms, rotations and losses are
/// computed in float32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// Whatever the files have becomes float32
    #[default]
    Float32,
    /// As the files have them, which must be bfloat16: half the memory for them, and two or three digits of
    /// what is computed; gradients and sums are taken in float32 and float64
    #[value(name = "bfloat16")]
    BFloat16,
}

impl From<WeightType> for DType {
    fn from(weights: WeightType) -> Self {
        match weights {
            WeightType::Float32 => Self::F32,
            WeightType::BFloat16 => Self::BF16,
        }
    }
}
