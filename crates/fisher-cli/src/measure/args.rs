//! The flags of `fisher measure` and `fisher join`.

use std::path::PathBuf;

use clap::Args;

use super::jobs::part;
use super::loaded::LoadArgs;
use super::per_token::PerToken;
use super::selection::Selection;
use super::values::{Bytes, Kind, MergeScale, Phases, Precision, Scale, Settings, positive, share};
use crate::device::Backend;
use crate::samples::{Part, TaskFile};

/// How the two commands are used together.
pub(crate) const EXAMPLES: &str = "\
Examples:
  Look first whether model and data are fit:
    fisher check --model ./SmolLM-135M --task code=code.jsonl

  Compare two tasks, samples by the gradients of the attention:
    fisher measure --model ./SmolLM-135M --task code=code.jsonl --task chat=chat.jsonl \\
      --compare attention --out out/smol

  Go on after an interruption, or look again with other settings:
    fisher measure .. --resume --interference variant=signed,pool=pooled

  On many machines, as jobs of an array, then joined; the result is that of one run:
    fisher measure .. --part auto --phases 1 --keep-gradients --out out/part-{part}
    fisher join --model ./SmolLM-135M --out out/all out/part-*

  Merge two fine-tuned models by their Fisher, each by its own; the result is in out/code/merged:
    fisher measure --model ./chat-tuned --task chat=chat.jsonl --out out/chat
    fisher measure --model ./code-tuned --task code=code.jsonl --task chat=chat.jsonl \\
      --merge-with ./chat-tuned --merge-run out/chat --phases 1,7 --out out/code";

/// Join the results of several runs of one model, on different samples
///
/// The runs must have measured the same parameters. The result is that of one run over all of their
/// samples: means and variances merge exactly, and gradients are taken over where every run kept
/// them. Any number of runs takes the memory of one. Runs that are not finished, and parts (--part) that are
/// missing, are named with the command that makes up for them.
#[derive(Args, Debug)]
pub struct JoinArgs {
    /// The model that the runs were of
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// How it was loaded
    #[command(flatten)]
    pub loaded: LoadArgs,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Go on with what --out already holds, such as to look again with other settings
    #[arg(long)]
    pub resume: bool,
    /// Join what there is: without runs that are not finished, and without parts that are missing
    #[arg(long)]
    pub partial: bool,
    /// Folders that runs wrote (their --out), such as out/part-*
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// What to look at
    #[command(flatten)]
    pub analysis: AnalysisArgs,
}

