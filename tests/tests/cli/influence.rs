//! `fisher influence`: golden gradients, what is kept, what is said.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use fisher_cli::Cli;
use fisher_tests::golden::{CASES, Golden, TASKS, folder};
use fisher_tests::tolerance::{BACKWARD, assert_close};
use serde_json::Value;

fn task_file(case: &str, task: &str) -> PathBuf {
    folder(case).join(format!("{task}.jsonl"))
}

/// Run it; what was written.
fn influence(case: &str, out: &Path, more: &[&str]) -> Result<Value, String> {
    let [train, queries] = TASKS.map(|task| task_file(case, task).display().to_string());
    let model = folder(case).display().to_string();
    let train = format!("train={train}");
    let file = out.join("influence.json").display().to_string();
    let arguments = [
        "fisher",
        "influence",
        "--model",
        &model,
        "--train",
        &train,
        "--query",
        &queries,
        "--out",
        &file,
    ];
    let arguments = arguments.iter().chain(more).map(|text| (*text).to_owned());
    let cli = Cli::read(arguments).map_err(|e| e.to_string())?;
    cli.run().map_err(|e| e.to_string())?;
    let bytes = std::fs::read(&file).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

fn scores(found: &Value) -> Vec<f64> {
    let scores = found["report"]["scores"].as_array().expect("scores").iter();
    scores
        .map(|score| score.as_f64().expect("a number"))
        .collect()
}

#[test]
fn products_are_those_of_golden_gradients() {
    for case in CASES {
        let golden = Golden::load(case);
        let out = tempfile::tempdir().expect("a folder");
        let found = influence(case, out.path(), &["--inverse", "identity"]).expect("a run");
        let rows = |task: &str| -> Vec<Vec<f64>> {
            let count = golden.samples(task).len();
            let batch = golden.batch(task, 0..count, &Device::flex());
            let mut rows = vec![Vec::new(); count];
            for (_, gradient) in batch.iter() {
                let values = fisher_core::read(gradient.to_full()).expect("values");
                let elements = values.len() / count;
                for (row, values) in rows.iter_mut().zip(values.chunks(elements)) {
                    row.extend_from_slice(values);
                }
            }
            rows
        };
        let [train, queries] = TASKS.map(rows);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        // Samples come by their length, and are known by their ids.
        let places = |task: &str, ids: &Value| -> Vec<usize> {
            let samples = golden.samples(task);
            let ids = ids.as_array().expect("ids").iter();
            let place = |id: &Value| {
                let id = id.as_str().expect("an id");
                let found = samples.iter().position(|sample| sample.id() == id);
                found.expect("a sample")
            };
            ids.map(place).collect()
        };
        let of_train = places(TASKS[0], &found["report"]["train_ids"]);
        let of_queries = places(TASKS[1], &found["report"]["query_ids"]);
        let row = |query: &usize| {
            let products = of_train.iter().map(|at| dot(&queries[*query], &train[*at]));
            products.collect::<Vec<f64>>()
        };
        let expected: Vec<f64> = of_queries.iter().flat_map(row).collect();
        let largest = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        assert_close(case, &scores(&found), &expected, BACKWARD, largest);
        let queries = found["queries"].as_array().expect("queries");
        assert_eq!(queries.len(), golden.samples(TASKS[1]).len());
        for query in queries {
            for (what, sign) in [("helps", 1.0), ("harms", -1.0)] {
                let named = query[what].as_array().expect("samples");
                assert!(named.len() <= 5);
                for of in named {
                    assert!(
                        sign * of["score"].as_f64().expect("a score") > 0.0,
                        "{what}"
                    );
                    assert!(of["text"].as_str().is_some_and(|text| !text.is_empty()));
                }
            }
        }
    }
}

/// The second time gradients of training samples are read, and all scores are the same.
#[test]
fn gradients_are_kept_for_other_questions() {
    let case = CASES[0];
    let out = tempfile::tempdir().expect("a folder");
    let index = out.path().join("index");
    let kept = index.display().to_string();
    for inverse in ["exact", "kfac", "ekfac"] {
        let arguments = [
            "--inverse",
            inverse,
            "--gradients",
            &kept,
            "--batch-tokens",
            "64",
        ];
        let first = influence(case, out.path(), &arguments).expect("a run");
        let second = influence(case, out.path(), &arguments).expect("a run");
        assert_eq!(first, second, "{inverse}");
        let held = influence(
            case,
            out.path(),
            &["--inverse", inverse, "--batch-tokens", "64"],
        );
        let held = scores(&held.expect("a run"));
        let largest = held.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        assert_close(inverse, &scores(&second), &held, 1e-9, largest);
        assert_eq!(first["report"]["inverse"], inverse);
    }
    assert!(index.join("factors.safetensors").exists());
    let fewer = ["--gradients", &kept, "--samples", "2"];
    let error = influence(case, out.path(), &fewer).expect_err("other samples");
    assert!(
        error.contains("index") && error.contains("--gradients"),
        "{error}"
    );
    let other = ["--gradients", &kept, "--params", "attention"];
    let error = influence(case, out.path(), &other).expect_err("other parameters");
    assert!(error.contains("index"), "{error}");
}

#[test]
fn what_makes_no_sense_is_said() {
    let case = CASES[0];
    let out = tempfile::tempdir().expect("a folder");
    for (wrong, said) in [
        (["--params", "nothing_is_called_so"], "nothing_is_called_so"),
        (["--params", "none"], "none"),
        (["--damping", "0"], "damping"),
        (["--top", "0"], "1 or more"),
    ] {
        let error = influence(case, out.path(), &wrong).expect_err("no sense");
        assert!(error.contains(said), "{error}");
    }
}
