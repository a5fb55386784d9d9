//! Models of Hugging Face checkpoints on Burn. A folder's config.json and weights become one transformer,
//! put together from parts, and its parameters keep the names that the files have. A family of models is
//! data: what its parts are called, and which ones its config.json asks for.

mod adapter;
mod attention;
mod cast;
mod config;
mod error;
mod experts;
mod families;
mod fields;
mod files;
mod folder;
mod load;
mod loading;
mod mlp;
mod names;
mod norm;
mod outcomes;
mod projection;
mod rope;
mod sequences;
mod shape;
mod shapes;
mod tensors;
mod transformer;

pub use adapter::Adapter;
pub use attention::{Attention, Positions};
pub use config::ModelConfig;
pub use error::{Error, Result};
pub use experts::Experts;
pub(crate) use files::Stored;
pub use load::Checkpoint;
pub use loading::{Loading, WeightType};
pub use mlp::Mlp;
pub use names::{Named, Naming};
pub use norm::{HeadNorm, Norm};
pub use outcomes::Outcomes;
pub use projection::{Lora, Projection};
pub use rope::Rope;
pub use sequences::{Sequence, Sequences};
pub use shape::{
    Activation, Alibi, AttentionShape, EmbeddingShape, ExpertsShape, Gate, LayerShape, Longest,
    MlpShape, NormKind, NormShape, Order, Output, QkNorm, Shape,
};
pub(crate) use tensors::TensorFile;
pub use tensors::WeightReader;
pub use transformer::Transformer;
