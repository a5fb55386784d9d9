//! Findings as files: `results.safetensors` and `report.json`.
//!
//! `results.safetensors` has float64 arrays in the checkpoint's own names and orientation:
//!
//! | name | shape | |
//! |---|---|---|
//! | `{task}/mean/{parameter}`, `{task}/m2/{parameter}` | the parameter's | Welford of `C_i`, per token |
//! | `{task}/group_mean/{label}/{parameter}`, `../group_m2/..` | `[groups]` | the same of groups |
//! | `{task}/gradient/{id}/{parameter}` | the parameter's | `g_i`, token sum |
//! | `interference/{settings}/{block}` | `[n_A, n_B, layers, heads]` | scores |
//! | `scaled/{power}/{damping}/{parameter}` | the parameter's | the first gradient of the first task, divided |
//! | `merged/{parameter}` | the parameter's | the model merged with another |
//!
//! Samples are in the order of their files. `/` and `%` in a task's name or a sample's id are
//! percent-encoded.

use std::collections::BTreeMap;
use std::path::Path;

use fisher_core::grouping::Block;
use fisher_core::moments::Welford;
use fisher_core::statistics::Statistics;
use fisher_core::store::GradientStore;
use fisher_metrics::conflicts::{ConflictReport, Pairs};
use fisher_metrics::interference::InterferenceReport;
use fisher_metrics::pruning::Masks;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use super::analysis::Findings;
use super::measured::{Measured, key};
use super::outcome::Result;
use super::replace::replace;
use super::uses::Cost;

/// The findings, in a run's folder.
pub const REPORT: &str = "report.json";
/// The numbers, in a run's folder.
pub const RESULTS: &str = "results.safetensors";

/// Numbers in float64 with their shape, by name.
#[derive(Debug, Default)]
pub struct Tensors(BTreeMap<String, (Vec<usize>, Vec<u8>)>);

impl Tensors {
    /// Means, M2 and groups of statistics and gradients of a store, where they are given, scores of
    /// interference, and what was merged and scaled.
    ///
    /// # Errors
    /// When an accumulator or the store cannot be read.
    pub fn of(
        statistics: Option<&Statistics>,
        gradients: Option<&GradientStore>,
        tasks: &[Measured],
        findings: &Findings,
    ) -> Result<Self> {
        let mut tensors = Self::default();
        for task in tasks {
            if let Some(statistics) = statistics {
                tensors.statistics(statistics, task)?;
            }
            if let Some(store) = gradients {
                tensors.gradients(store, task)?;
            }
        }
        let kept = |report: &InterferenceReport| report.slices.iter().any(|s| s.scores.is_some());
        let reports = findings.interference.iter();
        for (settings, report) in reports.filter(|(_, report)| kept(report)) {
            for block in report.blocks() {
                let (shape, scores) = dense(report, block, tasks)
                    .ok_or_else(|| format!("interference ({settings}) has no scores of {block}"))?;
                tensors.add(format!("interference/{settings}/{block}"), &shape, scores);
            }
        }
        let scaled = findings.uses.scaled.iter();
        let scaled = scaled.map(|(scale, weights)| (format!("scaled/{scale}"), weights));
        let merged = findings.uses.merged.iter();
        let merged = merged.map(|merged| ("merged".to_owned(), &merged.weights));
        for (prefix, weights) in scaled.chain(merged) {
            for (path, values) in weights.iter() {
                let shape = findings
                    .uses
                    .shapes
                    .get(path)
                    .map_or(&[][..], |shape| shape);
                tensors.add(format!("{prefix}/{path}"), shape, values.iter().copied());
            }
        }
        Ok(tensors)
    }

    fn add(&mut self, name: String, shape: &[usize], values: impl IntoIterator<Item = f64>) {
        let bytes = values.into_iter().flat_map(f64::to_le_bytes).collect();
        self.0.insert(name, (shape.to_vec(), bytes));
    }

    fn statistics(&mut self, statistics: &Statistics, task: &Measured) -> Result {
        let name = encode(&task.name);
        for (path, parameter) in statistics.task(&task.name)?.parameters() {
            let shape = statistics.shape(path).unwrap_or_default();
            if let Some(welford) = parameter.elementwise() {
                self.moments([&format!("{name}/"), path], shape, welford)?;
            }
            for (grouping, welford) in parameter.groups() {
                let path = format!("{}/{path}", grouping.label());
                let prefix = format!("{name}/group_");
                self.moments([&prefix, &path], &[grouping.groups()], welford)?;
            }
        }
        Ok(())
    }

    fn gradients(&mut self, store: &GradientStore, task: &Measured) -> Result {
        for id in task.ids.iter().map(key) {
            for parameter in store.catalogue().parameters() {
                let path = parameter.path();
                let gradient = store.gradient(&task.name, &id, path)?;
                let name = format!("{}/gradient/{}/{path}", encode(&task.name), encode(&id));
                let values = gradient.iter().map(|&g| f64::from(g));
                self.add(name, parameter.shape(), values);
            }
        }
        Ok(())
    }

