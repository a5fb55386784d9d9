//! The program: from golden checkpoints to golden numbers, and what it refuses.

use std::path::Path;

use fisher_cli::Cli;
use fisher_cli::measure::{Analyses, Measured, Saved, Tensors, parse_interference, report};
use fisher_cli::models::Checkpoint;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::GradientStoreConfig;
use fisher_metrics::interference::InterferenceConfig;
use fisher_metrics::weights::Weights;
use fisher_tests::backend::Backend;
use fisher_tests::compare::against_golden;
use fisher_tests::golden::{CASES, Golden, TASKS, folder};
use rstest::rstest;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tempfile::TempDir;

fn settings(golden: &Golden) -> Vec<String> {
    let names = golden.names("interference/");
    let names = names.filter_map(|name| name.strip_suffix("/Q"));
    names.map(str::to_owned).collect()
}

/// The analyses and their files, from golden gradients.
#[test]
fn findings_are_written_under_golden_keys() {
    let device = Backend::Flex.device().expect("a CPU");
    for case in CASES {
        let golden = Golden::load(case);
        let mut statistics: Statistics = golden.statistics(&StatisticsConfig::new(), &device);
        let mut tasks = Vec::new();
        for task in TASKS {
            let batch = golden.batch(task, 0..golden.samples(task).len(), &device);
            statistics.push(task, batch).expect("gradients");
            let list = |what: &str| {
                let list = golden.expected(&format!("/tasks/{task}/{what}"));
                list.as_array().expect("a list").clone()
            };
            let losses = list("loss_sum").into_iter();
            let losses = losses.map(|loss| loss.as_f64().expect("a loss"));
            let samples = list("ids").into_iter().zip(losses);
            tasks.push(Measured::of(&statistics, task, samples, Vec::new()).expect("samples"));
        }
        let store = golden.store(&GradientStoreConfig::new(1 << 24), 3, &device);
        let store = store.with_heads(golden.heads()).with_device(&device);
        let parse = |text: &String| (text.clone(), parse_interference(text).expect("settings"));
        let analyses = Analyses {
            phases: (1..=6).collect(),
            sparsities: vec![0.5, 0.7, 0.9],
            interference: settings(&golden).iter().map(parse).collect(),
            memory: 1 << 26,
            seed: 0,
            progress: false,
            pairs: true,
        };
        let names = TASKS.map(str::to_owned);
        let weights = Weights::from(golden.weights());
        let read = |path: &str, elements| Ok(weights.get(path, elements)?.to_vec());
        let findings = analyses
            .run(&names, &statistics, &read, Some(&store))
            .expect("findings");
        let folder = tempfile::tempdir().expect("a folder");
        let saved = Saved {
            groups: true,
            elements: true,
            gradients: true,
            pairs: true,
            scaled: &[],
        };
        let tensors = Tensors::of(&statistics, Some(&store), &tasks, &findings, &saved);
        let tensors = tensors.expect("tensors");
        let results = folder.path().join("results.safetensors");
        tensors.save(&results).expect("a file");
        let json = report("none".into(), &tasks, &findings);
        let text = serde_json::to_vec(&json).expect("JSON");
        std::fs::write(folder.path().join("report.json"), text).expect("a file");
        let compared = against_golden(&golden, folder.path(), 6);
        assert!(compared > 50_000, "only {compared} numbers in {case}");
    }
}

#[rstest]
#[case("pool=C", "pool=C")]
#[case("color=red", "`color`")]
#[case("signed", "key=value")]
fn what_is_no_setting_is_named(#[case] text: &str, #[case] named: &str) {
    let error = parse_interference(text).expect_err("no setting");
    assert!(error.contains(named), "{error}");
    let _: InterferenceConfig = parse_interference("default").expect("settings");
}

/// Run the program with these arguments.
pub(crate) fn program(arguments: &[&str]) -> Result<(), String> {
    let arguments = std::iter::once(&"fisher").chain(arguments);
    let cli = Cli::read(arguments.map(|s| (*s).into())).map_err(|e| e.to_string())?;
    cli.run().map_err(|e| e.to_string())
}

/// A golden case and where its results go.
pub(crate) struct Case {
    pub(crate) model: String,
    pub(crate) tasks: [String; 2],
    pub(crate) out: TempDir,
}

impl Case {
    pub(crate) fn new(case: &str) -> Self {
        let model = folder(case);
        Self {
            tasks: TASKS
                .map(|task| format!("{task}={}", model.join(format!("{task}.jsonl")).display())),
            model: model.display().to_string(),
            out: tempfile::tempdir().expect("a folder"),
        }
    }

    /// A run of both tasks into a folder inside `out`.
    pub(crate) fn run(&self, out: &str, more: &[&str]) -> Result<(), String> {
        let out = self.folder(out);
        let mut arguments = vec!["measure", "--model", &self.model, "--out", &out];
        arguments.extend(self.tasks.iter().flat_map(|task| ["--task", task]));
        arguments.extend(more);
        program(&arguments)
    }

