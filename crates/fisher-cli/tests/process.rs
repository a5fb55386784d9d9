//! The program as a process: who else writes there, who listens, who kills it, and how full the disk is.
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fisher");

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama-gqa")
}

/// The arguments of a run of the golden model.
fn measure(out: &Path, tasks: &[(&str, &Path)], more: &[&str]) -> Vec<String> {
    let mut arguments = vec![
        "measure".to_owned(),
        "--model".into(),
        golden().display().to_string(),
    ];
    for (name, file) in tasks {
        arguments.extend(["--task".into(), format!("{name}={}", file.display())]);
    }
    arguments.extend(["--out".into(), out.display().to_string()]);
    arguments.extend(more.iter().map(|more| (*more).to_owned()));
    arguments
}

fn run(arguments: &[String]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .output()
        .expect("a process")
}

/// The same from a shell that says something first.
fn after(shell: &str, arguments: &[String]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\""), PROGRAM]);
    command.args(arguments).output().expect("a process")
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A run that waits for its samples, and so holds its folder.
fn waiting(folder: &Path, out: &Path) -> Child {
    let fifo = folder.join("samples");
    let made = Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .expect("a process");
    assert!(made.success());
    let child = Command::new(PROGRAM)
        .args(measure(out, &[("alpha", &fifo)], &[]))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    let start = Instant::now();
    while std::fs::read(out.join(".fisher.lock"))
        .unwrap_or_default()
        .is_empty()
    {
        assert!(start.elapsed() < Duration::from_secs(60), "no run");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

/// The second is told who has the folder; a run that was killed is in nobody's way.
#[test]
fn a_folder_is_of_one_run_at_a_time() {
    let folder = folder();
    let out = folder.path().join("out");
    let mut first = waiting(folder.path(), &out);
    let lines = golden().join("alpha.jsonl");
    let second = measure(&out, &[("alpha", &lines)], &["--phases", "1-2"]);
    let said = error(&run(&second));
    assert!(
        said.contains(&format!("in use by process {}", first.id())),
        "{said}"
    );
    let place = out.display().to_string();
    let model = golden().display().to_string();
    let join = ["join", "--model", &model, "--out", &place, "elsewhere"].map(str::to_owned);
    let said = error(&run(&join));
    assert!(said.contains("in use by process"), "{said}");
    first.kill().expect("killed");
    first.wait().expect("an end");
    let third = run(&second);
    assert!(third.status.success(), "{third:?}");
    // Nor is a run that has ended.
    let again = run(&[&second[..], &["--resume".to_owned()]].concat());
    assert!(again.status.success(), "{again:?}");
}

#[test]
fn nobody_has_to_listen() {
    let folder = folder();
    let out = folder.path().join("out");
    let lines = golden().join("alpha.jsonl");
    let mut child = Command::new(PROGRAM)
        .args(measure(&out, &[("alpha", &lines)], &[]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    // Both ends are closed before a word is said.
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert!(child.wait().expect("an end").success());
    assert!(out.join("report.html").exists());
}

/// What a killed run had begun goes, and what is not ours stays.
#[test]
fn half_written_files_go() {
    let folder = folder();
    let out = folder.path().join("out");
    let lines = golden().join("alpha.jsonl");
    let half = out.join(".fisher-report.json.part");
    std::fs::create_dir_all(&half).expect("a folder");
    std::fs::write(half.join("report.json"), "{").expect("a file");
    std::fs::write(out.join("notes.part"), "mine").expect("a file");
    let output = run(&measure(&out, &[("alpha", &lines)], &["--phases", "1"]));
    assert!(output.status.success(), "{output:?}");
    assert!(!half.exists());
    assert!(out.join("notes.part").exists());
    let entries = std::fs::read_dir(&out).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let hidden: Vec<_> = names
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert_eq!(hidden, [".fisher.lock"]);
}

/// All files may be read by whom the umask lets.
#[test]
fn files_have_the_permissions_of_new_files() {
    let folder = folder();
    let lines = golden().join("alpha.jsonl");
    for (mask, mode) in [("022", 0o644), ("027", 0o640)] {
        let out = folder.path().join(mask);
        let arguments = measure(&out, &[("alpha", &lines)], &["--phases", "1"]);
        let output = after(&format!("umask {mask}"), &arguments);
        assert!(output.status.success(), "{output:?}");
        for file in [
            "results.safetensors",
            "statistics.safetensors",
            "report.json",
            "report.html",
            "inputs.json",
        ] {
            let about = std::fs::metadata(out.join(file)).expect(file);
            assert_eq!(
                about.permissions().mode() & 0o777,
                mode,
                "{file} under {mask}"
            );
        }
    }
}

/// A file that cannot be written to its end is named, and nothing is left of it.
#[test]
fn a_full_disk_names_the_file() {
    let folder = folder();
    let lines = golden().join("alpha.jsonl");
    // In blocks of 512 bytes: statistics fit into the last.
    for (blocks, more, file) in [
        (1, &["--phases", "1"][..], "inputs.json"),
        (8, &["--phases", "1"], "statistics.safetensors"),
        (
            8,
            &[
                "--phases",
                "1",
                "--elements",
                "none",
                "--params",
                "model.norm",
            ],
            "report",
        ),
    ] {
        let out = folder.path().join(format!("{blocks}-{file}"));
        let arguments = measure(&out, &[("alpha", &lines)], more);
        // The signal that goes with it would end the program.
        let output = after(&format!("trap '' XFSZ; ulimit -f {blocks}"), &arguments);
        let said = error(&output);
        let named = out.join(file).display().to_string();
        assert!(said.contains(&named), "{said}");
        let left = std::fs::read_dir(&out).expect("a folder");
        let left = left.map(|entry| entry.expect("an entry").file_name());
        let parts = left.filter(|name| name.to_string_lossy().ends_with(".part"));
        assert_eq!(parts.count(), 0);
    }
}

/// Where there is nothing to save yet, Ctrl-C ends the program at once, and is told.
#[test]
fn ctrl_c_is_told() {
    let folder = folder();
    let out = folder.path().join("out");
    let child = waiting(folder.path(), &out);
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill").success());
    let output = child.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("Interrupted."), "{said}");
}

/// What is in a folder already is told, and that there is nothing to go on with; passes for tokens are forecast.
#[test]
fn what_a_run_begins_with_is_told() {
    let folder = folder();
    let lines = golden().join("alpha.jsonl");
    let out = folder.path().join("out");
    let said = |more: &[&str]| {
        let output = run(&measure(&out, &[("alpha", &lines)], more));
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned())
    };
    std::fs::create_dir(&out).expect("a folder");
    std::fs::write(out.join("notes.txt"), "mine").expect("a file");
    let [first, _] = said(&["--phases", "1", "--resume"]);
    assert!(first.contains("nothing to go on with"), "{first}");
    assert!(first.contains("is not empty (notes.txt)"), "{first}");
    let [again, progress] = said(&["--phases", "1", "--resume", "--per-token", "1"]);
    assert!(!again.contains("nothing to go on with"), "{again}");
    assert!(!again.contains("is not empty"), "{again}");
    assert!(again.contains("Token by token (--per-token)"), "{again}");
    assert!(!progress.contains("\u{1b}"), "{progress}");
}

/// What is done now goes to standard error, and what was found to standard output alone.
#[test]
fn a_check_tells_what_it_does() {
    let lines = golden().join("alpha.jsonl");
    let (model, task) = (
        golden().display().to_string(),
        format!("a={}", lines.display()),
    );
    let check = ["check", "--model", &model, "--task", &task, "--json"].map(str::to_owned);
    let output = run(&check);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.starts_with(b"{"), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    for test in [
        "looking at every weight ..",
        "gradients in batches and alone ..",
        "gradients of rounded weights ..",
    ] {
        assert!(said.contains(test), "{test}: {said}");
    }
}

/// One of a thing is one thing.
#[test]
fn a_plural_is_a_plural() {
    let folder = folder();
    let lines = folder.path().join("lines");
    std::fs::write(&lines, "{\"input_ids\": [1, 2]}\nx\n").expect("lines");
    let out = folder.path().join("out");
    let output = run(&measure(&out, &[("alpha", &lines)], &["--skip-bad"]));
    assert!(output.status.success(), "{output:?}");
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    let page = page.split("</style>").nth(1).expect("a body").to_owned();
    let again = run(&measure(
        &out,
        &[("alpha", &lines)],
        &["--skip-bad", "--resume"],
    ));
    for text in [&output.stdout, &again.stdout, page.as_bytes()] {
        let text = String::from_utf8_lossy(text);
        let words: Vec<&str> = text
            .split(|c: char| !c.is_alphanumeric() && c != '.')
            .collect();
        for (at, word) in words.iter().enumerate() {
            let next = words.get(at + 1..at + 3).unwrap_or_default();
            let plural = |word: &&&str| {
                let things = [
                    "samples",
                    "lines",
                    "tokens",
                    "runs",
                    "parameters",
                    "layers",
                    "heads",
                ];
                things.contains(&&***word)
            };
            let after = next
                .iter()
                .take_while(|word| word.chars().all(char::is_alphabetic));
            let wrong = *word == "1" && after.clone().find(plural).is_some();
            assert!(!wrong, "`1 {}` in {text}", next.join(" "));
        }
    }
}
