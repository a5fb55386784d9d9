//! The program from its arguments to its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::{Module, ParamGroup};
use burn::tensor::Device;
use clap::{Args, Parser, Subcommand};
use fisher_core::{
    Catalogue, GradientStore, HeadLayout, Statistics, StatisticsConfig, StoreConfig, hash_weights,
};
use fisher_train::{Checkpoint as Saving, CollectorConfig, SampleLoss};
use serde_json::json;

use super::analysis::{Findings, Plan, parse_interference};
use super::page::Page;
use super::results::{Order, Tensors, report};
use crate::decoder::{Checkpoint, Decoder, Sequence, TokenBatch};
use crate::device::Backend;
use crate::jsonl::{self, Limits};
use crate::memory::resident;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Which layers and heads of a checkpoint do your tasks depend on, and where do their samples collide?
///
/// Reads a Hugging Face folder (LLaMA, Mistral, Qwen2, GPT-2) and one or two files of samples as
/// JSON lines; writes statistics.safetensors (mean and variance of the diagonal empirical Fisher),
/// results.safetensors, report.json and report.html.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Do>,
    #[command(flatten)]
    analyse: Option<Analyse>,
}

#[derive(Subcommand, Debug)]
enum Do {
    /// Join statistics of shards of the data: the result is that of one run over all
    Merge {
        /// Where to write
        #[arg(long)]
        out: PathBuf,
        /// Files of statistics of the same model, of other samples
        #[arg(required = true, num_args = 2..)]
        statistics: Vec<PathBuf>,
    },
}

#[derive(Args, Debug)]
struct Analyse {
    /// Folder with config.json, model.safetensors and, for text, tokenizer.json
    #[arg(long)]
    model: PathBuf,
    /// A task and its samples, NAME=FILE.jsonl; twice to compare two tasks
    #[arg(long = "task", required = true, value_parser = named)]
    tasks: Vec<(String, PathBuf)>,
    /// Folder for the results
    #[arg(long)]
    out: PathBuf,
    /// Phases: 1 statistics, 2 importance, 3 masks, 4 overlap, 5 conflicts, 6 interference
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3, 4, 5, 6], value_parser = clap::value_parser!(u8).range(1..=6))]
    phases: Vec<u8>,
    /// Only parameters whose name contains this; may be given several times
    #[arg(long)]
    params: Vec<String>,
    /// Gradients of single samples only of the attention: what phase 6 needs
    #[arg(long)]
    attention_only: bool,
    /// At most so many samples of each task
    #[arg(long)]
    samples: Option<usize>,
    /// Tokens of a batch, padding included
    #[arg(long, default_value_t = 2048)]
    batch_tokens: usize,
    /// Bytes to work with in phases 5 and 6, and of gradients to hold in memory
    #[arg(long, default_value_t = 1 << 30)]
    memory: usize,
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    device: Backend,
    /// Seed of relabellings
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on where a run with the same arguments was stopped
    #[arg(long)]
    resume: bool,
    /// Leave bad lines out, and count them
    #[arg(long)]
    skip_bad: bool,
    /// Write the gradients of single samples into results.safetensors, too
    #[arg(long)]
    save_gradients: bool,
    /// Shares of groups that masks remove
    #[arg(long, value_delimiter = ',', default_values_t = [0.5, 0.7, 0.9])]
    sparsities: Vec<f64>,
    /// Settings of interference: `default`, or variant=signed,pool=pooled,.. of variant, pool, estimate,
    /// aggregate, normalize, epsilon, ridge, ridge_rel; several times for several maps
    #[arg(long, default_values_t = ["default".to_owned(), "variant=signed,pool=B".to_owned()])]
    interference: Vec<String>,
    /// Relabellings of tests that cannot try all
    #[arg(long, default_value_t = 10_000)]
    relabellings: usize,
}

fn named(text: &str) -> std::result::Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.into(), file.into()))
        }
        _ => Err("it is not of the form NAME=FILE".into()),
    }
}

impl Arguments {
    /// Do what is asked for.
    ///
    /// # Errors
    /// What went wrong, naming the file, line, tensor or setting.
    pub fn run(&self) -> Result {
        match (&self.command, &self.analyse) {
            (Some(Do::Merge { out, statistics }), _) => merge(out, statistics),
            (None, Some(analyse)) => analyse.run(),
            (None, None) => Err("nothing to do; see --help".into()),
        }
    }
}

