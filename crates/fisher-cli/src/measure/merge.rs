//! Two models merged by their Fisher, tensor by tensor: neither is ever in memory.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::Device;
use fisher_core::container::{Source, write_atomically};
use fisher_core::provenance::Provenance;
use fisher_core::statistics::{SavedMeans, Statistics};
use fisher_metrics::report::same_fisher;
use fisher_train::apply::{Decided, FisherScale, MergeConfig, MergeReport, Merging, Term};

use super::changes::Change;
use super::collect::STATISTICS;
use super::outcome::Result;
use crate::models::{Checkpoint, Stored, TensorFile};

/// The folder of the merged model, in a run's folder.
pub const MERGED: &str = "merged";

/// What a folder has beside its weights, by how the files' names begin.
const KEPT: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template",
    "vocab.",
    "merges.txt",
    "spiece.model",
];

/// Two models merged, `θ* = Σ_t (F_t + ε) θ_t / Σ_t (F_t + ε)`, and what that costs.
#[derive(Debug)]
pub struct Merged {
    /// Whether the second model was weighed by a Fisher of its own, not by one taken at the first.
    pub own_fisher: bool,
    /// What each parameter is predicted to cost the first task.
    pub cost: BTreeMap<String, Cost>,
    /// What the tasks were measured to lose; empty where their samples are not at hand.
    pub measured: Vec<Change>,
    /// What F and ε decided.
    pub report: MergeReport,
}

/// `½ Σ F (θ − θ₁)²` of a parameter by the first task's Fisher, `θ₁` the first model: the nats a token by
/// which its loss would rise when θ takes that place, were the loss quadratic, at its minimum, and without
/// cross terms. Measured losses have been tens of times that: it is not shown without them.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// θ of the second model.
    pub second: f64,
    /// θ of the merged model.
    pub merged: f64,
}

/// Whether `folder` holds another model of the same shape, and the run `own` is of that model and has
/// measured `task`.
///
/// # Errors
/// When it is not so, or cannot be read.
pub fn check_second(
    folder: &Path,
    own: Option<(&Path, &str)>,
    first: &Checkpoint,
    device: &Device,
) -> Result {
    let second = first.like(folder, device)?;
    if second.catalogue != first.catalogue || second.config != first.config {
        let [second, first] = [folder, &first.folder].map(Path::display);
        return Err(
            format!("{second} cannot be merged with {first}: its config.json differs").into(),
        );
    }
    let Some((run, task)) = own else {
        return Ok(());
    };
    let file = run.join(STATISTICS);
    let statistics = SavedMeans::open(&file)?;
    if statistics.provenance().model != second.hash()? {
        let [run, model] = [run, folder].map(Path::display);
        return Err(format!("{run} is not a run of {model}: its weights differ").into());
    }
    Ok(statistics.check_task(task)?)
}

/// F of every element of a parameter.
type OfParameter<'a> = dyn Fn(&str) -> Result<Vec<f64>> + 'a;

/// One of the two models.
struct Of<'a> {
    task: &'a str,
    provenance: Provenance,
    /// F of every element of a parameter.
    fisher: Box<OfParameter<'a>>,
}

/// Merge the models in the folders of `first` and `second` into `folder`: the files are those of the
/// first, in its types and shards. `own` is the run that measured the second model, where there is one.
///
/// # Errors
/// When a parameter has no Fisher element by element, a model is of another shape, or a file cannot be
/// read or written.
pub fn merge(
    first: &Checkpoint,
    second: &Path,
    tasks: [&str; 2],
    statistics: &Statistics,
    own: Option<&Path>,
    scale: FisherScale,
    folder: &Path,
) -> Result<Merged> {
    let file = own.map(|run| run.join(STATISTICS));
    let own = file.as_deref().map(SavedMeans::open).transpose()?;
    let here = |task| Of {
        task,
        provenance: statistics.provenance().clone(),
        fisher: Box::new(move |path| fisher(statistics, task, path)),
    };
    let other = match &own {
        None => here(tasks[1]),
        Some(own) => Of {
            task: tasks[1],
            provenance: own.provenance().clone(),
            fisher: Box::new(|path| Ok(own.mean(tasks[1], path)?)),
        },
    };
    let sources = [here(tasks[0]), other];
    same_fisher(&sources[0].provenance, &sources[1].provenance)?;
    let merger = Merger {
        first,
        merging: MergeConfig::new().with_scale(scale).init()?,
        sizes: match scale {
            FisherScale::Trace => [mean(first, &sources[0])?, mean(first, &sources[1])?],
            _ => [1.0; 2],
        },
        scale,
        sources,
        found: RefCell::default(),
    };
    copy(first, folder)?;
    let files = TensorFile::of(&first.folder)?;
    let others = TensorFile::of(second)?;
    let others = others.iter().flat_map(|file| &file.tensors);
    let named = others.filter_map(|(name, stored)| Some((first.parameter(name)?, stored)));
    let theirs: HashMap<&str, &Stored> = named.collect();
    for file in &files {
        merger.write(file, &theirs, second, folder)?;
    }
    let Merger {
        merging,
        sources,
        found,
        ..
    } = merger;
    let (mut cost, mut decided) = (BTreeMap::new(), BTreeMap::new());
    for (parameter, (of_cost, of_decided)) in found.into_inner() {
        cost.insert(parameter.clone(), of_cost);
        decided.insert(parameter, of_decided);
    }
    let named = sources.map(|source| (source.task.to_owned(), source.provenance));
    Ok(Merged {
        own_fisher: own.is_some(),
        cost,
        measured: Vec::new(),
        report: merging.report(named.into(), decided),
    })
}

