//! Findings as tensors: `results.safetensors`.
//!
//! Arrays in the checkpoint's own names and orientation, float64 but for the masks:
//!
//! | name | shape | |
//! |---|---|---|
//! | `{task}/group_mean/{label}/{parameter}`, `../group_m2/..` | `[groups]` | Welford of `C_i`, per token, of groups |
//! | `{task}/mean/{parameter}`, `{task}/m2/{parameter}` | the parameter's | the same of every element (`--save-elements`; `statistics.safetensors` has them always) |
//! | `{task}/mask/{scope}@{sparsity}/{label}/{parameter}` | `[groups]` | bool: whether a group stays |
//! | `{task}/gradient/{id}/{parameter}` | the parameter's | `g_i`, token sum (`--save-gradients`) |
//! | `conflicts/{space}/cosine/{parameter}`, `../q/..` | `[n_A, n_B]` | of every pair of samples, no number where a gradient is 0 (`--save-pairs`) |
//! | `interference/{settings}/{block}` | `[n_A, n_B, layers, heads]` | scores of every pair (`--save-pairs`) |
//! | `scaled/{power}/{damping}/{parameter}` | the parameter's | the first gradient of the first task, divided |
//!
//! Samples are in the order of their files. `/` and `%` in a task's name or a sample's id are
//! percent-encoded. Tensors are computed and written one by one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use fisher_core::container::{Source, write_atomically};
use fisher_core::grouping::Block;
use fisher_core::moments::Welford;
use fisher_core::statistics::Statistics;
use fisher_core::store::GradientStore;
use fisher_metrics::conflicts::Pairs;
use fisher_metrics::interference::InterferenceReport;
use safetensors::tensor::Dtype;

use super::analyses::Findings;
use super::measured::{Measured, key};
use super::outcome::Result;
use super::uses::divided;
use super::values::Scale;

/// The findings, in a run's folder.
pub const REPORT: &str = "report.json";
/// The numbers, in a run's folder.
pub const RESULTS: &str = "results.safetensors";

/// Numbers in float64 with their shape, by name.
/// Which tensors are wanted, beside those that are few.
#[derive(Debug, Clone, Copy, Default)]
pub struct Saved<'a> {
    /// Means and M2 of groups.
    pub groups: bool,
    /// Means and M2 of elements.
    pub elements: bool,
    /// Gradients of samples.
    pub gradients: bool,
    /// Numbers of every pair of samples.
    pub pairs: bool,
    /// How the first gradient is divided.
    pub scaled: &'a [Scale],
}

type Error = Box<dyn std::error::Error>;

/// Tensors by name, computed when they are written.
#[derive(Debug, Default)]
pub struct Tensors<'a>(BTreeMap<String, Source<'a, Error>>);

impl<'a> Tensors<'a> {
    /// Those of statistics, gradients and findings that are wanted.
    ///
    /// # Errors
    /// When scores were not kept that are wanted.
    pub fn of(
        statistics: &'a Statistics,
        store: Option<&'a GradientStore>,
        tasks: &'a [Measured],
        findings: &'a Findings,
        saved: &Saved<'a>,
    ) -> Result<Self> {
        let mut tensors = Self::default();
        for task in tasks {
            tensors.statistics(statistics, task, saved)?;
            if let Some(store) = store.filter(|_| saved.gradients) {
                tensors.gradients(store, task);
            }
        }
        tensors.masks(findings);
        if saved.pairs {
            tensors.pairs(findings, tasks)?;
        }
        if let (Some(store), [first, ..]) = (store, tasks) {
            tensors.scaled(statistics, store, first, saved.scaled);
        }
        Ok(tensors)
    }

    fn add(&mut self, name: String, shape: &[usize], values: impl Fn() -> Result<Vec<f64>> + 'a) {
        self.0.insert(name, Source::float64(shape, values));
    }

    fn statistics(&mut self, statistics: &'a Statistics, task: &Measured, saved: &Saved) -> Result {
        let name = encode(&task.name);
        for (path, parameter) in statistics.task(&task.name)?.parameters() {
            if let Some(welford) = parameter.elementwise().filter(|_| saved.elements) {
                let shape = statistics.shape(path).unwrap_or_default();
                self.moments([&format!("{name}/"), path], shape, welford);
            }
            for (grouping, welford) in parameter.groups().iter().filter(|_| saved.groups) {
                let path = format!("{}/{path}", grouping.label());
                let prefix = format!("{name}/group_");
                self.moments([&prefix, &path], &[grouping.groups()], welford);
            }
        }
        Ok(())
    }

    fn moments(&mut self, [prefix, name]: [&str; 2], shape: &[usize], welford: &'a Welford) {
        let none = |what: &str| format!("the statistics have no {what}");
        self.add(format!("{prefix}mean/{name}"), shape, move || {
            Ok(welford.read_mean()?.ok_or_else(|| none("mean"))?)
        });
        self.add(format!("{prefix}m2/{name}"), shape, move || {
            Ok(welford.read_m2()?.ok_or_else(|| none("M2"))?)
        });
    }

