//! Decoders of Hugging Face checkpoints on Burn: LLaMA, Mistral, Qwen2 and GPT-2. A folder's
//! config.json and weights become a module, and its parameters keep the names that the files have.

mod attention;
mod config;
mod error;
mod files;
mod gpt2;
mod llama;
mod load;
mod names;
mod sequences;
mod tensors;

pub use attention::{Rotation, causal_attention, split_heads};
pub use config::{Architecture, Gpt2Config, LlamaConfig, Longest, ModelConfig};
pub use error::{Error, Result};
pub(crate) use files::Stored;
pub use gpt2::Gpt2;
pub use llama::Llama;
pub use load::{Checkpoint, Model};
pub use names::{Named, Naming};
pub use sequences::{Sequence, Sequences};
pub(crate) use tensors::TensorFile;
pub use tensors::WeightReader;
