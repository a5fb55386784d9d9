//! The command line of `checkpoint`.

use std::path::PathBuf;
use std::str::FromStr;

use burn::module::ParamGroup;
use clap::{Args, Parser};
use fisher_core::{Catalogue, HeadLayout};
use fisher_metrics::{Damping, InterferenceConfig, ScalingConfig};
use serde::{Deserialize, Serialize};

use super::analysis::parse_interference;
use super::jsonl::{Part, TaskFile};
use crate::device::Backend;

/// What the program is to do.
#[derive(Debug)]
pub enum Cli {
    /// Measure a model.
    Run(Run),
    /// Join the results of several runs.
    Merge(Merge),
}

impl Cli {
    /// Read a command line, the program's name first.
    ///
    /// # Errors
    /// What is wrong with it, or the help that was asked for.
    pub fn read(arguments: impl IntoIterator<Item = String>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<String> = arguments.into_iter().collect();
        match arguments.get(1).is_some_and(|first| first == "merge") {
            true => {
                arguments.remove(1);
                Merge::try_parse_from(arguments).map(Self::Merge)
            }
            false => Run::try_parse_from(arguments).map(Self::Run),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  Compare two tasks, samples by the gradients of the attention:
    checkpoint --model ./SmolLM-135M --task code=code.jsonl --task chat=chat.jsonl \\
      --compare attention --out out/smol

  Go on after an interruption, or look again with other settings:
    checkpoint .. --resume --interference variant=signed,pool=pooled

  On two machines, then joined; the result is that of one run:
    checkpoint .. --part 0/2 --out out/first
    checkpoint .. --part 1/2 --out out/second
    checkpoint merge --model ./SmolLM-135M --out out/all out/first out/second

  Merge two fine-tuned models by their Fisher, each by its own; the result is in out/code/merged:
    checkpoint --model ./chat-tuned --task chat=chat.jsonl --out out/chat
    checkpoint --model ./code-tuned --task code=code.jsonl --task chat=chat.jsonl \\
      --merge-with ./chat-tuned --merge-run out/chat --phases 1,7 --out out/code";

/// Join the results of several runs of one model, on different samples
///
/// The runs must have measured the same parameters. The result is that of one run over all of their
/// samples: means and variances merge exactly, and gradients are taken over where every run kept
/// them.
#[derive(Parser, Debug)]
#[command(name = "checkpoint merge", version)]
pub struct Merge {
    /// The model that the runs were of
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Go on with what --out already holds, such as to look again with other settings
    #[arg(long)]
    pub resume: bool,
    /// Folders that runs wrote (their --out)
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// What to look at
    #[command(flatten)]
    pub analysis: Analysis,
}

/// Fisher information of a Hugging Face checkpoint: which layers and heads a task needs, where two
/// tasks need the same weights, and which of their samples collide.
///
/// The model is a folder with config.json and model.safetensors (one file, or several and their
/// index): LLaMA, Mistral, Qwen2 or GPT-2. A task is a file of JSON lines, one sample a line:
///
///   {"input_ids": [1, 5, 9], "labels": [-100, 5, 9]}   tokens; labels are optional
///   {"text": "..."}                                    by the folder's tokenizer.json
///   {"prompt": "...", "completion": "..."}             only the completion counts
///
/// each with an optional "id". Written to --out: report.html to read, report.json and
/// results.safetensors to compute with, statistics.safetensors to merge with others.
///
/// `checkpoint merge --help` tells how to join runs on several machines.
#[derive(Parser, Debug)]
#[command(name = "checkpoint", version, verbatim_doc_comment, after_help = EXAMPLES)]
pub struct Run {
    /// Hugging Face folder: config.json, model.safetensors, tokenizer.json for text
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A task and its samples; give it once, or twice to compare two tasks
    #[arg(long = "task", value_name = "NAME=FILE", required = true)]
    pub tasks: Vec<TaskFile>,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Parameters to measure: all, attention, or a regular expression on their names
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
    /// Only the first N samples of each task
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "part",
        help_heading = "Samples"
    )]
    pub samples: Option<usize>,
    /// Only a part of the lines of each file, INDEX/OF: every OF-th, from line INDEX, counted from 0
    #[arg(long, value_name = "INDEX/OF", help_heading = "Samples")]
    pub part: Option<Part>,
    /// Leave bad lines and samples without a finite gradient out and count them, instead of stopping
    #[arg(long, help_heading = "Samples")]
    pub skip_bad: bool,
    /// Tokens in a batch, padding included
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2048,
        help_heading = "Resources"
    )]
    pub batch_tokens: usize,
    /// Go on with what --out already holds
    #[arg(long, help_heading = "Resources")]
    pub resume: bool,
    /// Samples between two saves of what was collected
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        help_heading = "Resources"
    )]
    pub save_every: usize,
    /// What to look at
    #[command(flatten)]
    pub analysis: Analysis,
}