    fn moments(&mut self, [prefix, name]: [&str; 2], shape: &[usize], welford: &Welford) -> Result {
        let moments = welford.read()?;
        if let Some(mean) = moments.mean {
            self.add(format!("{prefix}mean/{name}"), shape, mean);
        }
        // Of one sample M2 is 0, where the variance is undefined.
        let elements = shape.iter().product();
        let degrees = moments.count.saturating_sub(1) as f64;
        let variance = moments.variance.unwrap_or_else(|| vec![0.0; elements]);
        let m2 = variance.into_iter().map(|v| v * degrees);
        self.add(format!("{prefix}m2/{name}"), shape, m2);
        Ok(())
    }

    /// Write a file: beside the old one first, so that there is never half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result {
        let views = self.0.iter().map(|(name, (shape, bytes))| {
            Ok((name, TensorView::new(Dtype::F64, shape.clone(), bytes)?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        replace(path, |beside| {
            Ok(safetensors::serialize_to_file(views, None, beside)?)
        })
    }
}

/// A task's name or a sample's id as part of a name.
fn encode(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

/// `[n_A, n_B, layers, heads]`; `None` where layers differ in their number of heads.
fn dense(
    report: &InterferenceReport,
    block: Block,
    tasks: &[Measured],
) -> Option<(Vec<usize>, Vec<f64>)> {
    let [a, b] = [0, 1].map(|task| {
        let known = report.samples[task].iter().map(String::as_str);
        let places: Option<Vec<usize>> = tasks.get(task)?.places(known).into_iter().collect();
        places
    });
    let (a, b) = (a?, b?);
    let heads = report.kv_heads.first()?.len();
    let mut values = Vec::with_capacity(a.len() * b.len() * report.kv_heads.len() * heads);
    let pairs = a.iter().flat_map(|i| b.iter().map(move |j| (i, j)));
    for (i, j) in pairs {
        for (layer, of_layer) in report.kv_heads.iter().enumerate() {
            if of_layer.len() != heads {
                return None;
            }
            for head in 0..heads {
                let scores = report.slice(block, layer, head)?.scores.as_ref()?;
                values.push(*scores.get(i * report.samples[1].len() + j)?);
            }
        }
    }
    Some((vec![a.len(), b.len(), report.kv_heads.len(), heads], values))
}

/// All findings but tensors, as one JSON document.
///
/// `ewc` has by parameter what the model merged with would cost the first task, `ewc_merged` what the
/// merged one does: `½ Σ F (θ − θ₁)²`.
///
/// Matrices of pairs are in the order of the tasks' files; null where a sample's gradient is 0.
pub fn report(run: Value, measured: &[Measured], findings: &Findings) -> Value {
    let mut tasks = Map::new();
    for of_task in measured {
        let task = &of_task.name;
        let mut entry = json!(of_task);
        if let Some(ranking) = findings.ranking.iter().find(|r| r.task == *task) {
            let top = ranking.top.iter();
            let top = top.map(|g| {
                json!([
                    format!("{}|{}", g.path, g.label),
                    g.index,
                    g.fisher,
                    g.share
                ])
            });
            entry["importance"] = json!({
                "total": ranking.total,
                "top": top.collect::<Vec<_>>(),
                "per_key_share": ranking.shares,
            });
        }
        if let Some(importance) = findings.importance.iter().find(|r| r.task == *task) {
            entry["layers"] = json!(importance.layers);
            entry["heads"] = json!(importance.heads);
            entry["attention"] = json!(importance.attention);
            entry["clusters"] = json!(importance.clusters);
            entry["copies"] = json!(importance.copies);
            entry["warnings"] = json!(importance.warnings);
        }
        let masks = findings.masks.iter().filter(|(of, _, _)| of == task);
        let masks: Map<String, Value> = masks.map(|(_, key, m)| (key.clone(), bits(m))).collect();
        if !masks.is_empty() {
            entry["masks"] = Value::Object(masks);
        }
        if let Some((_, masks)) = findings.brain_damage.iter().find(|(of, _)| of == task) {
            let kept = masks.masks.iter();
            let kept = kept.map(|mask| (mask.path.clone(), json!(mask.keep.count_ones(..))));
            entry["obd_unstructured@0.5"] = json!({
                "kept": kept.collect::<Map<_, _>>(),
                "predicted_increase": masks.predicted_increase,
            });
        }
        tasks.insert(task.into(), entry);
    }
    let order: Vec<&str> = measured.iter().map(|task| &*task.name).collect();
    let mut document = json!({ "schema": SCHEMA, "run": run, "order": order, "tasks": tasks });
    if let Some(comparison) = &findings.comparison {
        document["comparison"] = json!(comparison);
    }
    let overlap = findings.overlap.iter().map(|(key, report)| {
        let mut agreements: Map<String, Value> = Map::new();
        agreements.insert("all".into(), json!(report.all));
        agreements.insert("ceiling".into(), json!(report.ceiling));
        agreements.extend(
            report
                .tensors
                .iter()
                .map(|(key, a)| (key.clone(), json!(a))),
        );
        (key.clone(), Value::Object(agreements))
    });
    document["overlap"] = Value::Object(overlap.collect());
    document["overlap_suggests"] = json!(findings.suggestion);
    document["without_halves"] = json!(findings.without_halves);
    let conflicts = findings.conflicts.iter().map(|(space, report)| {
        let slices = report.slices.iter().map(|slice| {
            let mut entry = json!(slice);
            entry["pairs"] = Value::Null;
            if let (Some(pairs), [a, b]) = (&slice.pairs, measured) {
                let matrix = |of: &[Vec<f64>]| ordered(of, pairs, [a, b]);
                entry["pairs"] = json!({ "cosine": matrix(&pairs.cosine), "q": matrix(&pairs.q) });
            }
            (slice.name.clone(), entry)
        });
        ((*space).to_owned(), Value::Object(slices.collect()))
    });
    document["conflicts"] = Value::Object(conflicts.collect());
    if let Some((_, report)) = findings
        .interference
        .iter()
        .find(|(key, _)| key == "default")
    {
        document["health"] = Value::Object(health(report));
    }
    let collisions = findings.conflicts.iter();
    let collisions = collisions.map(|(space, report)| ((*space).to_owned(), summary(report)));
    document["conflict_summary"] = Value::Object(collisions.collect());
    let interference = findings.interference.iter().map(|(key, report)| {
        let slices = report.slices.iter().map(|slice| {
            let mut slice = slice.clone();
            slice.scores = None;
            json!(slice)
        });
        let summary = json!({
            "settings": report.settings,
            "layers": report.layers,
            "kv_heads": report.kv_heads,
            "slices": slices.collect::<Vec<_>>(),
            "top": report.top,
            "warnings": report.warnings,
        });
        (key.clone(), summary)
    });
    document["interference"] = Value::Object(interference.collect());
    if let Some(merged) = &findings.uses.merged {
        let costs = |of: fn(&Cost) -> f64| -> Map<String, Value> {
            let costs = merged.cost.iter();
            costs
                .map(|(path, cost)| (path.clone(), json!(of(cost))))
                .collect()
        };
        document["ewc"] = Value::Object(costs(|cost| cost.second));
        document["ewc_merged"] = Value::Object(costs(|cost| cost.merged));
        document["merge"] = json!(merged.report);
        document["merge_measured"] = json!(merged.measured);
    }
    document
}

/// Version of the form of `report.json`.
const SCHEMA: u64 = 1;

/// A matrix over the samples that have a direction, as one over all in the order of their files.
fn ordered(of: &[Vec<f64>], pairs: &Pairs, [a, b]: [&Measured; 2]) -> Vec<Vec<Option<f64>>> {
    let columns = b.places(pairs.b.iter().map(String::as_str));
    let row = |row: Option<usize>| {
        let value = |column: &Option<usize>| Some(of[row?][(*column)?]);
        columns.iter().map(value).collect()
    };
    let rows = a.places(pairs.a.iter().map(String::as_str));
    rows.into_iter().map(row).collect()
}

/// What of conflicts is not by slice.
fn summary(report: &ConflictReport) -> Value {
    json!({
        "compared": report.space(),
        "independent": report.independent,
        "copies": report.copies,
        "lengths": report.lengths,
        "together": report.together,
        "bounds": report.bounds,
        "total": report.total,
        "pairs": report.pairs(),
        "conflicts": report.conflicts,
        "lowest": report.lowest,
        "components": report.components,
        "hot_spots": report.hot_spots,
        "involved": report.involved,
        "sentences": report.sentences(SENTENCES),
        "warnings": report.warnings,
    })
}

/// Conflicts told in words.
pub(crate) const SENTENCES: usize = 12;

/// `{key}` to a string of bits, 1 for what stays.
fn bits(masks: &Masks) -> Value {
    let text = |mask: &fisher_metrics::pruning::Mask| -> String {
        let bits = 0..mask.keep.len();
        bits.map(|i| if mask.keep.contains(i) { '1' } else { '0' })
            .collect()
    };
    let masks = masks
        .masks
        .iter()
        .map(|mask| (mask.key(), json!(text(mask))));
    Value::Object(masks.collect())
}

fn health(report: &InterferenceReport) -> Map<String, Value> {
    let mut health = Map::new();
    for block in report.blocks() {
        for (layer, heads) in report.kv_heads.iter().enumerate() {
            for head in 0..heads.len() {
                let slice = report.slice(block, layer, head);
                if let Some(found) = slice.and_then(|slice| slice.health) {
                    health.insert(format!("{block}.{layer}.{head}"), json!(found));
                }
            }
        }
    }
    health
}
