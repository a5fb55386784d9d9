//! What the `config.json` of each family means: a dialect, which is data. Defaults are those of
//! transformers.

mod dialect;
mod encoders;
mod experts;
mod gemma;
mod gpt;
mod layer_norms;
mod llama;
mod setting;
mod windows;

pub(super) use dialect::Dialect;
pub(super) use encoders::{BERT, DISTILBERT, ROBERTA};
pub(super) use experts::{MIXTRAL, QWEN2_MOE, QWEN3_MOE};
pub(super) use gemma::{GEMMA, GEMMA2, GEMMA3};
pub(super) use gpt::{BLOOM, FALCON, GPT2, GPTJ, OPT};
pub(super) use layer_norms::{COHERE, COHERE2, GPT_NEOX, PHI, STABLELM, STARCODER2};
pub(super) use llama::{GRANITE, LLAMA, MISTRAL, OLMO, OLMO2, OLMO3, PHI3, QWEN2, QWEN3, SMOLLM3};