/// What is made of statistics and gradients.
#[derive(Args, Debug, Clone)]
pub struct Analysis {
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
        default_value = "0.5,0.7,0.9",
        help_heading = "What is made of it"
    )]
    pub sparsity: Vec<f64>,
    /// Settings of the interference: `default`, or some of variant, pool, estimate, aggregate,
    /// normalize, epsilon, ridge and ridge_rel as name=value,..; as often as wanted. The text names
    /// the results. [default: `default` and `variant=signed,pool=pooled`]
    #[arg(long, value_name = "SETTINGS", help_heading = "What is made of it")]
    pub interference: Vec<Settings>,
    /// Test every cell of the interference by relabelling the tasks: slower
    #[arg(long, help_heading = "What is made of it")]
    pub significance: bool,
    /// Write every gradient that was kept to results.safetensors
    #[arg(long, help_heading = "What is made of it")]
    pub save_gradients: bool,
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
    /// Write the first task's first gradient, divided by (F + DAMPING)^POWER; as often as wanted. The
    /// text names the results
    #[arg(
        long,
        value_name = "POWER/DAMPING",
        help_heading = "What is made of it"
    )]
    pub scale: Vec<Scale>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0, help_heading = "What is made of it")]
    pub seed: u64,
    /// Memory for gradients, such as 500MB or 8GiB; what is more stays on disk
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

impl Analysis {
    /// Whether these phases need gradients of single samples.
    pub fn keeps_gradients(&self, phases: &[u8]) -> bool {
        let compares = phases.iter().any(|phase| [5, 6].contains(phase));
        compares || self.save_gradients || phases.contains(&7) && !self.scale.is_empty()
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

/// Some of the parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// All.
    All,
    /// None.
    None,
    /// Those that hold attention heads.
    Attention,
    /// Those whose name in the checkpoint matches.
    Pattern(String),
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "all" => Self::All,
            "none" => Self::None,
            "attention" => Self::Attention,
            pattern => {
                regex(pattern)?;
                Self::Pattern(pattern.into())
            }
        })
    }
}

impl Selection {
    /// Those among the parameters of `catalogue` that are meant; `None` when none is.
    ///
    /// # Errors
    /// When the pattern matches nothing.
    pub fn of(
        &self,
        catalogue: &Catalogue,
        heads: &HeadLayout,
    ) -> Result<Option<ParamGroup>, String> {
        let group = match self {
            Self::All => {
                let paths = catalogue.parameters().iter().map(|p| p.path().to_owned());
                ParamGroup::from_paths(paths.collect())
            }
            Self::None => return Ok(None),
            Self::Attention => heads.group(),
            Self::Pattern(pattern) => regex(pattern)?,
        };
        catalogue.filter(&group).map_err(|e| e.to_string())?;
        Ok(Some(group))
    }
}

fn regex(pattern: &str) -> Result<ParamGroup, String> {
    let group = ParamGroup::from_regex(pattern);
    group.map_err(|e| format!("`{pattern}` is no regular expression: {e:?}"))
}

/// Which phases, from 1 to 7.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases(pub Vec<u8>);

