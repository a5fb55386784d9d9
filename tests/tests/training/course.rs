//! A run of training on disk: its history, its interruptions, its faults.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use burn::tensor::Device;
use burn::train::{Interrupter, LearningResult};
use fisher_core::model::hash_weights;
use fisher_core::statistics::{Averages, Statistics};
use fisher_tests::course::{config, device, hook, steady, steps, train};
use fisher_tests::pupil::{Happens, Pupil};
use fisher_train::Error;
use fisher_train::capture::{CaptureConfig, NonFinite};
use fisher_train::monitor::{History, HookConfig, OnFailure};
use rstest::rstest;

/// Dropout and weights to begin with draw from the device's generator, which is the whole process'.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).expect("a file")
}

/// All that a hook left in a folder is whole.
fn loadable(folder: &Path) -> History {
    let device = Device::flex();
    Statistics::<fisher_core::gradient::PerToken>::load(
        folder.join("statistics.safetensors"),
        &device,
    )
    .expect("statistics");
    Averages::<fisher_core::gradient::PerToken>::load(folder.join("averages.safetensors"), &device)
        .expect("averages");
    History::load(folder.join("history.jsonl")).expect("a history")
}

#[test]
fn a_run_that_was_resumed_ends_as_one_that_was_not() {
    let _alone = alone();
    let folders = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
    let [whole, parts] = folders.each_ref().map(|folder| folder.path());
    let pupil = || Pupil::with(&device(), steady());

    let first = hook(&config(whole), &pupil());
    let result = train(whole, &first, pupil(), 4, None);
    assert!(result.error.is_none(), "{:?}", result.error);
    assert_eq!(steps(&first.history()), [0, 3, 6, 9, 12, 15, 16]);

    let part = |until, from| {
        let hook = hook(&config(parts), &pupil());
        let result = train(parts, &hook, pupil(), until, from);
        assert!(result.error.is_none(), "{:?}", result.error);
        (hook, result)
    };
    // What the middle one captures at its end is not on the way of the whole run: it goes back.
    part(1, None);
    part(3, Some(1));
    let (after, resumed) = part(4, Some(2));

    let weights = |r: &LearningResult<Pupil>| hash_weights(&r.model).expect("weights");
    assert_eq!(weights(&result), weights(&resumed));
    assert_eq!(steps(&first.history()), steps(&after.history()));
    for file in [
        "statistics.safetensors",
        "averages.safetensors",
        "latest.safetensors",
        "history.jsonl",
    ] {
        assert!(bytes(whole, file) == bytes(parts, file), "{file}");
    }
    let saved = std::fs::read_dir(parts.join("checkpoint")).expect("a folder");
    let names = saved.map(|e| {
        e.expect("an entry")
            .file_name()
            .into_string()
            .expect("a name")
    });
    let mut names: Vec<String> = names.filter(|name| name.starts_with("fisher")).collect();
    names.sort();
    // Those of learners that are gone go with the next but one.
    assert!(
        names.ends_with(&["fisher-3".into(), "fisher-4".into()]),
        "{names:?}"
    );
    assert!(!names.contains(&"fisher-1".into()), "{names:?}");
}

#[test]
fn what_was_not_saved_or_differs_is_not_resumed() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let pupil = || Pupil::with(&device(), steady());
    let first = hook(&config(folder), &pupil());
    assert!(train(folder, &first, pupil(), 1, None).error.is_none());

    let resumed = |config: &HookConfig, epoch| {
        let error = hook(config, &pupil())
            .load_checkpoint(epoch)
            .expect_err("refused");
        error.to_string()
    };
    assert!(resumed(&config(folder), 7).contains("fisher-7"));
    let other = config(folder).with_ema(None);
    assert!(resumed(&other, 1).contains("of another hook"));
    let mut other = config(folder);
    other.statistics.elementwise = false;
    assert!(resumed(&other, 1).contains("elementwise"));
    assert!(resumed(&config(folder).with_checkpoints(None), 1).contains("`checkpoints`"));

    // In training that is an error of training, before any step.
    let none = hook(&config(folder).with_checkpoints(None), &pupil());
    let result = train(folder, &none, pupil(), 2, Some(1));
    let error = result.error.expect("an error").to_string();
    assert!(error.contains("`checkpoints`"), "{error}");
    assert_eq!(none.moment().step, 0);
}

