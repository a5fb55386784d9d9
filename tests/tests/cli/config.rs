//! A run's command as a file, and runs by it.

use std::path::Path;

use crate::program::{Case, program};

/// A run by the file of another is that run, but for what stands beside it.
#[test]
fn a_run_is_replayed_by_its_file() {
    let case = Case::new("llama-gqa");
    let more = [
        "--batch-tokens",
        "24",
        "--elements",
        "attention",
        "--sparsity",
        "0.25,0.5",
    ];
    let more = [
        &more[..],
        &[
            "--interference",
            "pool=B",
            "--interference",
            "variant=signed,pool=pooled",
        ],
    ];
    case.run("first", &more.concat()).expect("a run");
    let [first, again, other] = ["first", "again", "other"].map(|out| case.folder(out));
    let file = format!("{first}/run.toml");
    program(&["measure", "--config", &file, "--out", &again]).expect("a run");
    let statistics = |out: &str| {
        let path = Path::new(out).join("statistics.safetensors");
        std::fs::read(path).expect("statistics")
    };
    assert!(statistics(&first) == statistics(&again));
    let reports = ["first", "again"].map(|out| {
        let mut report = case.report(out);
        for of_the_clock in ["date", "seconds"] {
            report["run"][of_the_clock] = serde_json::Value::Null;
        }
        report
    });
    assert_eq!(reports[0], reports[1]);
    let text = |out: &str| {
        let text = std::fs::read_to_string(format!("{out}/run.toml")).expect("a file");
        text.replace(out, "OUT")
    };
    assert_eq!(text(&first), text(&again));
    assert!(
        text(&first).contains("batch-tokens = 24"),
        "{}",
        text(&first)
    );

    // What stands beside the file goes before it, lists as a whole.
    let config = format!("--config={file}");
    let beside = ["--interference", "pool=A", "--samples=2", "--phases", "1-6"];
    let fixed = ["measure", &config, "--out", &other];
    program(&[&fixed[..], &beside].concat()).expect("a run");
    let report = case.report("other");
    assert_eq!(report["run"]["interference"], serde_json::json!(["pool=A"]));
    assert_eq!(report["run"]["collection"]["samples"], 2);
    assert_eq!(report["run"]["sparsity"], serde_json::json!([0.25, 0.5]));
}

#[test]
fn a_file_of_other_things_is_refused() {
    let case = Case::new("llama-gqa");
    let file = case.folder("run.toml");
    for (text, named) in [
        ("colour = \"red\"", "`colour`"),
        ("resume = true", "`resume`"),
        ("seed = [", "cannot read"),
        ("seed = \"many\"", "many"),
    ] {
        std::fs::write(&file, text).expect("a file");
        let error = case.run("out", &["--config", &file]).expect_err(named);
        assert!(error.contains(named), "{error}");
    }
    let error = case.run("out", &["--config", "nowhere.toml"]);
    let error = error.expect_err("no file");
    assert!(error.contains("nowhere.toml"), "{error}");
}
