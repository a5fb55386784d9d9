//! Findings as one JSON document: `report.json`.

use fisher_metrics::conflicts::{ConflictReport, SliceConflicts};
use fisher_metrics::interference::InterferenceReport;
use fisher_metrics::pruning::{Mask, Masks};
use serde_json::{Map, Value, json};

use super::analyses::Findings;
use super::measured::Measured;
use super::merge::Cost;

/// All findings but tensors, as one JSON document.
///
/// `ewc` has by parameter what the model merged with would cost the first task, `ewc_merged` what the
/// merged one does: `½ Σ F (θ − θ₁)²`.
///
/// It grows with samples, layers, heads and parameters, and with no product of these: the masks, and
/// numbers of all pairs of samples, are in `results.safetensors`. What is said of slices has nine digits.
pub fn report(run: Value, measured: &[Measured], findings: &Findings) -> Value {
    let tasks = measured.iter();
    let tasks = tasks.map(|task| (task.name.clone(), of_task(task, findings)));
    let tasks: Map<String, Value> = tasks.collect();
    let order: Vec<&str> = measured.iter().map(|task| &*task.name).collect();
    let mut document = json!({ "schema": SCHEMA, "run": run, "order": order, "tasks": tasks });
    if let Some(comparison) = &findings.comparison {
        document["comparison"] = json!(comparison);
    }
    document["overlap"] = overlap(findings);
    document["overlap_suggests"] = json!(findings.suggestion);
    document["without_halves"] = json!(findings.without_halves);
    document["conflicts"] = conflicts(findings);
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
    document["interference"] = interference(findings);
    for part in [
        "overlap",
        "conflicts",
        "conflict_summary",
        "health",
        "interference",
    ] {
        document.get_mut(part).into_iter().for_each(round);
    }
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
const SCHEMA: u64 = 2;

/// What was measured and found of one task.
fn of_task(measured: &Measured, findings: &Findings) -> Value {
    let task = &measured.name;
    let mut entry = json!(measured);
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
    let masks: Map<String, Value> = masks.map(|(_, key, m)| (key.clone(), kept(m))).collect();
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
    entry
}

/// Agreements of masks, by scope and sparsity, then by tensor.
fn overlap(findings: &Findings) -> Value {
    let overlap = findings.overlap.iter().map(|(key, report)| {
        let mut agreements: Map<String, Value> = Map::new();
        agreements.insert("all".into(), json!(report.all));
        agreements.insert("ceiling".into(), json!(report.ceiling));
        let tensors = report.tensors.iter();
        agreements.extend(tensors.map(|(key, a)| (key.clone(), json!(a))));
        (key.clone(), Value::Object(agreements))
    });
    Value::Object(overlap.collect())
}

/// Conflicts by space and slice, without their pairs.
fn conflicts(findings: &Findings) -> Value {
    let conflicts = findings.conflicts.iter().map(|(space, report)| {
        let slices = report.slices.iter().map(|slice| {
            let mut entry = json!(SliceConflicts {
                pairs: None,
                ..slice.clone()
            });
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("pairs");
            }
            (slice.name.clone(), entry)
        });
        ((*space).to_owned(), Value::Object(slices.collect()))
    });
    Value::Object(conflicts.collect())
}

/// Interference by its settings, without scores of pairs.
fn interference(findings: &Findings) -> Value {
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
    Value::Object(interference.collect())
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

/// Nine digits of every number: more than any of these have, and half as long.
fn round(value: &mut Value) {
    match value {
        Value::Array(entries) => entries.iter_mut().for_each(round),
        Value::Object(entries) => entries.values_mut().for_each(round),
        Value::Number(number) if number.is_f64() => {
            let nine = number.as_f64().map(|number| format!("{number:.8e}"));
            if let Some(Ok(nine)) = nine.map(|nine| nine.parse::<f64>()) {
                *value = json!(nine);
            }
        }
        _ => {}
    }
}

/// How many groups stay, of how many.
fn kept(masks: &Masks) -> Value {
    let sum = |of: fn(&Mask) -> usize| masks.masks.iter().map(of).sum::<usize>();
    json!({
        "kept": sum(|mask| mask.keep.count_ones(..)),
        "groups": sum(|mask| mask.keep.len()),
    })
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
