//! The flags of `fisher check`.

use std::path::PathBuf;

use clap::Args;

use crate::device::Backend;
use crate::measure::{LoadArgs, positive};
use crate::samples::TaskFile;

/// Tell in minutes whether a model and its data are fit to be measured, before hours of work
///
/// Looks at every weight, at the first 10 000 samples of each task (special tokens that come twice, repeated samples, one text under two classes, lines that
/// are left out), and at a few samples of each, evenly spread over those: their loss, and whether gradients and losses depend on the engine,
/// on what else is in the batch, and on padding. A loss above ln(vocabulary), or ln(classes) of a classifier, which equal
/// probabilities for all have, is the first sign of a model that was loaded wrong.
///
/// Ends with code 1 where something is wrong; a warning is not. What is fine here is what was tested: a model with a wrong field in config.json
/// is not found out but by its loss.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Hugging Face folder: config.json, model.safetensors, tokenizer.json for text
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// How it is loaded
    #[command(flatten)]
    pub loaded: LoadArgs,
    /// A task and its samples, as often as wanted
    #[arg(long = "task", value_name = "NAME=FILE", required = true)]
    pub tasks: Vec<TaskFile>,
    /// Samples of each task whose losses and gradients are looked at
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
    /// Tokens in a batch, padding included
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = positive)]
    pub batch_tokens: usize,
    /// Write what was found to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print what was found as JSON and nothing else
    #[arg(long)]
    pub json: bool,
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    pub device: Backend,
}