    /// The same model with every weight 0.01 further from zero, in a folder of its own.
    pub(crate) fn further(&self) -> String {
        let folder = self.out.path().join("further");
        std::fs::create_dir_all(&folder).expect("a folder");
        for entry in std::fs::read_dir(&self.model).expect("a model") {
            let from = entry.expect("a file").path();
            let name = from.file_name().expect("a name").to_owned();
            if name.to_string_lossy().starts_with("expected") {
                continue;
            }
            let to = folder.join(name);
            let bytes = std::fs::read(from).expect("a file");
            let bytes = if to.extension().is_some_and(|end| end == "safetensors") {
                moved(&bytes)
            } else {
                bytes
            };
            std::fs::write(to, bytes).expect("a file");
        }
        folder.display().to_string()
    }

    pub(crate) fn folder(&self, out: &str) -> String {
        self.out.path().join(out).display().to_string()
    }

    pub(crate) fn report(&self, out: &str) -> Value {
        let path = Path::new(&self.folder(out)).join("report.json");
        let bytes = std::fs::read(path).expect("a report");
        serde_json::from_slice(&bytes).expect("JSON")
    }
}

/// Every float32 of a file, 0.01 further from zero.
fn moved(bytes: &[u8]) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).expect("safetensors");
    let further = |w: &[u8]| {
        let w = f32::from_le_bytes(w.try_into().expect("4 bytes"));
        let sign = f32::from(w.total_cmp(&0.0) as i8);
        ((f64::from(w) + 0.01 * f64::from(sign)) as f32).to_le_bytes()
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let data = view.data().chunks_exact(4).flat_map(further).collect();
            (name, view.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).expect("a tensor");
        (name.clone(), view)
    });
    safetensors::serialize(views, None).expect("safetensors")
}

/// Everything golden, from the folder alone.
#[rstest]
#[case("llama-gqa")]
#[case("gpt2-fused")]
#[case("llama-mqa")]
#[case("qwen2-tied")]
#[case("mistral-sharded")]
fn golden_folders_give_golden_numbers(
    #[case] name: &'static str,
    #[values(Backend::Flex, Backend::Wgpu)] backend: Backend,
) {
    if backend.device().is_none() {
        return;
    }
    let golden = Golden::load(name);
    let case = Case::new(name);
    let settings = settings(&golden);
    let device = format!("{backend:?}").to_lowercase();
    let mut more = vec![
        "--save-gradients",
        "--save-elements",
        "--save-pairs",
        "--device",
        &device,
        "--batch-tokens",
        "24",
    ];
    more.extend(
        settings
            .iter()
            .flat_map(|settings| ["--interference", settings]),
    );
    let other = case.further();
    more.extend(["--merge-with", &other]);
    more.extend(["--scale", "1.0/0.001", "--scale", "0.5/1e-06"]);
    case.run("out", &more).expect("a run");
    let compared = against_golden(&golden, Path::new(&case.folder("out")), 7);
    assert!(compared > 10_000, "only {compared} numbers");
}

