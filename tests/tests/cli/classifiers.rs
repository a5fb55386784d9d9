//! What is said of models that tell classes apart.

use fisher_tests::golden::folder;
use serde_json::{Value, json};

use crate::check::{check, of};
use crate::program::program;

/// A run of BERT on one task; its folder, or what it was refused for.
fn run(more: &[&str]) -> Result<tempfile::TempDir, String> {
    let out = tempfile::tempdir().expect("a folder");
    let model = folder("families").join("bert").display().to_string();
    let task = format!("alpha={model}/alpha.jsonl");
    let to = out.path().display().to_string();
    let fixed = [
        "measure", "--model", &model, "--out", &to, "--task", &task, "--phases", "1,2",
    ];
    program(&[&fixed[..], more].concat()).map(|()| out)
}

/// The loss is held against ln of the classes; that of the vocabulary, far above, would let it pass.
#[test]
fn equal_probabilities_are_those_of_the_classes() {
    let model = folder("families").join("bert");
    let alpha = model.join("alpha.jsonl");
    let (found, result) = check(&model, &[("alpha", &alpha)]);
    assert_eq!(result, Ok(()), "{found}");
    assert_eq!(found["outcomes"], json!({"classes": 3}));
    let number = |value: &Value| value.as_f64().expect("a number");
    let bound = 3_f64.ln();
    assert!((number(&found["uniform_loss"]) - bound).abs() < 1e-12);
    let loss = of(&found, "loss")[0];
    assert!((number(&loss["bound"]) - bound).abs() < 1e-12, "{loss}");
    // Random weights: the golden losses are 1.29 on average.
    assert!(number(&loss["found"]) > bound && number(&loss["found"]) < 23_f64.ln());
    assert_eq!(loss["judged"], "warning", "{loss}");
    let said = loss["said"].as_str().expect("words");
    assert!(
        said.contains("above ln(classes)") && said.contains("nats a sample"),
        "{said}"
    );
    assert!(!found.to_string().contains("vocabulary"), "{found}");
}

#[test]
fn the_page_speaks_of_classes() {
    let out = run(&[]).expect("a run");
    let page = std::fs::read_to_string(out.path().join("report.html")).expect("a page");
    for said in [
        "which tells 3 classes apart; 4 samples of alpha.",
        "Equal probabilities for all have ln(classes), here 1.10.",
        "loss per sample",
    ] {
        assert!(page.contains(said), "`{said}` is not in {page}");
    }
    for never in ["active token", "ln(vocabulary)", "per token"] {
        assert!(!page.contains(never), "`{never}` is in {page}");
    }
}

/// The same text and class is a copy; the same text under another class is none, and contradicts it.
#[test]
fn a_text_under_two_classes_is_no_copy() {
    let here = tempfile::tempdir().expect("a folder");
    let write = |name: &str, lines: &[Value]| {
        let path = here.path().join(name);
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        std::fs::write(&path, lines.join("\n")).expect("a file");
        path
    };
    let model = folder("families").join("bert");
    let said = |found: &Value, test: &str| {
        let finding = of(found, test)[0];
        let said = finding["said"].as_str().expect("words").to_owned();
        (finding["judged"].clone(), said)
    };

    let sample = |id: &str, tokens: [i64; 3], class: i64| json!({"id": id, "input_ids": tokens, "label": class});
    let two = [
        sample("a", [7, 5, 6], 0),
        sample("b", [7, 5, 6], 2),
        sample("c", [7, 5, 9], 2),
    ];
    let (found, result) = check(&model, &[("x", &write("two", &two))]);
    assert_eq!(result, Ok(()), "{found}");
    let (judged, copies) = said(&found, "copies");
    assert_eq!(judged, "fine", "{copies}");
    assert_eq!(copies, "no two of 3 samples have the same tokens and class");
    let (judged, contradictions) = said(&found, "contradictions");
    assert_eq!(judged, "warning");
    assert_eq!(
        contradictions,
        "1 of 3 samples have the tokens of another and contradict its class: `x: a` (class 0) and `x: b` (class 2)"
    );

    // A copy of what contradicts is a copy, and across tasks it says nothing of a task's errors.
    let other = write(
        "other",
        &[sample("d", [7, 5, 6], 2), sample("e", [8, 8, 8], 1)],
    );
    let (found, _) = check(&model, &[("x", &write("two", &two)), ("y", &other)]);
    let (judged, copies) = said(&found, "copies");
    assert_eq!(judged, "warning");
    assert_eq!(
        copies,
        "1 of 5 samples are copies of another, and in two tasks they make these look alike: `x: b` = `y: d`"
    );
    assert!(said(&found, "contradictions").1.starts_with("1 of 5"));

    let alone = write(
        "alone",
        &[sample("a", [7, 5, 6], 0), sample("b", [7, 5, 9], 1)],
    );
    let (found, _) = check(&model, &[("x", &alone)]);
    assert_eq!(said(&found, "contradictions").0, "fine");
    // Where no sample has a class there is nothing to contradict.
    let llama = folder("llama-gqa");
    let (found, _) = check(&llama, &[("x", &llama.join("alpha.jsonl"))]);
    assert!(of(&found, "contradictions").is_empty());
}

#[test]
fn there_are_no_tokens_to_look_at() {
    for which in ["1", "id:a0"] {
        let error = run(&["--per-token", which]).expect_err("no labels of tokens");
        assert!(
            error.contains("--per-token") && error.contains("one class and no labels of tokens"),
            "{error}"
        );
    }
    // Before the samples are read: these are none.
    let here = tempfile::tempdir().expect("a folder");
    let at = |name: &str| here.path().join(name).display().to_string();
    std::fs::write(at("none.jsonl"), "no JSON").expect("a file");
    let model = folder("families").join("bert").display().to_string();
    let (task, out) = (format!("none={}", at("none.jsonl")), at("out"));
    let fixed = ["measure", "--model", &model, "--out", &out, "--task", &task];
    let error = program(&[&fixed[..], &["--per-token", "1"]].concat()).expect_err("no labels");
    assert!(error.contains("--per-token"), "{error}");
    let error = program(&[&fixed[..], &["--resume"]].concat()).expect_err("no samples");
    assert!(error.contains("not JSON"), "{error}");
    assert!(!here.path().join("out/statistics.safetensors").exists());
}

/// `report.json` has what the refusal points to.
#[test]
fn every_sample_has_its_loss() {
    let out = run(&[]).expect("a run");
    let report = std::fs::read(out.path().join("report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let losses = report["tasks"]["alpha"]["loss_sum"].as_array();
    assert_eq!(losses.expect("losses").len(), 4, "{report}");
    assert_eq!(report["run"]["model"]["classes"], 3);
}
