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
