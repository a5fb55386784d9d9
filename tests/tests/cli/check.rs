//! `fisher check`: what is fine, what is not, and what each line says.

use std::path::Path;

use fisher_cli::Cli;
use fisher_cli::check::{doubled, special_tokens};
use fisher_tests::golden::{CASES, Golden, TASKS, folder};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Check a model's folder; what was found, and whether it is fit.
pub(crate) fn check(model: &Path, tasks: &[(&str, &Path)]) -> (Value, Result<(), String>) {
    let out = tempfile::tempdir().expect("a folder");
    let file = out.path().join("check.json").display().to_string();
    let model = model.display().to_string();
    let mut arguments = vec!["fisher", "check", "--model", &model, "--out", &file];
    let tasks: Vec<String> = tasks
        .iter()
        .map(|(n, p)| format!("{n}={}", p.display()))
        .collect();
    arguments.extend(tasks.iter().flat_map(|task| ["--task", task]));
    let cli = Cli::read(arguments.into_iter().map(str::to_owned)).expect("a command line");
    let result = cli.run().map_err(|e| e.to_string());
    let found = match std::fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes).expect("JSON"),
        Err(_) => Value::Null,
    };
    (found, result)
}

/// The findings of a test.
pub(crate) fn of<'a>(found: &'a Value, test: &str) -> Vec<&'a Value> {
    let findings = found["findings"].as_array().expect("findings").iter();
    findings
        .filter(|finding| finding["test"] == *test)
        .collect()
}

/// A golden folder of one's own, to be broken.
fn copied(case: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(folder(case)).expect("a model") {
        let from = entry.expect("a file").path();
        let to = copy.path().join(from.file_name().expect("a name"));
        std::fs::copy(from, to).expect("a copy");
    }
    copy
}

/// Golden models are sound: every comparison is within its bound, and losses are golden.
#[test]
fn golden_models_are_fit() {
    for case in CASES {
        let golden = Golden::load(case);
        let paths = TASKS.map(|task| folder(case).join(format!("{task}.jsonl")));
        let tasks: Vec<(&str, &Path)> = TASKS.into_iter().zip(paths.iter().map(|p| &**p)).collect();
        let (found, result) = check(&folder(case), &tasks);
        assert_eq!(result, Ok(()), "{case}: {found}");
        for (at, task) in TASKS.iter().enumerate() {
            let numbers = |what: &str| -> f64 {
                let list = golden.expected(&format!("/tasks/{task}/{what}"));
                let list = list.as_array().expect("a list").iter();
                list.map(|n| n.as_f64().expect("a number")).sum()
            };
            let expected = numbers("loss_sum") / numbers("tokens");
            let loss = found["tasks"][at]["loss"].as_f64().expect("a loss");
            assert!(
                (loss - expected).abs() < 1e-5,
                "{case} {task}: {loss} {expected}"
            );
            assert_eq!(
                found["tasks"][at]["active"].as_f64(),
                Some(numbers("tokens"))
            );
        }
        for test in [
            "batch: losses",
            "batch: gradients",
            "padding: losses",
            "padding: gradients",
        ] {
            let findings = of(&found, test);
            assert_eq!(findings.len(), 1, "{case} {test}");
            let finding = findings[0];
            assert_eq!(finding["judged"], "fine", "{case}: {finding}");
            // Far within: float32 rounds at 6e-8.
            assert!(
                finding["found"].as_f64().expect("a number") < 1e-3,
                "{finding}"
            );
        }
        assert_eq!(of(&found, "engine")[0]["judged"], "fine");
        assert_eq!(of(&found, "weights")[0]["judged"], "fine");
        // Rounded to 8 bits of mantissa weights move gradients, and by more than to 11.
        let moved = |test: &str| of(&found, test)[0]["found"].as_f64().expect("a number");
        let (coarse, fine) = (moved("weights as bfloat16"), moved("weights as float16"));
        assert!(coarse > 2.0 * fine && fine > 1e-5, "{coarse} {fine}");
    }
}

/// A weight that is no number is named, the program fails, and what cannot be compared is said to be untested.
#[test]
fn a_broken_weight_is_named() {
    let broken = copied("llama-gqa");
    let path = broken.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let name = "model.layers.1.mlp.up_proj.weight";
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let start = json[name]["data_offsets"][0].as_u64().expect("an offset") as usize;
    let at = 8 + header + start + 12;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("a file");
    let alpha = folder("llama-gqa").join("alpha.jsonl");
    let (found, result) = check(broken.path(), &[("alpha", &alpha)]);
    let error = result.expect_err("a broken model");
    assert!(error.contains("not fit"), "{error}");
    assert_eq!(found["verdict"], "wrong");
    let weights = of(&found, "weights");
    assert_eq!(weights[0]["judged"], "wrong");
    let said = weights[0]["said"].as_str().expect("words");
    assert!(
        said.contains(&format!("{name} (1 NaN, 0 infinite)")),
        "{said}"
    );
    assert_eq!(of(&found, "loss")[0]["judged"], "wrong");
    assert_eq!(of(&found, "batch: gradients")[0]["judged"], "untested");
}

