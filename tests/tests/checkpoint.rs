//! The program `checkpoint`: from golden checkpoints to golden numbers.

use std::collections::BTreeMap;

use burn::tensor::Device;
use clap::Parser;
use fisher_core::{Statistics, StatisticsConfig, StoreConfig};
use fisher_examples::checkpoint::analysis::{Plan, parse_interference};
use fisher_examples::checkpoint::results::{Tensors, report};
use fisher_examples::checkpoint::run::Arguments;
use fisher_metrics::{InterferenceConfig, Weights};
use fisher_tests::backend::Backend;
use fisher_tests::compare::against_golden;
use fisher_tests::golden::{CASES, Golden, TASKS};
use rstest::rstest;

/// All settings of the golden interference.
fn settings(golden: &Golden) -> Vec<(String, InterferenceConfig)> {
    let names = golden.names("interference/");
    let names = names.filter_map(|name| name.strip_suffix("/Q"));
    let parse = |text: &str| (text.to_owned(), parse_interference(text).expect("settings"));
    names.map(parse).collect()
}

/// The analyses and their files, from golden gradients.
#[test]
fn findings_are_written_under_golden_keys() {
    let device = Device::flex();
    for case in CASES {
        let golden = Golden::load(case);
        let mut statistics: Statistics = golden.statistics(&StatisticsConfig::new(), &device);
        let mut losses: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
        let order = BTreeMap::new();
        for task in TASKS {
            let batch = golden.batch(task, 0..golden.samples(task).len(), &device);
            statistics.push(task, batch).expect("gradients");
            let expected = golden.expected(&format!("/tasks/{task}/loss_sum"));
            let expected: Vec<f64> = serde_json::from_value(expected.clone()).expect("losses");
            let ids = golden.samples(task).into_iter().map(|s| s.id().to_owned());
            losses.insert(task.to_owned(), ids.zip(expected).collect());
        }
        let store = golden.store(&StoreConfig::new(1 << 24), 3, &device);
        let plan = Plan {
            phases: (1..=6).collect(),
            sparsities: vec![0.5, 0.7, 0.9],
            interference: settings(&golden),
            relabellings: 1000,
            memory: 1 << 26,
            seed: 0,
            progress: false,
        };
        let tasks = TASKS.map(str::to_owned);
        let weights = Weights::from(golden.weights());
        let heads = golden.heads();
        let findings = plan
            .run(&tasks, &statistics, &weights, Some(&store), &heads, &device)
            .expect("findings");
        let folder = tempfile::tempdir().expect("a folder");
        let tensors = Tensors::of(&statistics, Some(&store), &findings, &order).expect("tensors");
        let results = folder.path().join("results.safetensors");
        tensors.save(&results).expect("a file");
        let json =
            report("none".into(), &statistics, &losses, &findings, &order).expect("a report");
        let text = serde_json::to_vec(&json).expect("JSON");
        std::fs::write(folder.path().join("report.json"), text).expect("a file");
        let compared = against_golden(&golden, folder.path());
        assert!(compared > 50_000, "only {compared} numbers in {case}");
    }
}

#[rstest]
#[case("pool=C", "pool=C")]
#[case("colour=red", "`colour`")]
#[case("signed", "key=value")]
fn what_is_no_setting_is_named(#[case] text: &str, #[case] named: &str) {
    let error = parse_interference(text).expect_err("no setting");
    assert!(error.contains(named), "{error}");
}

/// The whole program on a golden folder.
#[rstest]
fn golden_folders_give_golden_numbers(
    #[values("flex", "ndarray", "wgpu")] device: &str,
    #[values(0, 1)] case: usize,
) {
    let backend = match device {
        "flex" => Backend::Flex,
        "ndarray" => Backend::Ndarray,
        _ => Backend::Wgpu,
    };
    if backend.device().is_none() {
        return;
    }
    let golden = Golden::load(CASES[case]);
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("a path");
    let model = golden.folder();
    let model = model.to_str().expect("a path");
    let mut arguments = vec!["checkpoint".to_owned(), "--model".into(), model.into()];
    for task in TASKS {
        arguments.extend(["--task".into(), format!("{task}={model}/{task}.jsonl")]);
    }
    for (settings, _) in settings(&golden) {
        arguments.extend(["--interference".into(), settings]);
    }
    let rest = [
        "--out",
        out,
        "--device",
        device,
        "--save-gradients",
        "--batch-tokens",
        "20",
    ];
    arguments.extend(rest.map(str::to_owned));
    let run = Arguments::try_parse_from(arguments)
        .expect("arguments")
        .run();
    run.expect("a run");
    let compared = against_golden(&golden, folder.path());
    assert!(compared > 50_000, "only {compared} numbers");
    let statistics = folder.path().join("statistics.safetensors");
    let statistics: Statistics = Statistics::load(statistics, &Device::flex()).expect("statistics");
    assert_eq!(statistics.tasks().count(), 2);
}
