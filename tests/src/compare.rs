//! A report and its tensors against the golden ones.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::golden::Golden;

/// Numbers of float32 models against float64, relative; and how small they may be beside the
/// largest before that is what counts.
pub const FLOAT32: f64 = 1e-4;

/// All golden entries of phases 1 to `last` in `folder`'s `report.json` and `results.safetensors`;
/// the last there is, is 7. Returns how many numbers were compared.
///
/// # Panics
/// Where one differs or is missing.
pub fn against_golden(golden: &Golden, folder: &Path, last: u8) -> usize {
    let report = std::fs::read(folder.join("report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let mut compared = 0;
    let parts = ["tasks", "overlap", "health", "ewc"];
    let bytes = std::fs::read(folder.join("results.safetensors")).expect("results");
    let found = SafeTensors::deserialize(&bytes).expect("safetensors");
    for part in &parts[..if last < 7 { 3 } else { 4 }] {
        let mut expected = golden.expected(&format!("/{part}")).clone();
        if *part == "tasks" {
            compared += masks(&found, &mut expected);
        }
        compared += within(part, &report[part], &expected, 0.0);
    }
    if folder_has(golden, "conflicts") {
        let expected = golden.topic("conflicts");
        for space in ["raw", "fisher"] {
            let slices = expected[space]["slices"].as_object().expect("slices");
            for (name, of) in slices {
                let slice = &report["conflicts"][space][name];
                let path = format!("conflicts/{space}/{name}");
                compared += within(&path, &slice["apart"], &of["apart"], 0.0);
                let cosines = matrix(&found, &format!("conflicts/{space}/cosine/{name}"));
                compared += within(&path, &cosines, &of["pairs"]["cosine"], 0.0);
            }
        }
    }
    let merged = if last < 7 {
        BTreeMap::new()
    } else {
        weights(&folder.join("merged"))
    };
    for name in golden.names("") {
        if last < 7 && ["scaled/", "merged/"].iter().any(|p| name.starts_with(p)) {
            continue;
        }
        let (shape, expected) = golden.tensor(name);
        let (found_shape, values) = match name.strip_prefix("merged/") {
            Some(parameter) => {
                let bare = parameter.trim_start_matches("transformer.");
                let found = merged.get(parameter).or_else(|| merged.get(bare));
                found
                    .unwrap_or_else(|| panic!("no `{parameter}` in the merged model"))
                    .clone()
            }
            None => floats(&found, name),
        };
        assert_eq!(found_shape, shape, "{name}");
        let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        // Signed scores cancel, and gradients are differences of float32.
        let floor = if ["signed", "full", "gradient", "scaled"]
            .iter()
            .any(|n| name.contains(n))
        {
            1.0
        } else {
            1e-2
        };
        for (at, (found, expected)) in values.into_iter().zip(expected).enumerate() {
            let bound = match name.starts_with("merged/") {
                // Of the way between the models, which is 0.01; F of some biases is 0 but for rounding.
                true => 10.0 * FLOAT32 * 0.01,
                false => FLOAT32 * expected.abs().max(floor * largest),
            };
            assert!(
                (found - expected).abs() <= bound,
                "{name}[{at}]: {found:e} against {expected:e}"
            );
            compared += 1;
        }
    }
    compared
}

/// Shape and values of a tensor of float64.
fn floats(file: &SafeTensors, name: &str) -> (Vec<usize>, Vec<f64>) {
    let view = file.tensor(name).unwrap_or_else(|_| panic!("no `{name}`"));
    let values = view.data().chunks_exact(8);
    let values = values.map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
    (view.shape().to_vec(), values.collect())
}

/// A matrix as JSON; null where it has no number.
fn matrix(file: &SafeTensors, name: &str) -> Value {
    let (shape, values) = floats(file, name);
    values.chunks(shape[1].max(1)).collect()
}

/// The float32 weights of a model in a folder.
///
/// # Panics
/// When it has none.
pub fn weights(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let mut weights = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a model") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|end| end != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(path).expect("a file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        for (name, view) in file.tensors() {
            let values = view.data().chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")).into());
            weights.insert(name, (view.shape().to_vec(), values.collect()));
        }
    }
    weights
}

/// The masks of all tasks, taken out of what is expected of the report.
fn masks(found: &SafeTensors, tasks: &mut Value) -> usize {
    let mut compared = 0;
    for (task, of_task) in tasks.as_object_mut().expect("tasks") {
        let masks = of_task
            .as_object_mut()
            .and_then(|task| task.remove("masks"));
        for (key, masks) in masks.iter().flat_map(|m| m.as_object().expect("masks")) {
            for (of, bits) in masks.as_object().expect("bits") {
                let (path, label) = of.split_once('|').expect("a parameter and a label");
                let name = format!("{task}/mask/{key}/{label}/{path}");
                let view = found.tensor(&name);
                let view = view.unwrap_or_else(|_| panic!("no `{name}`"));
                let found: String = view.data().iter().map(|bit| bit.to_string()).collect();
                assert_eq!(Some(&*found), bits.as_str(), "{name}");
                compared += 1;
            }
        }
    }
    compared
}

fn folder_has(golden: &Golden, topic: &str) -> bool {
    let file = format!("expected-{topic}.json");
    golden.folder().join(file).exists()
}

/// Everything that `expected` has, at the same place in `found`.
fn within(path: &str, found: &Value, expected: &Value, largest: f64) -> usize {
    match expected {
        Value::Object(entries) => entries
            .iter()
            .map(|(key, expected)| {
                let found = found.get(key);
                let found = found.unwrap_or_else(|| panic!("no `{path}/{key}`"));
                within(&format!("{path}/{key}"), found, expected, 0.0)
            })
            .sum(),
        Value::Array(entries) => {
            let found = found
                .as_array()
                .unwrap_or_else(|| panic!("{path} is no list"));
            assert_eq!(found.len(), entries.len(), "{path}");
            let largest = numbers(expected).fold(largest, f64::max);
            let pairs = found.iter().zip(entries).enumerate();
            pairs
                .map(|(i, (found, expected))| {
                    within(&format!("{path}/{i}"), found, expected, largest)
                })
                .sum()
        }
        Value::Number(expected) if found.is_string() => {
            // Ids are numbers in the files and free text in reports.
            assert_eq!(found.as_str(), Some(&*expected.to_string()), "{path}");
            1
        }
        Value::Number(expected) => {
            let expected = expected.as_f64().expect("a number");
            let found = found
                .as_f64()
                .unwrap_or_else(|| panic!("{path}: {found} is no number"));
            let exact = expected.fract() == 0.0 && !path.contains("/q_") && !path.contains("/p_");
            // A difference of mean cosines, which are of size 1.
            let largest = if path.ends_with("/statistic") {
                0.1
            } else {
                largest
            };
            let bound = if exact {
                1e-9 * expected.abs()
            } else {
                FLOAT32 * expected.abs().max(largest)
            };
            assert!(
                (found - expected).abs() <= bound,
                "{path}: {found:e} against {expected:e}"
            );
            1
        }
        expected => {
            assert_eq!(found, expected, "{path}");
            1
        }
    }
}

fn numbers(value: &Value) -> Box<dyn Iterator<Item = f64> + '_> {
    match value {
        Value::Array(entries) => Box::new(entries.iter().flat_map(numbers)),
        value => Box::new(value.as_f64().map(f64::abs).into_iter()),
    }
}