impl FromStr for Phases {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` are no phases: give numbers from 1 to 7, such as 1-4 or 2,5");
        let mut phases = Vec::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let [from, to] = [from, to].map(|n| n.trim().parse::<u8>().ok());
            let (Some(from), Some(to)) = (from, to) else {
                return Err(wrong());
            };
            if from < 1 || to > 7 || from > to {
                return Err(wrong());
            }
            phases.extend(from..=to);
        }
        phases.sort_unstable();
        phases.dedup();
        Ok(Self(phases))
    }
}

/// Settings of the interference, and the text that names their results.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// As it was written.
    pub text: String,
    /// What it means.
    pub config: InterferenceConfig,
}

impl FromStr for Settings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let config = parse_interference(text)?;
        config.init().map_err(|e| format!("`{text}`: {e}"))?;
        Ok(Self {
            text: text.into(),
            config,
        })
    }
}

/// How a gradient is divided: `POWER/DAMPING`, and the text that names the result.
#[derive(Debug, Clone)]
pub struct Scale {
    /// As it was written.
    pub text: String,
    /// What it means.
    pub config: ScalingConfig,
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not POWER/DAMPING, such as 0.5/1e-6");
        let (power, damping) = text.split_once('/').ok_or_else(wrong)?;
        let [power, damping] = [power, damping].map(|n| n.trim().parse::<f64>());
        let (Ok(power), Ok(damping)) = (power, damping) else {
            return Err(wrong());
        };
        let config = ScalingConfig::new()
            .with_power(power)
            .with_damping(Damping::Absolute(damping));
        config.init().map_err(|e| format!("`{text}`: {e}"))?;
        Ok(Self {
            text: text.into(),
            config,
        })
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes(pub usize);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(char::is_alphabetic);
        let unit = match &text[digits.len()..] {
            "" | "B" => 1.0,
            "kB" | "KB" => 1e3,
            "MB" | "M" => 1e6,
            "GB" | "G" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1_048_576.0,
            "GiB" => 1_073_741_824.0,
            unit => {
                return Err(format!(
                    "`{unit}` is no unit; give B, kB, MB, GB, KiB, MiB or GiB"
                ));
            }
        };
        let number: f64 = digits
            .trim()
            .parse()
            .map_err(|_| format!("`{text}` is no size"))?;
        match number.is_finite() && number > 0.0 {
            true => Ok(Self((number * unit) as usize)),
            false => Err(format!("`{text}` is no size above 0")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Run::command().debug_assert();
        Merge::command().debug_assert();
    }

    #[test]
    fn values_are_read_or_refused() {
        assert_eq!("2,4-6".parse(), Ok(Phases(vec![2, 4, 5, 6])));
        for wrong in ["", "0", "8", "4-2", "a"] {
            assert!(wrong.parse::<Phases>().is_err(), "{wrong}");
        }
        assert_eq!("8GiB".parse(), Ok(Bytes(8 << 30)));
        assert_eq!("500MB".parse(), Ok(Bytes(500_000_000)));
        assert!("8 apples".parse::<Bytes>().is_err() && "-1".parse::<Bytes>().is_err());
        let settings: Settings = "ridge=0.0,ridge_rel=0.01".parse().expect("settings");
        assert_eq!(
            (settings.config.ridge.ridge, settings.config.ridge.ridge_rel),
            (0.0, 0.01)
        );
        for wrong in [
            "variant",
            "colour=red",
            "variant=loud",
            "variant=symmetric,normalize=per_token_mean",
        ] {
            assert!(wrong.parse::<Settings>().is_err(), "{wrong}");
        }
        let scale: Scale = "0.5/1e-6".parse().expect("power and damping");
        assert_eq!(scale.text, "0.5/1e-6");
        for wrong in ["1", "a/1", "1/0", "-1/1"] {
            assert!(wrong.parse::<Scale>().is_err(), "{wrong}");
        }
        assert!("a=b.jsonl".parse::<TaskFile>().is_ok() && "b.jsonl".parse::<TaskFile>().is_err());
        assert!("3/4".parse::<Part>().is_ok() && "4/4".parse::<Part>().is_err());
    }
}
