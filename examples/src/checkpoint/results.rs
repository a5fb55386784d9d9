//! Findings as files: `results.safetensors` and `report.json`.

use std::collections::BTreeMap;
use std::path::Path;

use fisher_core::{Block, GradientStore, Statistics, Welford};
use fisher_metrics::{InterferenceReport, Masks};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use super::analysis::Findings;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The samples of every task in the order of their file; they are collected by length.
pub type Order = BTreeMap<String, Vec<String>>;

/// Where the samples `found` lie in the order of `task`'s file.
fn places(order: &Order, task: &str, found: &[String]) -> Vec<usize> {
    let at = |id: &String| found.iter().position(|found| found == id);
    match order.get(task) {
        Some(wanted) => wanted.iter().filter_map(at).collect(),
        None => (0..found.len()).collect(),
    }
}

/// A matrix of pairs, its rows and columns in another order.
fn arranged(matrix: &[Vec<f64>], [rows, columns]: &[Vec<usize>; 2]) -> Vec<Vec<f64>> {
    let row = |&row: &usize| columns.iter().map(|&column| matrix[row][column]).collect();
    rows.iter().map(row).collect()
}

/// Numbers in float64 with their shape, by name.
#[derive(Debug, Default)]
pub struct Tensors(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

impl Tensors {
    /// Means, M2 and groups of statistics, gradients of a store if there is one, and scores of
    /// interference.
    ///
    /// # Errors
    /// When an accumulator or the store cannot be read.
    pub fn of(
        statistics: &Statistics,
        gradients: Option<&GradientStore>,
        findings: &Findings,
        order: &Order,
    ) -> Result<Self> {
        let mut tensors = Self::default();
        for task in statistics.tasks() {
            for (path, parameter) in statistics.task(task)?.parameters() {
                let shape = statistics.shape(path).unwrap_or_default();
                if let Some(welford) = parameter.elementwise() {
                    tensors.moments([&format!("{task}/"), path], shape, welford)?;
                }
                for (grouping, welford) in parameter.groups() {
                    let name = format!("{}/{path}", grouping.label());
                    let prefix = format!("{task}/group_");
                    tensors.moments([&prefix, &name], &[grouping.groups()], welford)?;
                }
            }
        }
        if let Some(store) = gradients {
            for task in statistics.tasks() {
                for sample in store.samples(task) {
                    for parameter in store.catalogue().parameters() {
                        let path = parameter.path();
                        let gradient = store.gradient(task, sample.id(), path)?;
                        let values = gradient.iter().map(|&g| f64::from(g)).collect();
                        let name = format!("{task}/gradient/{}/{path}", sample.id());
                        tensors.0.insert(name, (parameter.shape().to_vec(), values));
                    }
                }
            }
        }
        for (settings, report) in &findings.interference {
            for block in report.blocks() {
                if let Some(scores) = dense(report, block, order) {
                    let name = format!("interference/{settings}/{block}");
                    tensors.0.insert(name, scores);
                }
            }
        }
        Ok(tensors)
    }

    fn moments(
        &mut self,
        [prefix, name]: [&str; 2],
        shape: &[usize],
        welford: &Welford,
    ) -> Result<()> {
        let moments = welford.read()?;
        if let Some(mean) = moments.mean {
            let name = format!("{prefix}mean/{name}");
            self.0.insert(name, (shape.to_vec(), mean));
        }
        if let Some(variance) = moments.variance {
            let degrees = moments.count as f64 - 1.0;
            let m2 = variance.into_iter().map(|v| v * degrees).collect();
            let name = format!("{prefix}m2/{name}");
            self.0.insert(name, (shape.to_vec(), m2));
        }
        Ok(())
    }

    /// Write a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes: BTreeMap<&String, Vec<u8>> = self
            .0
            .iter()
            .map(|(name, (_, values))| {
                (name, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let views = self
            .0
            .iter()
            .zip(bytes.values())
            .map(|((name, (shape, _)), bytes)| {
                Ok((name, TensorView::new(Dtype::F64, shape.clone(), bytes)?))
            });
        let views = views.collect::<Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, None, path)?;
        Ok(())
    }
}

/// `[n_A, n_B, layers, heads]`; `None` where layers differ in their number of heads.
fn dense(
    report: &InterferenceReport,
    block: Block,
    order: &Order,
) -> Option<(Vec<usize>, Vec<f64>)> {
    let [a, b] = [&report.samples[0], &report.samples[1]].map(Vec::len);
    let heads = report.kv_heads.first()?.len();
    let mut values = Vec::with_capacity(a * b * report.kv_heads.len() * heads);
    let [rows, columns] = [0, 1].map(|t| places(order, &report.tasks[t], &report.samples[t]));
    let pairs = rows
        .iter()
        .flat_map(|row| columns.iter().map(move |column| row * b + column));
    for pair in pairs {
        for (layer, of_layer) in report.kv_heads.iter().enumerate() {
            if of_layer.len() != heads {
                return None;
            }
            for head in 0..heads {
                values.push(
                    *report
                        .slice(block, layer, head)?
                        .scores
                        .as_ref()?
                        .get(pair)?,
                );
            }
        }
    }
    Some((vec![a, b, report.kv_heads.len(), heads], values))
}

/// All findings but tensors, as one JSON document.
///
/// # Errors
/// When a task is not in the statistics.
pub fn report(
    settings: Value,
    statistics: &Statistics,
    losses: &BTreeMap<String, BTreeMap<String, f64>>,
    findings: &Findings,
    order: &Order,
) -> Result<Value> {
    let mut tasks = Map::new();
    for task in statistics.tasks() {
        let of_task = statistics.task(task)?;
        let (skipped, counted): (Vec<_>, Vec<_>) =
            of_task.samples().iter().partition(|s| s.skipped.is_some());
        let ids: Vec<String> = counted.iter().map(|s| s.id.clone()).collect();
        let places = places(order, task, &ids);
        let counted = || places.iter().map(|&at| counted[at]);
        let loss = |id: &String| losses.get(task).and_then(|losses| losses.get(id));
        let mut entry = json!({
            "ids": counted().map(|s| &s.id).collect::<Vec<_>>(),
            "tokens": counted().map(|s| s.tokens).collect::<Vec<_>>(),
            "loss_sum": counted().map(|s| loss(&s.id)).collect::<Vec<_>>(),
            "skipped": skipped,
        });
        if let Some(ranking) = findings.ranking.iter().find(|r| r.task == task) {
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
        if let Some(importance) = findings.importance.iter().find(|r| r.task == task) {
            entry["layers"] = json!(importance.layers);
            entry["heads"] = json!(importance.heads);
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
    let mut document = json!({ "schema": 1, "settings": settings, "tasks": tasks });
    if let Some(comparison) = &findings.comparison {
        document["comparison"] = json!(comparison);
    }
    let overlap = findings.overlap.iter().map(|(key, report)| {
        let mut agreements: Map<String, Value> = Map::new();
        agreements.insert("all".into(), json!(report.all));
        agreements.extend(
            report
                .tensors
                .iter()
                .map(|(key, a)| (key.clone(), json!(a))),
        );
        (key.clone(), Value::Object(agreements))
    });
    document["overlap"] = Value::Object(overlap.collect());
    let conflicts = findings.conflicts.iter().map(|(space, report)| {
        let slices = report.slices.iter().map(|slice| {
            let mut entry = json!({ "q_slice": slice.q, "selected": slice.selected });
            if let Some(test) = &slice.test {
                let p = if test.exact {
                    "p_slice_exact"
                } else {
                    "p_slice"
                };
                entry["statistic"] = json!(test.statistic);
                entry[p] = json!(test.p_low);
            }
            if let Some(pairs) = &slice.pairs {
                let ids = [&pairs.a, &pairs.b];
                let places = [0, 1].map(|t| places(order, &report.tasks[t], ids[t]));
                let cosine = arranged(&pairs.cosine, &places);
                let separation = |cosine: &f64| ((1.0 - cosine) / 2.0).max(0.0).sqrt();
                let rows = cosine.iter();
                let rows = rows.map(|row| row.iter().map(separation).collect::<Vec<_>>());
                entry["separation"] = json!(rows.collect::<Vec<_>>());
                entry["cosine"] = json!(cosine);
                entry["p_pair"] = json!(arranged(&pairs.p, &places));
                entry["q_pair"] = json!(arranged(&pairs.q, &places));
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
    let interference = findings.interference.iter().map(|(key, report)| {
        let summary = json!({ "top": report.top, "warnings": report.warnings });
        (key.clone(), summary)
    });
    document["interference"] = Value::Object(interference.collect());
    Ok(document)
}

/// `{key}` to a string of bits, 1 for what stays.
fn bits(masks: &Masks) -> Value {
    let text = |mask: &fisher_metrics::Mask| -> String {
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
