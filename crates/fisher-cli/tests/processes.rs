//! Parts as processes of their own, by launchers that are at hand, and joined.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fisher_cli::measure::STATISTICS;
use fisher_core::statistics::Statistics;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fisher");

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama-gqa")
}

fn samples(folder: &Path) {
    let mut lines = String::new();
    for i in 0..10 {
        let tokens: Vec<usize> = (0..4 + i % 3).map(|t| (7 * t + 5 * i + 1) % 31).collect();
        writeln!(lines, r#"{{"id": {i}, "input_ids": {tokens:?}}}"#).expect("a line");
    }
    std::fs::write(folder.join("task.jsonl"), lines).expect("lines");
}

fn measure(folder: &Path, out: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .current_dir(folder)
        .arg("measure")
        .arg("--model")
        .arg(model());
    command.args(["--task", "alpha=task.jsonl", "--phases", "1", "--out", out]);
    command
}

fn done(output: std::io::Result<Output>) -> String {
    let output = output.expect("a process");
    let [said, error] = [&output.stdout, &output.stderr].map(|s| String::from_utf8_lossy(s));
    assert!(output.status.success(), "{said}\n{error}");
    said.into_owned()
}

fn join(folder: &Path, parts: impl Iterator<Item = String>) -> String {
    let mut command = Command::new(PROGRAM);
    command
        .current_dir(folder)
        .arg("join")
        .arg("--model")
        .arg(model());
    done(
        command
            .args(["--phases", "1", "--out", "all"])
            .args(parts)
            .output(),
    )
}

/// Whether both runs counted the same samples and found the same.
fn same(folder: &Path) {
    let device = burn::tensor::Device::flex();
    let numbers = |run: &str| {
        let path = folder.join(run).join(STATISTICS);
        let statistics: Statistics = Statistics::load(path, &device).expect("statistics");
        let task = statistics.task("alpha").expect("a task");
        let layers = task.layers();
        (
            task.count(),
            layers.mean.expect("means"),
            layers.variance.expect("variances"),
        )
    };
    let ((n, mean, variance), (m, of_mean, of_variance)) = (numbers("all"), numbers("whole"));
    assert_eq!((n, m), (10, 10));
    for (x, y) in mean
        .iter()
        .chain(&variance)
        .zip(of_mean.iter().chain(&of_variance))
    {
        assert!((x - y).abs() <= 1e-6 * y.abs(), "{x:e} against {y:e}");
    }
}

/// Four parts, two at a time, each told its part as Slurm tells it.
#[test]
fn jobs_of_an_array_join_to_one_run() {
    let work = tempfile::tempdir().expect("a folder");
    let folder = work.path();
    samples(folder);
    done(measure(folder, "whole").output());
    for pair in [[1, 2], [3, 4]] {
        let jobs = pair.map(|job| {
            let mut command = measure(folder, "part-{part}");
            command
                .arg("--part")
                .env("SLURM_ARRAY_TASK_ID", job.to_string());
            command
                .env("SLURM_ARRAY_TASK_MIN", "1")
                .env("SLURM_ARRAY_TASK_MAX", "4");
            command.env("SLURM_ARRAY_TASK_COUNT", "4");
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            command.spawn().expect("a process")
        });
        for (job, number) in jobs.into_iter().zip(pair) {
            let said = done(job.wait_with_output());
            let part = format!("Part {}/4 of the lines, by SLURM_ARRAY_TASK_ID", number - 1);
            assert!(said.contains(&part), "{said}");
        }
    }
    let said = join(folder, (0..4).map(|part| format!("part-{part}")));
    assert!(said.contains("Joined 4 runs"), "{said}");
    same(folder);
}

/// The same by `make -j2`, whose targets are the parts; what is there already is not made again.
#[test]
fn make_runs_the_parts() {
    if Command::new("make").arg("--version").output().is_err() {
        eprintln!("skipped: there is no make");
        return;
    }
    let work = tempfile::tempdir().expect("a folder");
    let folder = work.path();
    samples(folder);
    done(measure(folder, "whole").output());
    let recipe = format!(
        "PARTS := 0 1 2 3\n\
         all/report.json: $(PARTS:%=part-%/report.json)\n\
         \t{PROGRAM} join --model {model} --phases 1 --out all part-*\n\
         part-%/report.json:\n\
         \t{PROGRAM} measure --model {model} --task alpha=task.jsonl --phases 1 \\\n\
         \t  --part $*/4 --resume --out part-$*\n",
        model = model().display()
    );
    std::fs::write(folder.join("Makefile"), recipe).expect("a file");
    let make = || done(Command::new("make").current_dir(folder).arg("-j2").output());
    make();
    same(folder);
    assert!(make().contains("up to date"));
}

/// The same by the plain line of a shell that GNU parallel takes as well: `xargs -P`.
#[test]
fn a_shell_runs_the_parts() {
    if Command::new("xargs").arg("--version").output().is_err() {
        eprintln!("skipped: there is no xargs");
        return;
    }
    let work = tempfile::tempdir().expect("a folder");
    let folder = work.path();
    samples(folder);
    done(measure(folder, "whole").output());
    let line = format!(
        "seq 0 3 | xargs -P 2 -I{{}} {PROGRAM} measure --model {model} --task alpha=task.jsonl \
         --phases 1 --part {{}}/4 --out part-{{}} && \
         {PROGRAM} join --model {model} --phases 1 --out all part-*",
        model = model().display()
    );
    done(
        Command::new("sh")
            .arg("-c")
            .arg(line)
            .current_dir(folder)
            .output(),
    );
    same(folder);
}