/// What was merged is a model again; weighed by its own Fisher, the second one counts for more.
#[test]
fn models_are_merged_by_their_fisher() {
    let case = Case::new("mistral-sharded");
    let other = case.further();
    let [first, second] = case.tasks.each_ref().map(String::as_str);
    let run = |out: &str, more: &[&str]| {
        let out = case.folder(out);
        let fixed = [
            "measure",
            "--model",
            &case.model,
            "--out",
            &out,
            "--phases",
            "1,7",
        ];
        program(&[&fixed[..], &["--task", first, "--task", second], more].concat())
    };
    let of_other = case.folder("other");
    let alone = [
        "measure", "--model", &other, "--out", &of_other, "--task", second,
    ];
    program(&alone).expect("a run of the second model");
    let own = ["--merge-with", &other, "--merge-run", &of_other];
    run("own", &own).expect("a run");
    run("here", &["--merge-with", &other]).expect("a run");
    // Losses are measured beside what is predicted: those of the second task by the first model are in
    // this run, by the second in its own.
    let report = |folder: &str| -> Value {
        let report = std::fs::read(Path::new(folder).join("report.json"));
        serde_json::from_slice(&report.expect("a report")).expect("JSON")
    };
    let (here, there) = (report(&case.folder("own")), report(&of_other));
    let name = here["order"][1].as_str().expect("a name");
    let list = |report: &Value, what: &str| -> Vec<f64> {
        let list = report["tasks"][name][what].as_array().expect("a list");
        list.iter().map(|x| x.as_f64().expect("a number")).collect()
    };
    let [by_first, by_second] = [&here, &there].map(|report| list(report, "loss_sum"));
    let tokens = list(&here, "tokens");
    let rises: Vec<f64> = (0..tokens.len())
        .map(|i| (by_first[i] - by_second[i]) / tokens[i])
        .collect();
    let mean = rises.iter().sum::<f64>() / rises.len() as f64;
    let measured = here["merge_measured"].as_array().expect("a list");
    assert_eq!(measured.len(), 4);
    let is = |change: &&Value| change["task"] == name && change["weights"] == "other";
    let change = measured.iter().find(is).expect("measured");
    let number = |value: &Value| value.as_f64().expect("a number");
    assert!(
        (number(&change["mean"]) - mean).abs() < 1e-5,
        "{change} and {mean}"
    );
    let squares: f64 = rises.iter().map(|x| (x - mean).powi(2)).sum();
    let n = rises.len() as f64;
    let error = (squares / (n - 1.0) / n).sqrt();
    // Student's quantile for three samples.
    assert_eq!(rises.len(), 3);
    let upper = mean + 4.302_652_73 * error;
    assert!(
        (number(&change["interval"][1]) - upper).abs() < 1e-5,
        "{change} and {upper}"
    );
    let page = std::fs::read_to_string(Path::new(&case.folder("own")).join("report.html"));
    let page = page.expect("a page");
    assert!(page.contains("Rise of the loss, in nats a token") && page.contains("predicted"));
    assert!(!page.contains("loses about"));
    let device = Backend::Flex.device().expect("a CPU");
    let weights = |folder: &Path| {
        let checkpoint = Checkpoint::load(folder, &device.clone().autodiff()).expect("a model");
        let weights = checkpoint.weights().expect("weights");
        weights
            .iter()
            .flat_map(|(_, w)| w.to_vec())
            .collect::<Vec<f64>>()
    };
    let merged = |out: &str| weights(&Path::new(&case.folder(out)).join("merged"));
    let [own, here] = ["own", "here"].map(merged);
    let [from, to] = [&case.model, &other].map(|folder| weights(Path::new(folder)));
    let between = own.iter().zip(from.iter().zip(&to));
    for (merged, (from, to)) in between {
        let (low, high) = (from.min(*to), from.max(*to));
        assert!(
            (low - 1e-6..=high + 1e-6).contains(merged),
            "{merged} of {from} and {to}"
        );
    }
    assert_ne!(own, here);
    let page = std::fs::read_to_string(Path::new(&case.folder("own")).join("report.html"));
    assert!(page.expect("a page").contains("each by its own Fisher"));

    for (more, named) in [
        (
            &["--merge-with", &other, "--merge-run", &case.folder("here")][..],
            "not a run of",
        ),
        (
            &["--merge-with", &folder("llama-gqa").display().to_string()],
            "config.json differs",
        ),
        (
            &["--merge-with", &other, "--elements", "none"],
            "--elements",
        ),
        (&[], "--merge-with"),
    ] {
        let error = run("refused", more).expect_err(named);
        assert!(error.contains(named), "{error}");
        let _ = std::fs::remove_dir_all(case.folder("refused"));
    }
}

/// The same up to the rounding of sums in another order.
fn near(path: &str, a: &Value, b: &Value) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            assert!(x.keys().eq(y.keys()), "{path}");
            x.iter()
                .for_each(|(key, x)| near(&format!("{path}/{key}"), x, &y[key]));
        }
        (Value::Array(x), Value::Array(y)) => {
            assert_eq!(x.len(), y.len(), "{path}");
            let pairs = x.iter().zip(y).enumerate();
            pairs.for_each(|(i, (x, y))| near(&format!("{path}/{i}"), x, y));
        }
        (Value::Number(x), Value::Number(y)) => {
            let [x, y] = [x, y].map(|n| n.as_f64().expect("a number"));
            let bound = 1e-5 * x.abs().max(y.abs()) + 1e-12;
            assert!((x - y).abs() <= bound, "{path}: {x:e} against {y:e}");
        }
        (x, y) => assert_eq!(x, y, "{path}"),
    }
}