/// Fisher information of a Hugging Face checkpoint: which layers and heads a task needs, where two
/// tasks need the same weights, and which of their samples collide.
///
/// The model is a folder with config.json and model.safetensors (one file, or several and their
/// index) of one of thirty families: LLaMA, Mistral, Mixtral, Qwen2 and 3, Gemma 1 to 3, Phi and
/// Phi-3, OLMo 1 to 3, SmolLM3, Granite, StableLM, StarCoder2, Cohere, GPT-2, GPT-J, GPT-NeoX, BLOOM,
/// Falcon, OPT, and BERT, RoBERTa and DistilBERT that tell classes apart. A task is a file of JSON
/// lines, one sample a line:
///
///   {"input_ids": [1, 5, 9], "labels": [-100, 5, 9]}   tokens; labels are optional
///   {"text": "..."}                                    by the folder's tokenizer.json
///   {"prompt": "...", "completion": "..."}             only the completion counts
///   {"text": "...", "label": "..."}                    for a model that tells classes apart
///   {"messages": [{"role": "...", "content": "..."}]}  a chat, by the folder's chat template; only
///                                                      what the assistant says counts
///
/// each with an optional "id". Text is encoded whole, with the tokens that the tokenizer adds before and
/// behind it, which count like all others. Written to --out: report.html to read, report.json and
/// results.safetensors to compute with, statistics.safetensors to merge with others.
///
/// Give --task once to see what a task depends on, and twice to compare two: where they need the same
/// weights, and which of their samples collide.
///
/// `fisher check` tells in minutes whether the model is loaded right and the data is what it should be:
/// call it first. How many samples: intervals of F need about 64 of a task, 5 of them effective (the report
/// counts these), a conflict of pairs is found among 20 conflicting ones or more, and the order of layers
/// and heads takes more still. What the samples do not resolve is told as not resolved.
///
/// `fisher join --help` tells how to join runs on several machines.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub struct MeasureArgs {
    /// Hugging Face folder: config.json, model.safetensors, tokenizer.json for text
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A task and its samples: once, or twice with different names to compare two tasks
    #[arg(long = "task", value_name = "NAME=FILE", required = true)]
    pub tasks: Vec<TaskFile>,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Flags from a file such as the run.toml that every run leaves in --out; flags beside it override
    /// those in it. Relative paths are those of the folder that the program is called in
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The whole command, as run.toml has it.
    #[arg(skip)]
    pub command: String,
    /// Go on with what --out already holds
    #[arg(long)]
    pub resume: bool,
    /// Begin even if memory or disk will not do
    #[arg(long)]
    pub force: bool,
    /// How it is loaded
    #[command(flatten)]
    pub loaded: LoadArgs,
    /// Parameters to measure: all, attention, or a regular expression that is found in their names, such
    /// as 'self_attn\.(q|v)_proj'
    #[arg(
        long,
        value_name = "WHICH",
        default_value = "all",
        help_heading = "What is measured"
    )]
    pub params: Selection,
    /// Parameters whose every element gets a mean and a variance (16 bytes each, for each task):
    /// all, attention, none, or a regular expression. Layers, heads and channels have theirs always
    #[arg(
        long,
        value_name = "WHICH",
        default_value = "all",
        help_heading = "What is measured"
    )]
    pub elements: Selection,
    /// Parameters whose gradients are kept, sample by sample (4 bytes an element), to compare samples
    /// in phases 5 and 6: all, attention, or a regular expression
    #[arg(
        long,
        value_name = "WHICH",
        default_value = "all",
        help_heading = "What is measured"
    )]
    pub compare: Selection,
    /// Which Fisher: whose labels the squared gradients are of
    #[arg(
        long,
        value_enum,
        default_value = "empirical",
        help_heading = "What is measured"
    )]
    pub kind: Kind,
    /// Labels drawn a sample for --kind monte-carlo, a pass over the data each. From 2 on their error is
    /// told
    #[arg(
        long,
        value_name = "K",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "What is measured"
    )]
    pub draws: u32,
    /// Only the first N samples of each task
    #[arg(
        long,
        value_name = "N",
        value_parser = positive,
        conflicts_with = "part",
        help_heading = "Samples"
    )]
    pub samples: Option<usize>,
    /// Only a part of the lines of each file, INDEX/OF: every OF-th, from line INDEX, counted from 0. `auto`,
    /// or no value, takes it from the job array that this is a job of (Slurm, PBS, Grid Engine, LSF, AWS
    /// Batch, Kubernetes..), or from FISHER_PART; `{part}` in --out becomes INDEX
    #[arg(
        long,
        value_name = "INDEX/OF",
        num_args = 0..=1,
        default_missing_value = "auto",
        value_parser = part,
        help_heading = "Samples"
    )]
    pub part: Option<Part>,
    /// Look at some samples token by token, into tokens.json and the report: a number, for the first of each task, or
    /// id: and an id; as often as wanted. A pass a token; not for models that tell classes apart
    #[arg(long, value_name = "N|id:ID", help_heading = "Samples")]
    pub per_token: Vec<PerToken>,
    /// Leave bad lines and samples without a finite gradient out and count them, instead of stopping
    #[arg(long, help_heading = "Samples")]
    pub skip_bad: bool,
    /// Type of the gradients that are kept: full is float32; half is float16, scaled row by row, and
    /// takes half the disk
    #[arg(
        long,
        value_enum,
        default_value = "full",
        help_heading = "What is measured"
    )]
    pub precision: Precision,
    /// Tokens in a batch, padding included. [default: from 64 to 2048, as many as half of --memory
    /// has room for; the same for the same model and --memory]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Resources"
    )]
    pub batch_tokens: Option<u32>,
    /// Samples between two saves of what was collected
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        value_parser = positive,
        help_heading = "Resources"
    )]
    pub save_every: usize,
    /// What to look at
    #[command(flatten)]
    pub analysis: AnalysisArgs,
}