    fn gradients(&mut self, store: &'a GradientStore, task: &'a Measured) {
        for id in task.ids.iter().map(key) {
            for parameter in store.catalogue().parameters() {
                let (path, id) = (parameter.path(), id.clone());
                let name = format!("{}/gradient/{}/{path}", encode(&task.name), encode(&id));
                self.add(name, parameter.shape(), move || {
                    let gradient = store.gradient(&task.name, &id, path)?;
                    Ok(gradient.iter().map(|&g| f64::from(g)).collect())
                });
            }
        }
    }

    fn masks(&mut self, findings: &'a Findings) {
        for (task, key, masks) in &findings.masks {
            for mask in &masks.masks {
                let (label, path) = (mask.grouping.label(), &mask.path);
                let name = format!("{}/mask/{key}/{label}/{path}", encode(task));
                let bytes = || {
                    let bits = 0..mask.keep.len();
                    let bytes = bits.map(|bit| u8::from(mask.keep.contains(bit)));
                    Ok(Cow::Owned(bytes.collect()))
                };
                let source = Source::new(Dtype::BOOL, [mask.keep.len()], bytes);
                self.0.insert(name, source);
            }
        }
    }

    fn pairs(&mut self, findings: &'a Findings, tasks: &'a [Measured]) -> Result {
        if let [a, b] = tasks {
            for (space, report) in &findings.conflicts {
                for slice in &report.slices {
                    let pairs = slice.pairs.as_ref();
                    let pairs = pairs.ok_or("numbers of pairs were not kept")?;
                    for (what, of) in [("cosine", &pairs.cosine), ("q", &pairs.q)] {
                        let name = format!("conflicts/{space}/{what}/{}", slice.name);
                        let shape = [a.ids.len(), b.ids.len()];
                        self.add(name, &shape, move || Ok(ordered(of, pairs, [a, b])));
                    }
                }
            }
        }
        for (settings, report) in &findings.interference {
            for block in report.blocks() {
                let name = format!("interference/{settings}/{block}");
                let missing = format!("interference ({settings}) has no scores of {block}");
                let (shape, places) = places(report, tasks).ok_or_else(|| missing.clone())?;
                self.add(name, &shape, move || {
                    let scores = dense(report, block, &places);
                    Ok(scores.ok_or_else(|| missing.clone())?)
                });
            }
        }
        Ok(())
    }

    fn scaled(
        &mut self,
        statistics: &'a Statistics,
        store: &'a GradientStore,
        task: &'a Measured,
        scaled: &'a [Scale],
    ) {
        for scale in scaled {
            for parameter in store.catalogue().parameters() {
                let path = parameter.path();
                self.add(
                    format!("scaled/{}/{path}", scale.text),
                    parameter.shape(),
                    move || divided(scale, statistics, store, task, path),
                );
            }
        }
    }

    /// Write a file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result {
        write_atomically(path, &self.0, HashMap::new())
    }
}

/// A task's name or a sample's id as part of a name.
fn encode(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

/// A matrix over the samples that have a direction, as one over all in the order of their files.
fn ordered(of: &[Vec<f64>], pairs: &Pairs, [a, b]: [&Measured; 2]) -> Vec<f64> {
    let columns = b.places(pairs.b.iter().map(String::as_str));
    let rows = a.places(pairs.a.iter().map(String::as_str));
    let row = |row: Option<usize>| {
        let value = move |column: &Option<usize>| Some(of[row?][(*column)?]);
        columns
            .iter()
            .map(move |column| value(column).unwrap_or(f64::NAN))
    };
    rows.into_iter().flat_map(row).collect()
}

/// The places of both tasks' samples in a report.
type Places = [Vec<usize>; 2];

/// `[n_A, n_B, layers, heads]`, and where the samples are; `None` where layers differ in their number of
/// heads.
fn places(report: &InterferenceReport, tasks: &[Measured]) -> Option<([usize; 4], Places)> {
    let [a, b] = [0, 1].map(|task| {
        let known = report.samples[task].iter().map(String::as_str);
        let places: Option<Vec<usize>> = tasks.get(task)?.places(known).into_iter().collect();
        places
    });
    let (a, b) = (a?, b?);
    let heads = report.kv_heads.first()?.len();
    let alike = report.kv_heads.iter().all(|layer| layer.len() == heads);
    let shape = [a.len(), b.len(), report.kv_heads.len(), heads];
    alike.then_some((shape, [a, b]))
}

/// The scores of every pair of samples and every head; `None` where they were not kept.
fn dense(report: &InterferenceReport, block: Block, [a, b]: &Places) -> Option<Vec<f64>> {
    let mut scores = Vec::new();
    for (layer, heads) in report.kv_heads.iter().enumerate() {
        for head in 0..heads.len() {
            scores.push(report.slice(block, layer, head)?.scores.as_ref()?);
        }
    }
    let columns = report.samples[1].len();
    let mut values = Vec::with_capacity(a.len() * b.len() * scores.len());
    for i in a {
        for j in b {
            for scores in &scores {
                values.push(*scores.get(i * columns + j)?);
            }
        }
    }
    Some(values)
}