/// Data that is not as it should be is a warning, each in its own line.
#[test]
fn data_is_looked_at() {
    let here = tempfile::tempdir().expect("a folder");
    let path = here.path().join("data.jsonl");
    let lines = [
        json!({"id": "twice", "input_ids": [1, 1, 5, 6]}),
        json!({"id": "ends", "input_ids": [7, 5, 6, 2, 2]}),
        json!({"id": "plain", "input_ids": [7, 5, 6]}),
        json!({"id": "copy", "input_ids": [7, 5, 6]}),
        json!({"id": "plain", "input_ids": [7, 5, 9]}),
        json!({"id": "long", "input_ids": vec![3; 33]}),
    ];
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).expect("a file");
    let (found, result) = check(&folder("llama-gqa"), &[("data", &path)]);
    assert_eq!(result, Ok(()), "warnings are no errors: {found}");
    assert_eq!(found["verdict"], "warning");
    let said = |test: &str| {
        of(&found, test)[0]["said"]
            .as_str()
            .expect("words")
            .to_owned()
    };
    let (lines, special, copies) = (said("lines"), said("special tokens"), said("copies"));
    assert!(
        lines.contains("4 samples, 2 more left out; the first is line 5")
            && lines.contains("--skip-bad"),
        "{lines}"
    );
    // Samples are named with their task.
    let [rounded, batch] = [said("weights as float16"), said("batch: gradients")];
    assert!(rounded.contains("of task `data`"), "{rounded}");
    assert!(batch.contains("of sample `data: "), "{batch}");
    assert!(
        special.contains("`twice` (BOS 1 at its start), `ends` (EOS 2 at its end)"),
        "{special}"
    );
    assert!(
        special.contains("1 of 4 samples begin with one, 1 end with one"),
        "{special}"
    );
    assert!(
        copies.contains("1 of 4") && copies.contains("`data: plain` = `data: copy`"),
        "{copies}"
    );
}

#[test]
fn a_loss_above_that_of_knowing_nothing_is_a_warning() {
    let broken = copied("gpt2-fused");
    let path = broken.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    for weight in bytes[8 + header..].chunks_exact_mut(4) {
        let value = 4.0 * f32::from_le_bytes((&*weight).try_into().expect("4 bytes"));
        weight.copy_from_slice(&value.to_le_bytes());
    }
    std::fs::write(&path, bytes).expect("a file");
    let alpha = folder("gpt2-fused").join("alpha.jsonl");
    let (found, result) = check(broken.path(), &[("alpha", &alpha)]);
    assert_eq!(result, Ok(()));
    let loss = of(&found, "loss")[0];
    assert_eq!(loss["judged"], "warning", "{found}");
    assert!(loss["found"].as_f64() > loss["bound"].as_f64());
    let said = loss["said"].as_str().expect("words");
    assert!(said.contains("above ln(vocabulary)"), "{said}");
}

/// One sample has no other to be beside: that is said to be untested, and what can be tested still is.
#[test]
fn one_sample_is_tested_as_far_as_it_goes() {
    let here = tempfile::tempdir().expect("a folder");
    let path = here.path().join("data.jsonl");
    std::fs::write(&path, r#"{"input_ids": [7, 5, 6, 9]}"#).expect("a file");
    let (found, result) = check(&folder("llama-gqa"), &[("data", &path)]);
    assert_eq!(result, Ok(()), "{found}");
    let losses = of(&found, "batch: losses")[0];
    assert_eq!(losses["judged"], "untested");
    let said = losses["said"].as_str().expect("words");
    assert!(said.contains("two samples of a task"), "{said}");
    for test in ["padding: losses", "padding: gradients", "engine"] {
        assert_eq!(of(&found, test)[0]["judged"], "fine", "{test}: {found}");
    }
    let said = of(&found, "padding: losses")[0]["said"].as_str();
    let said = said.expect("words");
    assert!(
        said.starts_with("losses of 2 samples in a batch with padding"),
        "{said}"
    );
    let said = of(&found, "engine")[0]["said"].as_str().expect("words");
    assert!(said.starts_with("one pass over the batch"), "{said}");
}

/// Where no line is a sample, the first says why.
#[test]
fn files_without_samples_say_why() {
    let here = tempfile::tempdir().expect("a folder");
    let path = here.path().join("data.jsonl");
    std::fs::write(&path, r#"{"text": "no tokenizer here"}"#).expect("a file");
    let (_, result) = check(&folder("llama-gqa"), &[("data", &path)]);
    let error = result.expect_err("no samples");
    assert!(
        error.contains("line 1: there is no") && error.contains("tokenizer.json"),
        "{error}"
    );
}

#[test]
fn special_tokens_are_those_of_the_folder() {
    let special = special_tokens(&folder("llama-gqa"));
    assert_eq!(special.get(&1).map(String::as_str), Some("BOS"));
    assert_eq!(doubled(&[1, 1, 2], &special), [Some(1), None]);
    assert_eq!(doubled(&[1, 2, 2], &special), [None, Some(2)]);
    assert_eq!(doubled(&[5, 5], &special), [None, None]);
    assert_eq!(doubled(&[1], &special), [None, None]);
}
