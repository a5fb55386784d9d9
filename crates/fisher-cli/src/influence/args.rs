//! The flags of `fisher influence`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::device::Backend;
use crate::measure::{Bytes, LoadArgs, Selection, positive};
use crate::samples::TaskFile;

const EXAMPLES: &str = "\
Examples:
  Which of the samples that a model was tuned on make it say what it says, by the attention's weights:
    fisher influence --model ./tuned --train data=train.jsonl --query said.jsonl --params attention \\
      --gradients out/index --out out/influence.json

  Other questions to the same samples, whose gradients are not computed again:
    fisher influence --model ./tuned --train data=train.jsonl --query more.jsonl --params attention \\
      --gradients out/index";

/// Which training samples help, and which harm, what a model is asked
///
/// A step of natural gradient on training sample i changes the loss of query j by -e τ, with τ = g_jᵀ (F + λ)⁻¹ g_i: above 0 it
/// helps. That is what would happen near these weights, to first order; training again without a sample may do something else.
///
/// EKFAC takes two passes over the training samples' gradients, of which the second is read from where they are kept.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InfluenceArgs {
    /// Hugging Face folder: config.json, model.safetensors, tokenizer.json for text
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// How it is loaded
    #[command(flatten)]
    pub loaded: LoadArgs,
    /// The training samples, under a name
    #[arg(long, value_name = "NAME=FILE")]
    pub train: TaskFile,
    /// Samples whose losses are asked about
    #[arg(long, value_name = "FILE")]
    pub query: PathBuf,
    /// What is inverted
    #[arg(long, value_enum, default_value = "ekfac")]
    pub inverse: Inverted,
    /// λ as a multiple of the mean eigenvalue of each parameter; of the trace over the number of samples for --inverse exact
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub damping: f64,
    /// Parameters whose gradients are compared: all, attention, or a regular expression that is found in their names
    #[arg(long, value_name = "WHICH", default_value = "all")]
    pub params: Selection,
    /// The first samples of the training file only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub samples: Option<usize>,
    /// Tokens in a batch, padding included
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    pub batch_tokens: usize,
    /// Samples of either kind that are named for each query
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub top: usize,
    /// A folder for the gradients of training samples: they are kept there, and read the next time. Without it they are held in
    /// memory
    #[arg(long, value_name = "DIR")]
    pub gradients: Option<PathBuf>,
    /// Memory for gradients, such as 8GiB
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    pub memory: Bytes,
    /// Write all scores to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    pub device: Backend,
}

/// What is inverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Inverted {
    /// The whole Fisher of the training samples, by their inner products: up to some 10 000 samples
    Exact,
    /// Kronecker products with corrected eigenvalues
    Ekfac,
    /// Kronecker products
    Kfac,
    /// Nothing: inner products of gradients
    Identity,
}