/// Stopped amid a task, a run goes on where it was, and ends with the same numbers.
#[test]
fn an_interrupted_run_goes_on() {
    let mut case = Case::new("llama-gqa");
    overflow(&mut case);
    let sample = |length: usize, last: usize| {
        let tokens: Vec<usize> = (0..length - 1)
            .map(|t| (7 * t + length) % 30)
            .chain([last])
            .collect();
        format!(r#"{{"id": "{length}-{last}", "input_ids": {tokens:?}}}"#)
    };
    let samples = [3, 4, 5, 7, 8].map(|length| sample(length, length));
    let mut all: Vec<&str> = samples.iter().map(String::as_str).collect();
    // Samples come by length: two are behind this one. Its last token is read, so it must have one
    // more after it.
    let odd = r#"{"id": "odd", "input_ids": [1, 2, 31, 4, 5, 6]}"#;
    all.insert(1, odd);
    lines(&mut case, &all);
    let settings = [
        "--batch-tokens",
        "12",
        "--save-every",
        "1",
        "--elements",
        "attention",
    ];
    let error = case
        .run("stopped", &settings)
        .expect_err("a gradient that is not finite");
    assert!(error.contains("`odd`"), "{error}");
    let error = case
        .run("stopped", &settings)
        .expect_err("a folder that holds a run");
    assert!(error.contains("--resume"), "{error}");
    let path = Path::new(&case.folder("stopped")).join("statistics.safetensors");
    let device = Backend::Flex.device().expect("a CPU");
    let half: Statistics = Statistics::load(&path, &device).expect("statistics");
    // All samples before the one that stopped it are counted, that of its own batch too.
    assert_eq!(half.task("alpha").expect("a task").count(), 3);

    let skip = [&settings[..], &["--skip-bad"]].concat();
    case.run("stopped", &[&skip[..], &["--resume"]].concat())
        .expect("it goes on");
    case.run("whole", &skip).expect("a run");
    let reports = ["stopped", "whole"].map(|out| case.report(out));
    let [stopped, whole] = reports.each_ref().map(|report| {
        let mut report = report.clone();
        report["run"] = Value::Null;
        report
    });
    near("", &stopped, &whole);
    assert_eq!(
        whole["tasks"]["alpha"]["ids"]
            .as_array()
            .expect("ids")
            .len(),
        5
    );

    // All is there: looking again measures nothing, other data is refused.
    case.run(
        "stopped",
        &[&skip[..], &["--resume", "--interference", "pool=B"]].concat(),
    )
    .expect("again");
    assert!(case.report("stopped")["interference"]["pool=B"].is_object());
    let first = samples[0].replace("[", "[9, 9, ");
    lines(&mut case, &[&first, &samples[1]]);
    let error = case
        .run("stopped", &[&skip[..], &["--resume"]].concat())
        .expect_err("other data");
    assert!(error.contains("have changed"), "{error}");
}

/// A run goes on with what it began with, or not at all.
#[test]
fn what_changed_since_is_not_mixed_in() {
    let mut case = Case::new("llama-gqa");
    let samples = |label: usize| {
        let of = |i: usize| {
            format!(
                r#"{{"input_ids": [1, 2, {}, 4], "labels": [1, 2, 3, {label}]}}"#,
                i + 5
            )
        };
        (0..4).map(of).collect::<Vec<_>>().join("\n")
    };
    lines(&mut case, &[&samples(4)]);
    case.run("out", &[]).expect("a run");
    let again = |case: &Case| case.run("out", &["--resume"]);
    again(&case).expect("nothing has changed");
    // What cannot go on leaves the record of what was measured.
    let inputs = Path::new(&case.folder("out")).join("inputs.json");
    let before = std::fs::read(&inputs).expect("a file");
    let fifth = r#"{"input_ids": [1, 2, 9, 4], "labels": [1, 2, 3, 4]}"#;
    lines(&mut case, &[&samples(4), fifth]);
    let error = case.run("out", &["--resume", "--elements", "none"]);
    let error = error.expect_err("another configuration");
    assert!(error.contains("elementwise"), "{error}");
    assert_eq!(std::fs::read(&inputs).expect("a file"), before);
    // The same ids and lengths.
    lines(&mut case, &[&samples(5)]);
    let error = again(&case).expect_err("other labels");
    assert!(
        error.contains("sample `1`") && error.contains("changed"),
        "{error}"
    );
    lines(&mut case, &[&samples(4)]);
    let further = case.further();
    let config = Path::new(&further).join("config.json");
    let text = std::fs::read_to_string(&config).expect("a file");
    let mut json: Value = serde_json::from_str(&text).expect("JSON");
    json["rms_norm_eps"] = 1e-3.into();
    let weights = Path::new(&case.model).join("model.safetensors");
    std::fs::copy(weights, Path::new(&further).join("model.safetensors")).expect("a copy");
    std::fs::write(&config, json.to_string()).expect("a file");
    let model = std::mem::replace(&mut case.model, further);
    let error = again(&case).expect_err("another config.json");
    assert!(error.contains("config.json has changed"), "{error}");
    case.model = model;

    // Gradients of samples that were never counted.
    let out = case.folder("out");
    for file in ["statistics.safetensors", "report.json"] {
        std::fs::remove_file(Path::new(&out).join(file)).expect("a file");
    }
    let error = case.run("out", &["--resume", "--samples", "2"]);
    let error = error.expect_err("half of another run");
    assert!(
        error.contains("gradients of 4 samples") && error.contains("2 are counted"),
        "{error}"
    );
}

/// What is asked for is written, whatever else is not.
#[test]
fn single_phases_leave_their_results() {
    let case = Case::new("llama-gqa");
    let names = |out: &str| {
        let path = Path::new(&case.folder(out)).join("results.safetensors");
        let bytes = std::fs::read(path).expect("results");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let names = file.names().into_iter().map(String::from);
        names.collect::<Vec<String>>()
    };
    case.run("scaled", &["--phases", "7", "--scale", "1/0.1"])
        .expect("a run");
    let scaled = names("scaled");
    assert!(
        scaled.iter().all(|name| name.starts_with("scaled/1/0.1/")),
        "{scaled:?}"
    );
    assert!(!scaled.is_empty());
    let more = [
        "--phases",
        "6",
        "--interference",
        "default",
        "--save-gradients",
        "--save-pairs",
    ];
    case.run("scores", &more).expect("a run");
    let scores = names("scores");
    assert!(
        scores.iter().any(|name| name == "interference/default/Q"),
        "{scores:?}"
    );
    assert!(
        scores.iter().any(|name| name.contains("/gradient/")),
        "{scores:?}"
    );
    assert!(
        !scores.iter().any(|name| name.contains("/mean/")),
        "{scores:?}"
    );
    // Numbers of all pairs are written where they are asked for.
    let more = ["--phases", "5-6", "--memory", "1kB"];
    case.run("small", &more).expect("a run");
    assert!(names("small").is_empty());
    assert!(case.report("small")["conflicts"]["raw"].is_object());
}

/// Several runs on parts of the samples, joined, are one run over all of them.
#[test]
fn parts_join_to_the_whole() {
    let case = Case::new("gpt2-fused");
    case.run("whole", &["--save-gradients"]).expect("a run");
    for part in ["0/2", "1/2"] {
        let more = [
            "--part",
            part,
            "--phases",
            "1-6",
            "--interference",
            "default",
        ];
        case.run(&part.replace('/', "-of-"), &more).expect("a run");
    }
    let [out, first, second, whole] =
        ["joined", "0-of-2", "1-of-2", "whole"].map(|out| case.folder(out));
    let merge = |out: &str, runs: [&str; 2]| {
        program(&[
            "join",
            "--model",
            &case.model,
            "--out",
            out,
            runs[0],
            runs[1],
        ])
    };
    merge(&out, [&first, &second]).expect("joined");
    // The order of samples differs: compare what does not depend on it.
    let [joined, report] = ["joined", "whole"].map(|out| case.report(out));
    for task in TASKS {
        for part in [
            "importance",
            "masks",
            "layers",
            "heads",
            "obd_unstructured@0.5",
        ] {
            near(
                part,
                &joined["tasks"][task][part],
                &report["tasks"][task][part],
            );
        }
    }
    near("overlap", &joined["overlap"], &report["overlap"]);
    near("health", &joined["health"], &report["health"]);
    for (name, slice) in report["conflicts"]["fisher"].as_object().expect("slices") {
        let joined = &joined["conflicts"]["fisher"][name];
        for part in ["apart", "opposed", "aligned"] {
            // t is a small difference where it is near 0.
            near(name, &joined[part]["p"], &slice[part]["p"]);
            near(name, &joined[part]["q"], &slice[part]["q"]);
        }
        near(
            name,
            &joined["apart"]["statistic"],
            &slice["apart"]["statistic"],
        );
    }
    let [joined, of_whole] = [&out, &whole].map(|folder| {
        let path = Path::new(folder).join("statistics.safetensors");
        let device = Backend::Flex.device().expect("a CPU");
        let statistics: Statistics = Statistics::load(path, &device).expect("statistics");
        statistics
    });
    for task in TASKS {
        let [a, b] = [&joined, &of_whole].map(|s| s.task(task).expect("it"));
        assert_eq!((a.count(), a.tokens()), (b.count(), b.tokens()));
    }
    let error = merge(&case.folder("again"), [&first, &first]).expect_err("the same samples");
    assert!(error.contains("3"), "{error}");
    // A run that goes into what is joined is not the place for it.
    let gradients = Path::new(&first).join("gradients/index.jsonl");
    let before = std::fs::read(&gradients).expect("gradients");
    let fixed = ["join", "--resume", "--model", &case.model, "--out", &first];
    let error = program(&[&fixed[..], &[&first, &second]].concat()).expect_err("a run");
    assert!(error.contains("is one of the runs"), "{error}");
    assert!(std::fs::read(&gradients).expect("gradients") == before);
    // Looked at again, with other settings, from what was joined or, of half of it, anew.
    let again = |settings: &str| {
        let fixed = [
            "join",
            "--model",
            &case.model,
            "--out",
            &out,
            &first,
            &second,
        ];
        program(&[&fixed[..], &["--resume", "--interference", settings]].concat())
    };
    let error = merge(&out, [&first, &second]).expect_err("it is there");
    assert!(error.contains("--resume"), "{error}");
    again("pool=B").expect("joined before");
    assert!(case.report("joined")["interference"]["pool=B"].is_object());
    for file in std::fs::read_dir(Path::new(&out).join("gradients")).expect("a folder") {
        std::fs::remove_file(file.expect("a file").path()).expect("a file");
    }
    again("pool=pooled").expect("joined anew");
    assert!(case.report("joined")["interference"]["pool=pooled"].is_object());
    std::fs::remove_file(Path::new(&second).join("inputs.json")).expect("a file");
    let error = merge(&case.folder("again"), [&first, &second]).expect_err("no record");
    assert!(error.contains("inputs.json"), "{error}");
    let other = Case::new("llama-gqa");
    let error = program(&[
        "join",
        "--model",
        &other.model,
        "--out",
        &case.folder("other"),
        &first,
    ]);
    let error = error.expect_err("another model");
    assert!(error.contains("another model"), "{error}");
}

pub(crate) fn lines(case: &mut Case, lines: &[&str]) {
    let path = case.out.path().join("lines.jsonl");
    std::fs::write(&path, lines.join("\n")).expect("lines");
    case.tasks[0] = format!("alpha={}", path.display());
}

#[rstest]
#[case("{", "not JSON")]
#[case("[1]", "not a JSON object")]
#[case(r#"{"tokens": [1, 2]}"#, "neither `input_ids`")]
#[case(r#"{"input_ids": [1, 2], "text": "x"}"#, "give one of them")]
#[case(r#"{"input_ids": [1, 2.5]}"#, "whole numbers")]
#[case(r#"{"input_ids": [1, 99]}"#, "token 99")]
#[case(r#"{"input_ids": [1, -1]}"#, "token -1")]
#[case(r#"{"input_ids": [1, 2], "labels": [1]}"#, "1 labels for 2 tokens")]
#[case(r#"{"input_ids": [1, 2], "labels": [1, -3]}"#, "label -3")]
#[case(r#"{"input_ids": []}"#, "no token counts")]
#[case(r#"{"input_ids": [1]}"#, "no token counts")]
#[case(
    r#"{"input_ids": [1, 2, 3], "labels": [1, -100, -100]}"#,
    "no token counts"
)]
#[case(r#"{"id": 1.5, "input_ids": [1, 2]}"#, "the id 1.5")]
#[case(r#"{"id": "1", "input_ids": [1, 2]}"#, "was there before")]
#[case(r#"{"prompt": "x"}"#, "")]
#[case(r#"{"text": "x", "labels": [1]}"#, "belong to `input_ids`")]
#[case(r#"{"text": "x", "completion": "y"}"#, "belongs to `prompt`")]
#[case(
    r#"{"input_ids": [0, 1, 2], "attention_mask": [0, 1, 1]}"#,
    "`attention_mask` must"
)]
#[case(
    r#"{"input_ids": [0, 1, 2], "attention_mask": [1, 1]}"#,
    "`attention_mask` must"
)]
fn bad_lines_are_named_or_counted(#[case] line: &str, #[case] reason: &str) {
    let mut case = Case::new("llama-gqa");
    let good = r#"{"input_ids": [1, 2, 3]}"#;
    lines(
        &mut case,
        &[good, "", line, r#"{"id": "last", "input_ids": [3, 2, 1]}"#],
    );
    let error = case.run("out", &[]).expect_err("a bad line");
    assert!(
        error.contains("lines.jsonl, line 3") && error.contains(reason),
        "{error}"
    );
    case.run("out", &["--skip-bad", "--phases", "1-2"])
        .expect("a run");
    let task = &case.report("out")["tasks"]["alpha"];
    assert_eq!(task["bad_lines"][0]["line"], 3);
    assert_eq!(task["ids"], serde_json::json!([1, "last"]));
}

#[test]
fn a_sequence_that_is_too_long_is_named() {
    let mut case = Case::new("llama-gqa");
    let long = format!(r#"{{"input_ids": {:?}}}"#, vec![1; 33]);
    lines(&mut case, &[&long]);
    let error = case.run("out", &[]).expect_err("too long");
    assert!(
        error.contains(
            "33 tokens are more than the 32 that the model takes (max_position_embeddings)"
        ),
        "{error}"
    );
    let error = case.run("out", &["--skip-bad"]).expect_err("nothing left");
    assert!(
        error.contains("no samples") && error.contains("1 bad"),
        "{error}"
    );
}

/// Give a case a model whose embedding of token 31 is infinite.
fn overflow(case: &mut Case) {
    let model = case.out.path().join("model");
    std::fs::create_dir(&model).expect("a folder");
    std::fs::copy(
        Path::new(&case.model).join("config.json"),
        model.join("config.json"),
    )
    .expect("it");
    let path = Path::new(&case.model).join("model.safetensors");
    let mut bytes = std::fs::read(path).expect("weights");
    // The embedding of token 31, the table's last row, becomes infinite.
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let end = json["model.embed_tokens.weight"]["data_offsets"][1]
        .as_u64()
        .expect("an offset");
    let end = 8 + header + end as usize;
    bytes[end - 4..end].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(model.join("model.safetensors"), bytes).expect("weights");
    case.model = model.display().to_string();
}

/// Weights that overflow: an error that names the sample, or samples left out and counted.
#[test]
fn gradients_that_are_not_finite_are_named_or_counted() {
    let mut case = Case::new("llama-gqa");
    overflow(&mut case);
    lines(
        &mut case,
        &[
            r#"{"input_ids": [1, 2, 3]}"#,
            r#"{"id": "odd", "input_ids": [31, 2, 3]}"#,
        ],
    );
    case.tasks[1] = case.tasks[0].replace("alpha=", "beta=");
    let error = case
        .run("out", &["--phases", "1-2"])
        .expect_err("not finite");
    assert!(error.contains("`odd`"), "{error}");
    let more = ["--phases", "1-2", "--skip-bad", "--resume"];
    case.run("out", &more).expect("a run");
    let task = &case.report("out")["tasks"]["alpha"];
    assert_eq!(task["ids"], serde_json::json!([1]));
    assert_eq!(task["skipped"][0][0], "odd");
    let page = std::fs::read_to_string(Path::new(&case.folder("out")).join("report.html"));
    assert!(page.expect("a page").contains("without a finite gradient"));
}

#[rstest]
#[case(&["--phases", "8"], "phases")]
#[case(&["--phases", "7"], "--merge-with or --scale")]
#[case(&["--merge-run", "x"], "--merge-with")]
#[case(&["--params", "nothing.like.it"], "no trainable")]
#[case(&["--compare", r"layers\.0\."], "--compare leaves")]
#[case(&["--samples", "1"], "has one")]
#[case(&["--samples", "3", "--part", "0/2"], "--part")]
#[case(&["--interference", "variant=signed,variant=natural"], "twice")]
#[case(&["--compare", "none"], "--compare none")]
#[case(&["--params", "(("], "regular expression")]
#[case(&["--memory", "lots"], "no unit")]
#[case(&["--sparsity", "1.5"], "--sparsity")]
#[case(&["--task", "third=x.jsonl"], "compares two tasks at most")]
#[case(&["--phases", "9"], "`9` names no phases")]
fn arguments_that_make_no_sense_are_refused(#[case] more: &[&str], #[case] reason: &str) {
    let case = Case::new("llama-gqa");
    let error = case.run("out", more).expect_err("refused");
    assert!(error.contains(reason), "{error}");
}

/// What is wrong whatever the model is told before it is loaded: here is none.
#[rstest]
#[case(&["--sparsity", "0.5,90"], "--sparsity", "such as 0.9 (for 90 %: 0.9)")]
#[case(&["--sparsity", "-0.5"], "--sparsity", "between 0 and 1")]
#[case(&["--samples", "0"], "--samples", "1 or more")]
#[case(&["--save-every", "0"], "--save-every", "1 or more")]
#[case(&["--batch-tokens", "0"], "--batch-tokens", "")]
#[case(&["--draws", "0"], "--draws", "")]
#[case(&["--seed", "-1"], "--seed", "-1")]
#[case(&["--scale", "1/0"], "--scale", "damping")]
#[case(&["--interference", "variant=loud"], "--interference", "variant=loud")]
#[case(&["--params", "none"], "--params none", "nothing to measure")]
#[case(&["--compare", "none"], "--compare none", "phases 5 and 6")]
#[case(&["--kind", "exact"], "--kind", "--phases 1-4")]
fn values_are_checked_before_the_model_is_loaded(
    #[case] more: &[&str],
    #[case] flag: &str,
    #[case] reason: &str,
) {
    let mut case = Case::new("llama-gqa");
    case.model = case.folder("nowhere");
    let error = case.run("out", more).expect_err("refused");
    assert!(error.contains(flag) && error.contains(reason), "{error}");
    assert!(!Path::new(&case.folder("out")).exists());
}

#[test]
fn files_and_names_of_tasks_are_checked_before_the_model_is_loaded() {
    let mut case = Case::new("llama-gqa");
    case.model = case.folder("nowhere");
    let out = case.folder("out");
    let missing = format!("b={}", case.folder("missing.jsonl"));
    let zipped = case.folder("zipped.jsonl");
    std::fs::write(&zipped, b"\x1f\x8b\x08").expect("a file");
    let zipped = format!("b={zipped}");
    let same = case.tasks[0].clone();
    for (second, said) in [
        (&missing, "cannot read"),
        (&zipped, "packed by gzip"),
        (&same, "both tasks are called `alpha`"),
    ] {
        case.tasks[1] = second.clone();
        let error = case.run("out", &[]).expect_err(said);
        assert!(error.contains(said), "{error}");
    }
    case.tasks[1] = missing.clone();
    let model = case.model.clone();
    let check = ["check", "--model", &model, "--task", &missing];
    let error = program(&check).expect_err("no file");
    assert!(error.contains("cannot read"), "{error}");
    assert!(!Path::new(&out).exists());
}

/// A run that is gone on with names the sample that is another, and no checkpoint: that is what a model is.
#[test]
fn other_samples_are_told_in_the_words_of_the_program() {
    let mut case = Case::new("llama-gqa");
    let old = r#"{"id": "old", "input_ids": [1, 2, 3, 4]}"#;
    let longer = r#"{"id": "longer", "input_ids": [1, 2, 3, 4, 5]}"#;
    let phases = ["--phases", "1"];
    lines(&mut case, &[old, longer]);
    case.run("out", &phases).expect("a run");
    let again = ["--phases", "1", "--resume"];
    lines(
        &mut case,
        &[r#"{"id": "new", "input_ids": [1, 2]}"#, old, longer],
    );
    let error = case.run("out", &again).expect_err("one is before it");
    assert!(
        error.contains("other samples of task `alpha`: where it has `old` there is `new` now")
            && error.contains("another --out")
            && !error.contains("checkpoint"),
        "{error}"
    );
}

#[test]
fn an_expression_that_is_found_nowhere_is_told_with_one_that_is() {
    let case = Case::new("llama-gqa");
    let error = case.run("out", &["--params", "foo"]).expect_err("no name");
    assert!(
        error.contains(r"such as 'self_attn\.(q|v)_proj'") && error.contains("model.norm.weight"),
        "{error}"
    );
}

/// One task, and only the attention of it.
#[test]
fn one_task_and_some_parameters_will_do() {
    let mut case = Case::new("qwen2-tied");
    case.tasks[1] = String::new();
    let out = case.folder("out");
    let arguments = [
        "measure",
        "--model",
        &case.model,
        "--task",
        &case.tasks[0],
        "--out",
        &out,
    ];
    let more = ["--params", "attention", "--elements", "none"];
    program(&[&arguments[..], &more].concat()).expect("a run");
    let report = case.report("out");
    assert_eq!(report["run"]["phases"], serde_json::json!([1, 2, 3]));
    let heads = report["tasks"]["alpha"]["heads"].as_array().expect("heads");
    assert_eq!(heads.len(), 8);
    let error = program(&[&arguments[..], &["--resume", "--phases", "4"]].concat());
    assert!(error.expect_err("one task").contains("compares two tasks"));
}

/// Text by the folder's tokenizer: words to tokens, a prompt that does not count.
#[test]
fn text_is_encoded_by_the_folders_tokenizer() {
    let mut case = Case::new("llama-gqa");
    let model = case.out.path().join("model");
    std::fs::create_dir(&model).expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(&case.model).join(file), model.join(file)).expect("a copy");
    }
    case.model = model.display().to_string();
    let words = serde_json::json!(
        {"[UNK]": 0, "<s>": 1, "to": 2, "be": 3, "or": 4, "not": 5, "</s>": 6}
    );
    let end = serde_json::json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    let begin = serde_json::json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let tokenizer = serde_json::json!({
        "version": "1.0",
        // As it was used last; nothing of a sample may be cut off or added.
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]",
        },
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [6], "tokens": ["</s>"]},
            },
        },
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    });
    lines(&mut case, &[r#"{"text": "to be or not"}"#]);
    let error = case.run("out", &[]).expect_err("no tokenizer yet");
    assert!(error.contains("tokenizer.json"), "{error}");
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
    let text = [
        r#"{"id": 1, "text": "to be or not"}"#,
        r#"{"id": 2, "prompt": "to be ", "completion": "or not"}"#,
    ];
    lines(&mut case, &text);
    case.run("text", &["--phases", "1-2"]).expect("a run");
    let tokens = [
        r#"{"id": 1, "input_ids": [1, 2, 3, 4, 5, 6, 0, 0], "attention_mask": [1, 1, 1, 1, 1, 1, 0, 0]}"#,
        r#"{"id": 2, "input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, -100, 4, 5, 6]}"#,
    ];
    lines(&mut case, &tokens);
    case.run("tokens", &["--phases", "1-2"]).expect("a run");
    let [text, tokens] = ["text", "tokens"].map(|out| case.report(out));
    near("", &text["tasks"]["alpha"], &tokens["tasks"]["alpha"]);
    assert_eq!(text["tasks"]["alpha"]["tokens"], serde_json::json!([5, 3]));
}
