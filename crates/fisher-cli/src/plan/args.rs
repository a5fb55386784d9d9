//! The flags of `fisher plan`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;

use crate::device::Backend;
use crate::measure::{Result, Selection, positive};
use crate::samples::{TaskFile, there};

const EXAMPLES: &str = "\
Examples:
  Bits for each matrix, 4.5 on average, and whether it does better than the same bits for all, on other samples:
    fisher measure --model ./SmolLM-135M --task code=code.jsonl --compare all --out out/code
    fisher plan --run out/code --model ./SmolLM-135M --bits 4.5 --verify code=code-held-out.jsonl

  Ranks for a LoRA with as many parameters as one of rank 16:
    fisher plan --run out/code --rank 16 --params 'self_attn\\.(q|v)_proj'";

/// Bits for each tensor of a quantized model, or ranks for each matrix of a LoRA, under a budget
///
/// Bits: rounding a tensor to b bits (to nearest, symmetric, a scale for every group of weights that follow
/// each other along the inputs) moves its weights by Δ. Its loss is predicted to rise by ½ Σ F Δ², in nats a token, with Δ
/// from the weights and F from the run; the sum over tensors is made small.
///
/// Ranks: an adapter of rank r can follow r directions. The part of the squared gradient that lies in the r
/// inputs, or outputs, of a matrix where there is most of it is what it follows at least; the sum over matrices is made large.
///
/// Tensors whose scores the samples cannot tell apart get the same level, so far as the budget goes. Scores of single
/// samples come from the gradients that the run kept (--compare); without those, errors of elements are added up as if all moved
/// together, which tells few tensors apart.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("budget").required(true).args(["bits", "rank"])))]
pub struct PlanArgs {
    /// A finished run of `fisher measure` or `fisher join` (its --out), with F of every element
    #[arg(long, value_name = "RUN")]
    pub run: PathBuf,
    /// The model that the run was of; --bits needs its weights
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Bits of a weight on average, such as 4.5; scales come on top
    #[arg(long, value_name = "BITS", value_parser = bits, allow_negative_numbers = true)]
    pub bits: Option<f64>,
    /// The rank of a LoRA with as many parameters, the same for every matrix
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u32).range(1..))]
    pub rank: Option<u32>,
    /// The task whose loss counts; all tasks alike without it
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// Matrices to plan for: all, attention, or a regular expression that is found in their names
    #[arg(long, value_name = "WHICH", default_value = "all")]
    pub params: Selection,
    /// Bits to choose from
    #[arg(
        long,
        value_name = "BITS",
        value_delimiter = ',',
        default_value = "2,3,4,5,6,8",
        value_parser = clap::value_parser!(u32).range(2..=16)
    )]
    pub widths: Vec<u32>,
    /// Weights that share a scale
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub group_size: u32,
    /// Which differences between tensors are made use of
    #[arg(long, value_enum, default_value = "resolved")]
    pub distinctions: Distinctions,
    /// Round the model and measure its loss on these samples: best on others than those of the run. As often as wanted
    #[arg(long, value_name = "NAME=FILE", requires = "bits")]
    pub verify: Vec<TaskFile>,
    /// Only the first N samples of each file of --verify
    #[arg(long, value_name = "N", value_parser = positive, requires = "verify")]
    pub samples: Option<usize>,
    /// Tokens in a batch of --verify, padding included
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = positive)]
    pub batch_tokens: usize,
    /// The file to write. [default: plan-bits.json or plan-rank.json in the run's folder]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print the plan as JSON and nothing else; write no file
    #[arg(long, conflicts_with = "out")]
    pub json: bool,
    /// Seed of bootstrap draws
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    pub device: Backend,
}

/// Read `--bits`.
fn bits(text: &str) -> std::result::Result<f64, String> {
    let bits = text.parse().ok().filter(|bits| (0.0..=16.0).contains(bits));
    bits.ok_or_else(|| "give bits of a weight on average, up to 16, such as 4.5".into())
}

impl PlanArgs {
    /// What is wrong with them whatever the run and the model are.
    ///
    /// # Errors
    /// The first such thing.
    pub(super) fn sensible(&self) -> Result {
        if self.bits.is_some() && self.model.is_none() {
            return Err("--bits rounds weights: give their --model".into());
        }
        if let (Some(bits), Some(lowest)) = (self.bits, self.widths.iter().min())
            && bits < f64::from(*lowest)
        {
            return Err(format!(
                "--bits {bits} is below the lowest levels: --widths begins at {lowest}"
            )
            .into());
        }
        if self.params == Selection::None {
            return Err("--params none leaves nothing to plan for".into());
        }
        Ok(self.verify.iter().try_for_each(there)?)
    }
}

/// Which differences between tensors a plan makes use of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Distinctions {
    /// Those that the samples resolve: other tensors get the same level
    Resolved,
    /// All: every tensor by its own estimate, right or wrong
    All,
}
