//! A report and its tensors against the golden ones.

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
    for part in &parts[..if last < 7 { 3 } else { 4 }] {
        let expected = golden.expected(&format!("/{part}"));
        compared += within(part, &report[part], expected, 0.0);
    }
    if folder_has(golden, "conflicts") {
        let expected = golden.topic("conflicts");
        for space in ["raw", "fisher"] {
            let slices = expected[space]["slices"].as_object().expect("slices");
            for (name, of) in slices {
                let found = &report["conflicts"][space][name];
                let path = format!("conflicts/{space}/{name}");
                compared += within(&path, &found["apart"], &of["apart"], 0.0);
                let [found, of] = [found, of].map(|slice| &slice["pairs"]["cosine"]);
                compared += within(&path, found, of, 0.0);
            }
        }
    }
    let bytes = std::fs::read(folder.join("results.safetensors")).expect("results");
    let found = SafeTensors::deserialize(&bytes).expect("safetensors");
    for name in golden.names("") {
        if last < 7 && ["scaled/", "merged/"].iter().any(|p| name.starts_with(p)) {
            continue;
        }
        let view = found.tensor(name).unwrap_or_else(|_| panic!("no `{name}`"));
        let (shape, expected) = golden.tensor(name);
        assert_eq!(view.shape(), shape, "{name}");
        let values = view.data().chunks_exact(8);
        let values = values.map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
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
        for (at, (found, expected)) in values.zip(expected).enumerate() {
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