#[test]
fn a_history_is_read_line_by_line() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let pupil = Pupil::init(&device());
    let hook = hook(&config(folder).with_groups_in_history(true), &pupil);
    assert!(train(folder, &hook, pupil, 2, None).error.is_none());
    let path = folder.join("history.jsonl");
    let history = History::load(&path).expect("a history");
    // Numbers may be off in their last digit.
    assert_eq!(steps(&history), steps(&hook.history()));
    assert_eq!(history.tasks(), ["alpha", "beta"]);

    // What it says is what the statistics say.
    let latest = hook.latest().expect("a capture");
    let task = latest.task("beta").expect("the task");
    let unwritten = hook.history();
    let last = &unwritten.readings()[3].tasks["beta"];
    assert_eq!([last.samples as u64, last.tokens], [3, task.tokens()]);
    let layers = task.layers().mean.expect("a mean");
    let read: Vec<f64> = last.layers.iter().map(|layer| layer.fisher).collect();
    assert_eq!(read, layers);
    assert_eq!(last.trace, Some(layers.iter().sum()));
    assert_eq!(last.heads.len(), 2);
    assert!(last.groups["model.linear.weight"]["channel"].len() == 8);

    let svg = history.picture("beta").expect("a picture").svg();
    assert!(svg.contains("head 1") && svg.contains("batches trained on"));
    assert!(history.picture("gamma").is_none());

    let text = std::fs::read_to_string(&path).expect("text");
    let write = |text: String| std::fs::write(&path, text).expect("written");
    write(text[..text.len() - 5].to_owned());
    let cut = History::load(&path).expect("a history");
    assert_eq!(
        cut.readings(),
        &history.readings()[..history.readings().len() - 1]
    );
    write(text.replace("\"schema\":1", "\"schema\":9"));
    let error = History::load(&path).expect_err("of the future");
    assert!(error.to_string().contains("schema version 9"), "{error}");
    write(text.replacen("\"step\":3", "\"step\":\"three\"", 1));
    let error = History::load(&path).expect_err("not a line");
    assert!(error.to_string().contains("line 2"), "{error}");
}

/// Fails where `run` does not end.
fn in_time<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(run()));
    let result = receiver
        .recv_timeout(Duration::from_secs(120))
        .expect("an end in time");
    thread.join().expect("a thread").expect("sent");
    result
}

#[test]
fn an_interruption_ends_training_and_captures_in_order() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_owned();
    let (result, hook) = in_time(move || {
        let happens = Happens {
            stop_at: Some(("sample/9".into(), Interrupter::new())),
            ..Happens::default()
        };
        let pupil = Pupil::with(&device(), happens);
        let hook = hook(&config(&path), &pupil);
        (train(&path, &hook, pupil, 2, None), hook)
    });
    assert!(result.error.is_none());
    let reason = result.interrupted.expect("an interruption").reason;
    assert_eq!(reason.as_deref(), Some("the test stops it"));
    // In the third batch; the end is where it stopped.
    let history = loadable(folder.path());
    assert_eq!(steps(&history), [0, 3]);
    assert_eq!(hook.moment().step, 3);
}

#[rstest]
#[case::in_training("sample/9", 1)]
#[case::in_a_capture("probe/4", 0)]
fn a_panic_of_the_model_surfaces(#[case] sample: &str, #[case] readings: usize) {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let (path, sample) = (folder.path().to_owned(), sample.to_owned());
    let (panic, hook) = in_time(move || {
        let happens = Happens {
            panic_at: Some(sample),
            ..Happens::default()
        };
        let pupil = Pupil::with(&device(), happens);
        let hook = hook(&config(&path), &pupil);
        let run = AssertUnwindSafe(|| train(&path, &hook, pupil, 2, None));
        let panic = catch_unwind(run).err().expect("a panic");
        (panic.downcast_ref::<&str>().map(|m| m.to_string()), hook)
    });
    assert_eq!(panic.as_deref(), Some("the model panics"));
    // The hook is as it was after the last capture, and can be saved: if there was one.
    assert_eq!(hook.history().readings().len(), readings);
    hook.save().expect("saved");
    let path = folder.path().join("statistics.safetensors");
    assert_eq!(path.exists(), readings > 0);
    if path.exists() {
        let statistics: Statistics = Statistics::load(path, &Device::flex()).expect("whole");
        assert_eq!(statistics.tasks().count(), 2);
    }
}