fn merge(out: &Path, files: &[PathBuf]) -> Result {
    let device = Device::flex();
    let mut files = files.iter();
    let first = files.next().ok_or("no files")?;
    let mut all: Statistics = Statistics::load(first, &device)?;
    for file in files {
        let other = Statistics::load(file, &device)?;
        all.merge(other)
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    all.save(out)?;
    for task in all.tasks() {
        println!("{task}: {} samples", all.task(task)?.count());
    }
    Ok(())
}

/// The folder's `tokenizer.json`, if there is one.
#[cfg(feature = "text")]
fn tokenizer(
    folder: &Path,
) -> Result<impl Fn(&str, bool) -> std::result::Result<Vec<i64>, String>> {
    let path = folder.join("tokenizer.json");
    let tokenizer = match path.exists() {
        true => Some(tokenizers::Tokenizer::from_file(&path).map_err(|e| e.to_string())?),
        false => None,
    };
    Ok(move |text: &str, special: bool| {
        let tokenizer = tokenizer.as_ref();
        let tokenizer = tokenizer.ok_or("there is no tokenizer.json beside the model")?;
        let encoding = tokenizer.encode(text, special).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    })
}

#[cfg(not(feature = "text"))]
#[allow(clippy::unnecessary_wraps, reason = "as with the feature")]
fn tokenizer(
    _folder: &Path,
) -> Result<impl Fn(&str, bool) -> std::result::Result<Vec<i64>, String>> {
    Ok(|_text: &str, _special: bool| {
        Err(
            "this program was built without tokenizers; build it with `--features text`, or give \
             `input_ids`"
                .into(),
        )
    })
}

/// `L_i` by task and id.
type Losses = BTreeMap<String, BTreeMap<String, f64>>;

/// What a run works on.
struct Session<'a> {
    arguments: &'a Analyse,
    device: Device,
    checkpoint: Checkpoint,
    catalogue: Catalogue,
    heads: HeadLayout,
    tasks: Vec<(String, Vec<Vec<Sequence>>)>,
    order: Order,
    plan: Plan,
    warnings: Vec<String>,
}

impl Analyse {
    fn run(&self) -> Result {
        let start = Instant::now();
        let mut session = Session::open(self)?;
        std::fs::create_dir_all(&self.out)?;
        let (statistics, store) = session.collect()?;
        let losses = session.losses()?;
        let names: Vec<String> = session.tasks.iter().map(|(name, _)| name.clone()).collect();
        let findings = session.plan.run(
            &names,
            &statistics,
            &session.checkpoint.weights,
            store.as_ref(),
            &session.heads,
            &session.device,
        )?;
        session.write(&statistics, store.as_ref(), &losses, &findings)?;
        let seconds = start.elapsed().as_secs_f64();
        let peak =
            resident("VmHWM:").map_or(String::new(), |gb| format!(", peak memory {gb:.2} GB"));
        println!("{:.0} s{peak}; see {}", seconds, self.out.display());
        Ok(())
    }
}

impl<'a> Session<'a> {
    fn open(arguments: &'a Analyse) -> Result<Self> {
        if arguments.tasks.len() > 2 {
            return Err("one or two tasks can be analysed at a time".into());
        }
        let device = arguments.device.device()?;
        let interference = arguments.interference.iter();
        let interference = interference.map(|text| Ok((text.clone(), parse_interference(text)?)));
        let plan = Plan {
            phases: arguments.phases.clone(),
            sparsities: arguments.sparsities.clone(),
            interference: interference.collect::<Result<_>>()?,
            relabellings: arguments.relabellings,
            memory: arguments.memory,
            seed: arguments.seed,
            progress: true,
        };
        let checkpoint = Checkpoint::open(&arguments.model, &device.clone().autodiff())?;
        let all = checkpoint.names.catalogue(&checkpoint.decoder)?;
        let catalogue = match &*arguments.params {
            [] => all,
            params => all.filter(&ParamGroup::from_any_predicates(params.to_vec()))?,
        };
        let heads = HeadLayout::recognize(&catalogue, &checkpoint.config.attention())?;
        let encode = tokenizer(&arguments.model)?;
        let limits = Limits {
            vocabulary: checkpoint.config.vocabulary(),
            context: checkpoint.config.context(),
        };
        let (mut tasks, mut warnings, mut order) = (Vec::new(), Vec::new(), Order::new());
        for (name, file) in &arguments.tasks {
            let (most, skip) = (arguments.samples, arguments.skip_bad);
            let samples = jsonl::read(file, &encode, limits, most, skip)?;
            for bad in &samples.bad {
                warnings.push(format!("left out {bad}"));
            }
            println!(
                "{name}: {} samples, {} bad lines left out",
                samples.sequences.len(),
                samples.bad.len()
            );
            let ids = samples.sequences.iter().map(|s| s.id.clone()).collect();
            order.insert(name.clone(), ids);
            let batches = jsonl::batches(samples.sequences, arguments.batch_tokens);
            tasks.push((name.clone(), batches));
        }
        Ok(Self {
            arguments,
            device,
            checkpoint,
            catalogue,
            heads,
            tasks,
            order,
            plan,
            warnings,
        })
    }

