//! What a Fisher is for: gradients divided by it, models merged by it, weights guarded by it.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use fisher_core::clusters::{cluster_numbers, clustered_mean};
use fisher_core::moments::IntervalMethod;
use fisher_core::statistics::Statistics;
use fisher_core::store::GradientStore;
use fisher_metrics::weights::Weights;
use fisher_train::apply::{MergeConfig, MergeReport, Term};
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use super::args::Analysis;
use super::collect::{STATISTICS, losses_of};
use super::measured::{Measured, key};
use super::outcome::Result;
use super::replace::replace;
use super::values::Scale;
use crate::models::Checkpoint;
use crate::samples::TaskData;

/// The folder of the merged model, in a run's folder.
pub const MERGED: &str = "merged";

/// What a folder has beside its weights, by how the files' names begin.
const KEPT: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template",
    "vocab.",
    "merges.txt",
    "spiece.model",
];

/// What was made of the Fisher.
#[derive(Debug, Default)]
pub struct Uses {
    /// By setting: the first gradient of the first task, divided.
    pub scaled: Vec<(String, Weights)>,
    /// The model merged with another.
    pub merged: Option<Merged>,
    /// Of the parameters.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

/// Two models merged, and what that costs.
#[derive(Debug)]
pub struct Merged {
    /// `θ* = Σ_t (F_t + ε) θ_t / Σ_t (F_t + ε)`.
    pub weights: Weights,
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

/// By how much the losses of a task's samples rise where other weights take the place of those of its
/// own model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The task.
    pub task: String,
    /// The weights: `merged`, or `other` for the other task's model's.
    pub weights: &'static str,
    /// Samples of the task.
    pub samples: usize,
    /// The mean over samples of the rise of the loss per active token, in nats.
    pub mean: f64,
    /// Its 95 % interval, paired by sample, over clusters where samples name them; `None` for fewer than
    /// two.
    pub interval: Option<[f64; 2]>,
}

impl Change {
    fn of(data: &TaskData, weights: &'static str, [own, with]: [&[f64]; 2]) -> Result<Self> {
        let rises = own.iter().zip(with).zip(&data.samples);
        let rises = rises.map(|((own, with), sample)| (with - own) / sample.active() as f64);
        let rises: Vec<f64> = rises.collect();
        let documents = data.samples.iter().map(|sample| sample.document.as_deref());
        let estimate = clustered_mean(&rises, &cluster_numbers(documents));
        let interval = estimate.interval(0.95, IntervalMethod::StudentT)?;
        Ok(Self {
            task: data.name.clone(),
            weights,
            samples: rises.len(),
            mean: estimate.mean,
            interval: interval.map(|of| [of.lower, of.upper]),
        })
    }
}

/// Evaluate every task with its own model, the other's and the merged one, in `folder`.
///
/// # Errors
/// When a model cannot be read, or a loss is not had.
pub fn changes(
    [first, second]: [&Checkpoint; 2],
    folder: &Path,
    data: &[TaskData; 2],
    tokens: usize,
    device: &Device,
) -> Result<Vec<Change>> {
    let merged = Checkpoint::load(folder, &device.clone().autodiff())?;
    let mut changes = Vec::new();
    for (task, own, other) in [(&data[0], first, second), (&data[1], second, first)] {
        let losses = |model: &Checkpoint| losses_of(model, task, tokens, device);
        let before = losses(own)?;
        for (weights, model) in [("merged", &merged), ("other", other)] {
            changes.push(Change::of(task, weights, [&before, &losses(model)?])?);
        }
    }
    Ok(changes)
}

/// Another model of the same shape.
///
/// # Errors
/// When it cannot be read, or is of another shape.
pub fn second(folder: &Path, first: &Checkpoint, device: &Device) -> Result<Checkpoint> {
    let second = Checkpoint::load(folder, &device.clone().autodiff())?;
    if second.catalogue != first.catalogue || second.config != first.config {
        let [second, first] = [folder, &first.folder].map(Path::display);
        return Err(
            format!("{second} cannot be merged with {first}: its config.json differs").into(),
        );
    }
    Ok(second)
}

/// Do what `analysis` asks for.
///
/// # Errors
/// When a parameter has no Fisher element by element, or a folder cannot be read.
pub fn uses(
    analysis: &Analysis,
    checkpoint: &Checkpoint,
    tasks: &[Measured],
    statistics: &Statistics,
    store: Option<&GradientStore>,
    device: &Device,
) -> Result<Uses> {
    let parameters = checkpoint.catalogue.parameters().iter();
    let shapes = parameters.map(|p| (p.path().to_owned(), p.shape().to_vec()));
    let mut uses = Uses {
        shapes: shapes.collect(),
        ..Uses::default()
    };
    if let (Some(store), [first, ..]) = (store, tasks) {
        for scale in &analysis.scale {
            let scaled = divided(scale, statistics, store, first)?;
            uses.scaled.push((scale.text.clone(), scaled));
        }
    }
    if let (Some(folder), [first, of_second]) = (&analysis.merge_with, tasks) {
        let other = second(folder, checkpoint, device)?;
        let own = match &analysis.merge_run {
            Some(run) => Some(own_statistics(run, &other, device)?),
            None => None,
        };
        let weights = [checkpoint.weights()?, other.weights()?];
        let fishers = [
            (statistics, &*first.name),
            (own.as_ref().unwrap_or(statistics), &*of_second.name),
        ];
        uses.merged = Some(merge(checkpoint, &weights, fishers, own.is_some())?);
    }
    Ok(uses)
}

/// The statistics that a run measured at `model`.
///
/// # Errors
/// When it is not a run of that model.
pub fn own_statistics(run: &Path, model: &Checkpoint, device: &Device) -> Result<Statistics> {
    let statistics: Statistics = Statistics::load(run.join(STATISTICS), device)?;
    if statistics.provenance().model == model.hash()? {
        Ok(statistics)
    } else {
        let [run, model] = [run, &model.folder].map(Path::display);
        Err(format!("{run} is not a run of {model}: its weights differ").into())
    }
}

/// F of every element of a parameter.
fn fisher(statistics: &Statistics, task: &str, path: &str) -> Result<Vec<f64>> {
    let task = statistics.task(task)?.parameter(path).ok();
    let welford = task.and_then(|parameter| parameter.elementwise());
    let mean = match welford {
        Some(welford) => welford.read()?.mean,
        None => None,
    };
    Ok(mean.ok_or_else(|| {
        format!(
            "phase 7 needs the Fisher of every element of {path}: measure it by --params and \
             --elements"
        )
    })?)
}

fn divided(
    scale: &Scale,
    statistics: &Statistics,
    store: &GradientStore,
    task: &Measured,
) -> Result<Weights> {
    let sample = task.ids.first().map(key).unwrap_or_default();
    let scaling = scale.config.init()?;
    let host = Device::flex();
    let tensor = |values: Vec<f64>| {
        let shape = [values.len()];
        Tensor::<1>::from_data(TensorData::new(values, shape), (&host, DType::F64))
    };
    let mut scaled = BTreeMap::new();
    for parameter in store.catalogue().parameters() {
        let path = parameter.path();
        let gradient = store.gradient(&task.name, &sample, path)?;
        let gradient = tensor(gradient.iter().map(|&g| g.into()).collect());
        let fisher = tensor(fisher(statistics, &task.name, path)?);
        let data = scaling.forward(gradient, fisher).try_into_data();
        let data = data.map_err(|e| format!("the device did not give {path}: {e}"))?;
        scaled.insert(path.to_owned(), data.iter().collect());
    }
    Ok(scaled.into())
}

fn merge(
    checkpoint: &Checkpoint,
    weights: &[Weights; 2],
    fishers: [(&Statistics, &str); 2],
    own_fisher: bool,
) -> Result<Merged> {
    let merging = MergeConfig::new().init()?;
    merging.check(fishers[0].0, fishers[1].0)?;
    let (mut merged, mut costs) = (BTreeMap::new(), BTreeMap::new());
    let mut decided = BTreeMap::new();
    for parameter in checkpoint.catalogue.parameters() {
        let (path, elements) = (parameter.path(), parameter.elements());
        let [first, second] = [
            weights[0].get(path, elements)?,
            weights[1].get(path, elements)?,
        ];
        let [f, g] = fishers.map(|(statistics, task)| fisher(statistics, task, path));
        let (f, g) = (f?, g?);
        let term = |weights, fisher| Term {
            weights,
            fisher,
            weight: 1.0,
        };
        let average = merging.average(path, &[term(first, &f), term(second, &g)])?;
        let cost = |theta: &[f64]| {
            let moved = theta.iter().zip(first).zip(&f);
            0.5 * moved.map(|((a, b), f)| f * (a - b).powi(2)).sum::<f64>()
        };
        let cost = Cost {
            second: cost(second),
            merged: cost(&average.weights),
        };
        costs.insert(path.to_owned(), cost);
        merged.insert(path.to_owned(), average.weights);
        decided.insert(path.to_owned(), average.decided);
    }
    let sources = fishers.map(|(statistics, task)| (task.into(), statistics.provenance().clone()));
    Ok(Merged {
        weights: merged.into(),
        own_fisher,
        cost: costs,
        measured: Vec::new(),
        report: merging.report(sources.into(), decided),
    })
}

impl Merged {
    /// Write a folder as `checkpoint`'s is: its configuration and tokenizer, and the merged weights in
    /// float32.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn save(&self, checkpoint: &Checkpoint, folder: &Path) -> Result {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(&checkpoint.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            let known = name.to_string_lossy();
            if path.is_file() && KEPT.iter().any(|start| known.starts_with(start)) {
                std::fs::copy(&path, folder.join(name))?;
            }
        }
        let tensors = checkpoint.catalogue.parameters().iter().map(|parameter| {
            let weights = self.weights.get(parameter.path(), parameter.elements())?;
            let bytes = weights.iter().flat_map(|w| (*w as f32).to_le_bytes());
            Ok((parameter, bytes.collect::<Vec<u8>>()))
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let views = tensors.iter().map(|(parameter, bytes)| {
            let view = TensorView::new(Dtype::F32, parameter.shape().to_vec(), bytes)?;
            Ok((parameter.path(), view))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        replace(&folder.join("model.safetensors"), |beside| {
            Ok(safetensors::serialize_to_file(
                views,
                Some(metadata),
                beside,
            )?)
        })
    }
}