#[test]
fn a_loss_that_is_nan_stops_is_left_out_or_ends_captures() {
    let _alone = alone();
    let run = |change: fn(HookConfig) -> HookConfig| {
        let folder = tempfile::tempdir().expect("a folder");
        let happens = Happens {
            nan_at: Some("sample/9".into()),
            ..Happens::default()
        };
        let pupil = Pupil::with(&device(), happens);
        let hook = hook(&change(config(folder.path())), &pupil);
        let result = train(folder.path(), &hook, pupil, 2, None);
        let history = loadable(folder.path());
        (result, hook, history)
    };
    // The third batch makes the weights NaN, the capture before the fourth finds them so.
    let (result, hook, history) = run(|config| config);
    let error = result.error.expect("an error").to_string();
    assert!(
        error.contains("NaN or infinite") && error.contains("probe/0"),
        "{error}"
    );
    assert!(hook.failure().expect("a failure").contains("probe/0"));
    assert_eq!(steps(&history), [0]);

    let (result, hook, history) = run(|config| config.with_on_failure(OnFailure::Detach));
    assert!(result.error.is_none(), "training went on");
    assert_eq!(hook.moment().step, 8);
    assert!(hook.failure().is_some());
    assert_eq!(steps(&history), [0]);

    let (result, _, history) =
        run(|config| config.with_capture(CaptureConfig::new().with_non_finite(NonFinite::Skip)));
    assert!(result.error.is_none());
    assert_eq!(steps(&history), [0, 3, 6, 8]);
    let last = &history.readings()[3].tasks["alpha"];
    assert_eq!([last.samples, last.skipped], [0, 3]);
    assert_eq!((last.trace, last.loss), (None, None));
}

/// What this program does as a child of a test: trains, again and again.
const CHILD: &str = "FISHER_TESTS_CHILD";

#[test]
fn as_a_child() {
    let Some(folder) = std::env::var_os(CHILD) else {
        return;
    };
    let folder = Path::new(&folder);
    let pupil = Pupil::init(&device());
    let hook = hook(&config(folder), &pupil);
    let result = train(folder, &hook, pupil, 1000, None);
    println!("error: {}", result.error.expect("an error"));
}

/// This test program, running [`as_a_child`] under a shell's `prelude`.
fn child(prelude: &str, folder: &Path) -> Command {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new("bash");
    let line = format!("{prelude} exec \"$0\" --exact course::as_a_child --nocapture");
    command.args(["-c", &line]).arg(program).env(CHILD, folder);
    command.env_remove("RUST_BACKTRACE");
    command
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_is_full_leaves_what_was_written() {
    let folder = tempfile::tempdir().expect("a folder");
    // No file may be larger than 64 KiB: the history grows past that, statistics do not fit at all.
    let mut child = child("trap '' XFSZ; ulimit -f 64;", folder.path());
    let output = child.output().expect("a child");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        out.contains("error: Checkpoint error") && out.contains("File too large"),
        "{out}"
    );
    let history = History::load(folder.path().join("history.jsonl")).expect("a history");
    assert!(!history.readings().is_empty());
}

#[test]
fn a_program_that_is_killed_leaves_what_was_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = child("", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let enough = || {
        let history = History::load(folder.path().join("history.jsonl"));
        history.is_ok_and(|history| history.readings().len() > 9)
    };
    let mut waited = Duration::ZERO;
    while !enough() && waited < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
        waited += Duration::from_millis(50);
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
    assert!(enough(), "it trained");
    let states = std::fs::read_dir(folder.path().join("checkpoint")).expect("a folder");
    let names = states.map(|e| {
        e.expect("an entry")
            .file_name()
            .into_string()
            .expect("a name")
    });
    let epochs = names.filter_map(|name| name.strip_prefix("fisher-")?.parse::<usize>().ok());
    let _alone = alone();
    let mut whole = 0;
    for epoch in epochs {
        let hook = hook(&config(folder.path()), &Pupil::init(&device()));
        hook.load_checkpoint(epoch)
            .unwrap_or_else(|e: Error| panic!("{e}"));
        whole += 1;
    }
    assert!(whole > 0, "some were saved");
}