/// What is made of statistics and gradients.
#[derive(Args, Debug, Clone)]
pub struct AnalysisArgs {
    /// Phases: 1 statistics, 2 importance, 3 masks, 4 overlap, 5 conflicts of samples, 6 interference
    /// of heads, 7 models merged and gradients scaled (by --merge-with and --scale); such as 1-4 or
    /// 2,5. Without it all that the tasks and options allow: one task has no 4 to 6
    #[arg(long, value_name = "LIST", help_heading = "What is made of it")]
    pub phases: Option<Phases>,
    /// Shares to prune
    #[arg(
        long,
        value_name = "SHARES",
        value_delimiter = ',',
        value_parser = share,
        allow_negative_numbers = true,
        default_value = "0.5,0.7,0.9",
        help_heading = "What is made of it"
    )]
    pub sparsity: Vec<f64>,
    /// Settings of the interference: `default`, or some of variant, pool, estimate, aggregate,
    /// normalize, epsilon, ridge and ridge_rel as name=value,..; as often as wanted. The text names
    /// the results. [default: `default` and `variant=signed,pool=pooled`]
    #[arg(long, value_name = "SETTINGS", help_heading = "What is made of it")]
    pub interference: Vec<Settings>,
    /// Keep gradients of samples although no phase here compares any, for a run that this one is joined to
    #[arg(long, help_heading = "What is made of it")]
    pub keep_gradients: bool,
    /// Write every gradient that was kept to results.safetensors
    #[arg(long, help_heading = "What is made of it")]
    pub save_gradients: bool,
    /// Write the mean and M2 of every element to results.safetensors too; statistics.safetensors has
    /// them already
    #[arg(long, help_heading = "What is made of it")]
    pub save_elements: bool,
    /// Write cosine and q of every pair of samples by parameter, and their scores by head, to
    /// results.safetensors: as many numbers as there are pairs for each. The report has the counts and
    /// the pairs that stand out
    #[arg(long, help_heading = "What is made of it")]
    pub save_pairs: bool,
    /// Another model of the same shape, trained for the second task: merge the two, this one weighed
    /// by the first task's Fisher, into the folder `merged` of --out
    #[arg(long, value_name = "DIR", help_heading = "What is made of it")]
    pub merge_with: Option<PathBuf>,
    /// A run of that model (its --out) that measured the second task: weigh it by that Fisher, its
    /// own. Without it the second task's Fisher at --model stands for it
    #[arg(
        long,
        value_name = "RUN",
        requires = "merge_with",
        help_heading = "What is made of it"
    )]
    pub merge_run: Option<PathBuf>,
    /// The scale that the two Fishers are brought to before they weigh the models
    #[arg(
        long,
        value_enum,
        default_value = "none",
        help_heading = "What is made of it"
    )]
    pub merge_scale: MergeScale,
    /// Write the first task's first gradient, divided by (F + DAMPING)^POWER; as often as wanted. The
    /// text names the results
    #[arg(
        long,
        value_name = "POWER/DAMPING",
        help_heading = "What is made of it"
    )]
    pub scale: Vec<Scale>,
    /// Seed of everything random
    #[arg(
        long,
        default_value_t = 0,
        allow_negative_numbers = true,
        help_heading = "What is made of it"
    )]
    pub seed: u64,
    /// Memory beside weights and statistics, such as 500MB or 8GiB: half for gradients that are held, the
    /// rest of which stays on disk, half for a batch and then for analyses
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "2GiB",
        help_heading = "Resources"
    )]
    pub memory: Bytes,
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex", help_heading = "Resources")]
    pub device: Backend,
}

impl AnalysisArgs {
    /// Whether these phases need gradients of single samples.
    pub fn keeps_gradients(&self, phases: &[u8]) -> bool {
        let compares = phases.iter().any(|phase| [5, 6].contains(phase));
        compares
            || self.keep_gradients
            || self.save_gradients
            || phases.contains(&7) && !self.scale.is_empty()
    }

    /// Half of the memory: bytes of gradients that are held, and as many that analyses work with.
    pub fn half(&self) -> usize {
        self.memory.0 / 2
    }

    /// The settings of the interference to run.
    pub fn settings(&self) -> Vec<Settings> {
        if !self.interference.is_empty() {
            return self.interference.clone();
        }
        ["default", "variant=signed,pool=pooled"]
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect()
    }
}

impl MeasureArgs {
    /// Put the number of the part where `--out` has `{part}`, with as many digits as the last part's, so that
    /// names sort as numbers do.
    ///
    /// # Errors
    /// When there is no part.
    pub fn place(&mut self) -> Result<(), String> {
        let Some(out) = self.out.to_str().filter(|out| out.contains("{part}")) else {
            return Ok(());
        };
        let part = self
            .part
            .ok_or("--out has {part} in it, and there is no --part")?;
        let digits = (part.of - 1).to_string().len();
        self.out = out
            .replace("{part}", &format!("{:0digits$}", part.index))
            .into();
        Ok(())
    }
}
