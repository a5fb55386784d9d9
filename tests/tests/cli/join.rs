//! `fisher join`: any number of runs as one, what is missing, and what a run that failed needs.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use fisher_cli::Cli;
use fisher_core::statistics::Statistics;
use fisher_core::store::GradientStore;
use fisher_tests::backend::Backend;
use fisher_tests::golden::folder;
use serde_json::Value;
use tempfile::TempDir;

fn program(arguments: &[&str]) -> Result<(), String> {
    let arguments = std::iter::once(&"fisher").chain(arguments);
    let cli = Cli::read(arguments.map(|s| (*s).into())).map_err(|e| e.to_string())?;
    cli.run().map_err(|e| e.to_string())
}

/// A golden model, samples of two lengths for it, and where runs go.
struct Case {
    model: String,
    data: TempDir,
}

impl Case {
    fn new(samples: usize) -> Self {
        let case = Self {
            model: folder("llama-gqa").display().to_string(),
            data: tempfile::tempdir().expect("a folder"),
        };
        let mut lines = String::new();
        for i in 0..samples {
            let tokens: Vec<usize> = (0..4 + i % 3).map(|t| (7 * t + 5 * i + 1) % 31).collect();
            writeln!(lines, r#"{{"id": "s{i}", "input_ids": {tokens:?}}}"#).expect("a line");
        }
        std::fs::write(case.at("task.jsonl"), lines).expect("lines");
        case
    }

    fn at(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    fn run(&self, out: &str, more: &[&str]) -> Result<(), String> {
        let task = format!("alpha={}", self.text("task.jsonl"));
        let out = self.text(out);
        let fixed = [
            "measure",
            "--model",
            &self.model,
            "--task",
            &task,
            "--out",
            &out,
        ];
        let phases = ["--phases", "1", "--keep-gradients"];
        program(&[&fixed[..], &phases, more].concat())
    }

    /// All parts of so many, into `part-N`.
    fn parts(&self, of: usize) -> Vec<String> {
        let run = |part| {
            let text = format!("{part}/{of}");
            self.run("part-{part}", &["--part", &text]).expect("a part");
            let digits = (of - 1).to_string().len();
            format!("part-{part:0digits$}")
        };
        (0..of).map(run).collect()
    }

    fn join(&self, out: &str, runs: &[&str], more: &[&str]) -> Result<(), String> {
        let out = self.text(out);
        let fixed = [
            "join",
            "--model",
            &self.model,
            "--keep-gradients",
            "--out",
            &out,
        ];
        let runs: Vec<String> = runs.iter().map(|run| self.text(run)).collect();
        let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
        program(&[&fixed[..], more, &runs].concat())
    }

    fn statistics(&self, run: &str) -> Statistics {
        let device = Backend::Flex.device().expect("a CPU");
        let path = self.at(run).join("statistics.safetensors");
        Statistics::load(path, &device).expect("statistics")
    }

    fn report(&self, run: &str) -> Value {
        let report = std::fs::read(self.at(run).join("report.json")).expect("a report");
        serde_json::from_slice(&report).expect("JSON")
    }
}

/// Ids in order, and mean and variance of all elements and groups.
fn numbers(statistics: &Statistics) -> (Vec<String>, Vec<f64>) {
    let task = statistics.task("alpha").expect("a task");
    let mut ids: Vec<String> = task.samples().iter().map(|s| s.id.clone()).collect();
    ids.sort();
    let mut numbers = Vec::new();
    for (_, parameter) in task.parameters() {
        let groups = parameter.groups().iter().map(|(_, welford)| welford);
        for welford in parameter.elementwise().into_iter().chain(groups) {
            let moments = welford.read().expect("moments");
            numbers.extend(moments.mean.into_iter().flatten());
            numbers.extend(moments.variance.into_iter().flatten());
        }
    }
    for moments in [task.layers(), task.heads()] {
        numbers.extend(moments.mean.into_iter().flatten());
        numbers.extend(moments.variance.into_iter().flatten());
        numbers.extend(moments.skewness.into_iter().flatten());
    }
    (ids, numbers)
}

fn same(what: &str, a: &Statistics, b: &Statistics, relative: f64) {
    let ((ids, ours), (their_ids, theirs)) = (numbers(a), numbers(b));
    assert_eq!(ids, their_ids, "{what}");
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (x, y) in ours.iter().zip(&theirs) {
        let bound = relative * x.abs().max(y.abs()) + 1e-15 * scale;
        assert!((x - y).abs() <= bound, "{what}: {x:e} against {y:e}");
    }
}

/// In whatever order and however nested, joined parts are one run over all samples; and what is joined from
/// files is what is merged in memory.
#[test]
fn joining_is_associative_and_takes_any_order() {
    let case = Case::new(13);
    case.run("whole", &[]).expect("a run");
    let parts = case.parts(4);
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| &*parts[i]);
    assert_eq!((a, d), ("part-0", "part-3"));
    case.join("all", &[a, b, c, d], &[]).expect("joined");
    case.join("other", &[d, b, a, c], &[]).expect("joined");
    case.join("first", &[a, b], &["--partial"]).expect("joined");
    case.join("second", &[c, d], &["--partial"])
        .expect("joined");
    case.join("nested", &["first", "second"], &[])
        .expect("joined runs");
    case.join("left", &["first", c], &["--partial"])
        .expect("joined");
    case.join("left2", &["left", d], &[]).expect("joined");
    let whole = case.statistics("whole");
    let all = case.statistics("all");
    // Batches differ, and with them the rounding of float32.
    same("whole", &all, &whole, 1e-4);
    for run in ["other", "nested", "left2"] {
        same(run, &case.statistics(run), &all, 1e-12);
    }
    let mut merged = case.statistics(a);
    for part in [b, c, d] {
        merged.merge(case.statistics(part)).expect("merged");
    }
    assert_eq!(numbers(&merged), numbers(&all), "to the bit");
    // Gradients came along, byte by byte.
    let [stores, of_parts] = [["nested"; 4], [a, b, c, d]].map(|runs| {
        runs.map(|run| GradientStore::open(case.at(run).join("gradients")).expect("it"))
    });
    let mut count = 0;
    for (part, joined) in of_parts.iter().zip(&stores) {
        joined.verify().expect("whole");
        for sample in part.samples("alpha") {
            for path in part.catalogue().parameters().iter().map(|p| p.path()) {
                let of = |store: &GradientStore| {
                    store
                        .gradient("alpha", sample.id(), path)
                        .expect("it")
                        .into_owned()
                };
                assert_eq!(of(part), of(joined));
            }
            count += 1;
        }
    }
    assert_eq!(count, 13);
    assert_eq!(stores[0].samples("alpha").len(), 13);
    // Losses, tokens and ids of all.
    let report = case.report("nested");
    for what in ["ids", "tokens", "loss_sum"] {
        assert_eq!(
            report["tasks"]["alpha"][what]
                .as_array()
                .expect("a list")
                .len(),
            13
        );
    }
}

/// Everything that is wrong is told at once, with what makes up for it.
#[test]
fn what_is_not_finished_or_missing_is_named() {
    let case = Case::new(8);
    let parts = case.parts(4);
    let runs: Vec<&str> = parts.iter().map(String::as_str).collect();
    // One was stopped before its report, one never began, one has no folder.
    std::fs::remove_file(case.at("part-1").join("report.json")).expect("a report");
    std::fs::remove_dir_all(case.at("part-2")).expect("a run");
    std::fs::create_dir(case.at("part-2")).expect("a folder");
    let error = case.join("all", &[&runs[..3], &["nowhere"]].concat(), &[]);
    let error = error.expect_err("three are wrong");
    for said in [
        "part-1 was not finished: 2 of 2 samples are counted, and it has no report",
        "part-1/run.toml --resume",
        "part-2 was not finished: it never began",
        "nowhere was not finished: there is no such folder",
        "there is no run of parts 2/4, 3/4; they are measured by",
        "part-0/run.toml --part 2/4\n",
        "part-0/run.toml --part 3/4\n",
        "The finished runs (1 of 4) can be joined without the rest by --partial",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
    assert!(!case.at("all").join("statistics.safetensors").exists());
    std::fs::write(case.at("part-1").join("run.toml"), "").expect("a file");
    let error = case.join("all", &runs, &[]).expect_err("two are wrong");
    let again = format!(
        "fisher measure --config {} --resume",
        case.at("part-1").join("run.toml").display()
    );
    assert!(error.contains(&again), "{error}");

    case.join("some", &runs, &["--partial"])
        .expect("two of four");
    let report = case.report("some");
    assert_eq!(
        report["tasks"]["alpha"]["ids"]
            .as_array()
            .expect("ids")
            .len(),
        4
    );
    let left = &report["run"]["collection"]["left_out"];
    assert_eq!(left, &serde_json::json!(["part-1", "part-2"]));

    // What they say is done, and all is there.
    let part =
        |part: &str, more: &[&str]| case.run("part-{part}", &[&["--part", part], more].concat());
    part("1/4", &["--resume"]).expect("it goes on");
    part("2/4", &["--resume"]).expect("it begins");
    case.join("all", &runs, &[]).expect("all of them");
    // A joined run that lacks parts says so when it is joined again. It has no command of its own.
    let error = case.join("again", &["some"], &[]).expect_err("half");
    assert!(
        error.contains("there is no run of parts 1/4, 2/4; measure it as the others were"),
        "{error}"
    );
    // The file of the parts is that of the whole, and the page has its name.
    let file = &case.report("all")["run"]["files"]["alpha"];
    assert!(
        file.as_str().expect("a file").ends_with("task.jsonl"),
        "{file}"
    );
    let page = std::fs::read_to_string(case.at("all").join("report.html")).expect("a page");
    assert!(page.contains(">task.jsonl</td>"), "{page}");
    // The folder of one part is not that of another.
    let error = case.run("part-1", &["--part", "0/4", "--resume"]);
    let error = error.expect_err("another part");
    assert!(
        error.contains("holds part 1/4") && error.contains("part 0/4"),
        "{error}"
    );
}

/// The command that is told measures the part that is missing; without `{part}` in --out it names another folder.
#[test]
fn a_missing_part_is_measured_by_the_command_that_is_told() {
    let case = Case::new(6);
    case.run("here", &["--part", "0/2"]).expect("a part");
    let error = case.join("all", &["here"], &[]).expect_err("half");
    let command = error.lines().find(|line| line.contains("fisher measure"));
    let command = command.expect("a command").trim();
    assert!(command.ends_with("here-part-1"), "{error}");
    let arguments: Vec<&str> = command.split(' ').skip(1).collect();
    program(&arguments).expect("the part");
    case.join("all", &["here", "here-part-1"], &[])
        .expect("both");
}

/// A file that was damaged on its way is named, and nothing is written.
#[test]
fn damage_is_found_before_anything_is_written() {
    let case = Case::new(6);
    let parts = case.parts(2);
    let runs: Vec<&str> = parts.iter().map(String::as_str).collect();
    let damage = |file: &Path| {
        let mut bytes = std::fs::read(file).expect("a file");
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(file, bytes).expect("a file");
    };
    let statistics = case.at("part-1").join("statistics.safetensors");
    damage(&statistics);
    let error = case.join("all", &runs, &[]).expect_err("damaged");
    assert!(
        error.contains("part-1") && error.contains("statistics"),
        "{error}"
    );
    assert!(!case.at("all").join("statistics.safetensors").exists());
    damage(&statistics);
    damage(&case.at("part-1").join("gradients/shard-00000.bin"));
    let error = case.join("all", &runs, &["--phases", "1"]);
    let error = error.expect_err("damaged");
    assert!(error.contains("shard-00000.bin"), "{error}");
}

/// As many parts as a cluster has: each sample by itself.
#[test]
fn a_part_may_be_one_sample() {
    let case = Case::new(48);
    case.run("whole", &[]).expect("a run");
    let parts = case.parts(48);
    let runs: Vec<&str> = parts.iter().map(String::as_str).collect();
    assert_eq!(runs[7], "part-07");
    case.join("all", &runs, &["--phases", "1-3"])
        .expect("joined");
    same(
        "48 parts",
        &case.statistics("all"),
        &case.statistics("whole"),
        1e-4,
    );
    let device = Backend::Flex.device().expect("a CPU");
    let folders: Vec<PathBuf> = runs
        .iter()
        .map(|run| case.at(run).join("statistics.safetensors"))
        .collect();
    let again = case.at("again.safetensors");
    Statistics::<fisher_core::gradient::PerToken>::join_files(&folders, &again, &device)
        .expect("joined");
    let again: Statistics = Statistics::load(again, &device).expect("statistics");
    assert_eq!(numbers(&again), numbers(&case.statistics("all")));
}