/// The mean of F over all weights.
fn mean(model: &Checkpoint, source: &Of) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for parameter in model.catalogue.parameters() {
        sum += (source.fisher)(parameter.path())?.iter().sum::<f64>();
        count += parameter.elements();
    }
    Ok(sum / count.max(1) as f64)
}

struct Merger<'a> {
    first: &'a Checkpoint,
    merging: Merging,
    scale: FisherScale,
    /// What F of either model is divided by.
    sizes: [f64; 2],
    sources: [Of<'a>; 2],
    /// Of every parameter that was merged.
    found: RefCell<BTreeMap<String, (Cost, Decided)>>,
}

impl Merger<'_> {
    /// Write a file of the first model with its parameters merged with `theirs`, those of `second`.
    fn write(
        &self,
        file: &TensorFile,
        theirs: &HashMap<&str, &Stored>,
        second: &Path,
        folder: &Path,
    ) -> Result {
        let mut tensors = BTreeMap::new();
        for (name, stored) in &file.tensors {
            let pair = match self.first.parameter(name) {
                Some(parameter) => {
                    let missing = || format!("{} has no {parameter}", second.display());
                    let theirs = theirs.get(parameter).ok_or_else(missing)?;
                    Some((parameter, *theirs))
                }
                None => None,
            };
            let bytes = move || match pair {
                Some((parameter, theirs)) => {
                    let [ours, theirs] = [stored.values()?, theirs.values()?];
                    let merged = self.average(parameter, [&ours, &theirs])?;
                    Ok(Cow::Owned(stored.encode(&merged)))
                }
                // No weights: what old files have beside them.
                None => Ok(Cow::Owned(stored.read()?)),
            };
            let source = Source::new(stored.dtype, stored.shape.clone(), bytes);
            tensors.insert(name.clone(), source);
        }
        write_atomically::<Box<dyn std::error::Error>>(
            &folder.join(&file.name),
            &tensors,
            file.metadata.clone(),
        )?;
        Ok(())
    }

    fn average(&self, parameter: &str, [ours, theirs]: [&[f64]; 2]) -> Result<Vec<f64>> {
        let elements = self.first.catalogue.require(parameter)?.elements();
        if [ours.len(), theirs.len()] != [elements; 2] {
            let (ours, theirs) = (ours.len(), theirs.len());
            return Err(format!("{parameter} has {ours} and {theirs} weights").into());
        }
        let mut fishers = Vec::new();
        for (source, size) in self.sources.iter().zip(self.sizes) {
            let mut fisher = (source.fisher)(parameter)?;
            let size = match self.scale {
                FisherScale::Norm => root_mean_square(&fisher),
                _ => size,
            };
            // F that is 0 everywhere stays it.
            if size > 0.0 && size != 1.0 {
                fisher.iter_mut().for_each(|f| *f /= size);
            }
            fishers.push(fisher);
        }
        let term = |weights, fisher| Term {
            weights,
            fisher,
            weight: 1.0,
        };
        let terms = [term(ours, &fishers[0]), term(theirs, &fishers[1])];
        let average = self.merging.average(parameter, &terms)?;
        let mut merged = average.weights;
        // What both models agree on stays, to the last bit.
        for (merged, (a, b)) in merged.iter_mut().zip(ours.iter().zip(theirs)) {
            if a.to_bits() == b.to_bits() {
                *merged = *a;
            }
        }
        // As it is, whatever it was brought to.
        let fisher = match self.scale {
            FisherScale::None => fishers.swap_remove(0),
            _ => (self.sources[0].fisher)(parameter)?,
        };
        let cost = |theta: &[f64]| {
            let moved = theta.iter().zip(ours).zip(&fisher);
            0.5 * moved.map(|((a, b), f)| f * (a - b).powi(2)).sum::<f64>()
        };
        let cost = Cost {
            second: cost(theirs),
            merged: cost(&merged),
        };
        let found = (cost, average.decided);
        self.found.borrow_mut().insert(parameter.to_owned(), found);
        Ok(merged)
    }
}

fn root_mean_square(values: &[f64]) -> f64 {
    let squares = values.iter().map(|f| f * f).sum::<f64>();
    (squares / values.len().max(1) as f64).sqrt()
}

/// Configuration and tokenizer, as the first model has them.
fn copy(first: &Checkpoint, folder: &Path) -> Result {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(&first.folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        let known = name.to_string_lossy();
        if path.is_file() && KEPT.iter().any(|start| known.starts_with(start)) {
            std::fs::copy(&path, folder.join(name))?;
        }
    }
    Ok(())
}

/// F of every element of a parameter.
///
/// # Errors
/// When it was not measured.
pub(super) fn fisher(statistics: &Statistics, task: &str, path: &str) -> Result<Vec<f64>> {
    let task = statistics.task(task)?.parameter(path).ok();
    let welford = task.and_then(|parameter| parameter.elementwise());
    let mean = match welford {
        Some(welford) => welford.read_mean()?,
        None => None,
    };
    Ok(mean.ok_or_else(|| {
        format!(
            "phase 7 needs the Fisher of every element of {path}: measure it with \
             --params all --elements all"
        )
    })?)
}