    /// Statistics of all tasks and, if samples are to be compared, their gradients.
    fn collect(&mut self) -> Result<(Statistics, Option<GradientStore>)> {
        let out = &self.arguments.out;
        let (partial, gradients) = (out.join("partial.safetensors"), out.join("gradients"));
        if !self.arguments.resume {
            remove(&partial)?;
            if gradients.exists() {
                std::fs::remove_dir_all(&gradients)?;
            }
        }
        let weights = hash_weights(&self.checkpoint.decoder)?;
        let config = StatisticsConfig::new().with_seed(Some(self.arguments.seed));
        let fresh = config.init_for(&self.catalogue, &self.heads, weights.clone(), &self.device)?;
        let compares = self.plan.compares_samples() || self.arguments.save_gradients;
        let mut store = match compares {
            true => {
                let only = self.arguments.attention_only.then(|| self.heads.group());
                let config = StoreConfig::new(self.arguments.memory)
                    .with_folder(Some(gradients))
                    .with_only(only);
                Some(config.init_for(&self.catalogue, weights)?)
            }
            false => None,
        };
        let collector = CollectorConfig::new()
            .with_checkpoint(Some(Saving::new(partial.clone(), 64)))
            .init()
            .with_names(self.checkpoint.names.clone());
        let mut statistics: Statistics = collector.resume(fresh)?;
        let device = self.device.clone().autodiff();
        for (task, batches) in &self.tasks {
            let batches = batches.iter().map(|batch| TokenBatch::new(batch, &device));
            let model = &self.checkpoint.decoder;
            let collected = match &mut store {
                Some(store) => {
                    collector.collect_batches(model, task, batches, (&mut statistics, store))?
                }
                None => collector.collect_batches(model, task, batches, &mut statistics)?,
            };
            println!(
                "{task}: {} samples ({} from before), {} active tokens, {:.1} s",
                collected.samples,
                collected.resumed,
                collected.tokens,
                collected.elapsed.as_secs_f64()
            );
        }
        statistics.save(out.join("statistics.safetensors"))?;
        remove(&partial)?;
        Ok((statistics, store))
    }

    /// `L_i` of every sample, by task and id.
    fn losses(&self) -> Result<Losses> {
        let model: Decoder = self.checkpoint.decoder.clone().valid();
        let mut losses = BTreeMap::new();
        for (task, batches) in &self.tasks {
            let mut of_task = BTreeMap::new();
            for batch in batches {
                let sums = model.sample_losses(&TokenBatch::new(batch, &self.device));
                let sums = sums.sums().clone().into_data();
                let ids = batch.iter().map(|sequence| sequence.id.clone());
                of_task.extend(ids.zip(sums.iter::<f64>()));
            }
            losses.insert(task.clone(), of_task);
        }
        Ok(losses)
    }

    fn write(
        &self,
        statistics: &Statistics,
        store: Option<&GradientStore>,
        losses: &Losses,
        findings: &Findings,
    ) -> Result {
        let out = &self.arguments.out;
        let gradients = store.filter(|_| self.arguments.save_gradients);
        Tensors::of(statistics, gradients, findings, &self.order)?
            .save(&out.join("results.safetensors"))?;
        let settings = json!({
            "program": concat!("checkpoint ", env!("CARGO_PKG_VERSION")),
            "model": self.arguments.model,
            "provenance": statistics.provenance(),
            "device": format!("{:?}", self.arguments.device).to_lowercase(),
            "phases": self.arguments.phases,
            "interference": self.arguments.interference,
            "relabellings": self.arguments.relabellings,
            "seed": self.arguments.seed,
            "warnings": self.warnings,
        });
        let json = report(settings, statistics, losses, findings, &self.order)?;
        std::fs::write(out.join("report.json"), serde_json::to_vec_pretty(&json)?)?;
        let page = Page {
            run: self.about(statistics)?,
            warnings: &self.warnings,
            statistics,
            findings,
        };
        std::fs::write(out.join("report.html"), page.html())?;
        Ok(())
    }
}

impl Session<'_> {
    fn about(&self, statistics: &Statistics) -> Result<Vec<(String, String)>> {
        let mut run = vec![("Model".into(), self.arguments.model.display().to_string())];
        for (task, file) in &self.arguments.tasks {
            let of_task = statistics.task(task)?;
            let (samples, tokens) = (of_task.count(), of_task.tokens());
            let file = file.display();
            run.push((
                task.clone(),
                format!("{samples} samples, {tokens} active tokens, of {file}"),
            ));
        }
        let provenance = statistics.provenance();
        let phases: Vec<String> = self.arguments.phases.iter().map(u8::to_string).collect();
        let rest = [
            ("Contributions", provenance.unit.clone()),
            ("Weights (SHA-256)", provenance.model.clone()),
            ("Phases", phases.join(", ")),
            (
                "Device",
                format!("{:?}", self.arguments.device).to_lowercase(),
            ),
            ("Seed", self.arguments.seed.to_string()),
        ];
        run.extend(rest.map(|(name, value)| (name.to_owned(), value)));
        Ok(run)
    }
}

fn remove(file: &Path) -> Result {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
