//! What a run has on disk outlives what fails after it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::train::TrainStep;
use fisher_core::gradient::PerToken;
use fisher_core::statistics::{Averages, Statistics};
use fisher_tests::course::{config, device, hook, hook_of, steady, steps, train};
use fisher_tests::models::Sequences;
use fisher_tests::pupil::{Happens, Pupil, optimizer};
use fisher_train::Error;
use fisher_train::monitor::{FisherHook, History, HookConfig, OnFailure, Schedule};
use rstest::rstest;

/// Weights to begin with draw from the device's generator, which is the whole process'.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a hook has in a folder, with that of its checkpoints.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        // The rest is the learner's.
        let ours = [
            "statistics",
            "averages",
            "latest",
            "history",
            "fisher",
            "state",
        ];
        if path.is_dir() {
            let inside = files_in(&path);
            files.extend(inside.map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else if ours.iter().any(|ours| name.starts_with(ours)) {
            files.insert(name.into_owned(), std::fs::read(&path).expect("a file"));
        }
    }
    files
}

fn files_in(folder: &Path) -> impl Iterator<Item = (String, Vec<u8>)> + use<> {
    files(folder).into_iter()
}

fn loaded(folder: &Path) -> Statistics {
    let path = folder.join("statistics.safetensors");
    Statistics::load(path, &device()).expect("statistics")
}

#[derive(Debug, Clone, Copy)]
enum Differs {
    Average,
    Schedule,
    Tasks,
    Workers,
    Gone,
}

#[rstest]
fn a_resume_that_fails_leaves_the_files_of_the_run(
    #[values(
        Differs::Average,
        Differs::Schedule,
        Differs::Tasks,
        Differs::Workers,
        Differs::Gone
    )]
    differs: Differs,
    #[values(OnFailure::Stop, OnFailure::Detach)] on_failure: OnFailure,
) {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let pupil = || Pupil::with(&device(), steady());
    let first = hook(&config(folder), &pupil());
    assert!(train(folder, &first, pupil(), 1, None).error.is_none());

    let mut other = config(folder).with_on_failure(on_failure);
    let mut tasks = ["alpha", "beta"];
    match differs {
        Differs::Average => other.ema = None,
        Differs::Schedule => other.schedule = Schedule::new().with_every_steps(Some(2)),
        Differs::Tasks => tasks = ["alpha", "gamma"],
        Differs::Workers => other.workers = 2,
        Differs::Gone => {
            std::fs::remove_dir_all(folder.join("checkpoint/fisher-1")).expect("removed");
        }
    }
    let before = files(folder);
    let resumed = hook_of(&other, &pupil(), tasks);
    let result = train(folder, &resumed, pupil(), 2, Some(1));
    match on_failure {
        OnFailure::Stop => assert!(result.error.is_some()),
        OnFailure::Detach => assert!(result.error.is_none(), "{:?}", result.error),
    }
    assert!(resumed.failure().is_some());
    let after = files(folder);
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
    assert!(before == after, "a file has changed");
    assert_eq!(loaded(folder).task("alpha").expect("a task").count(), 9);
}

#[test]
fn a_hook_that_saw_nothing_writes_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let pupil = Pupil::init(&device());
    let first = hook(&config(folder), &pupil);
    first.finish(&pupil).expect("a capture");
    let before = files(folder);
    assert_eq!(before.len(), 4);
    let never = config(folder);
    let never = hook(
        &HookConfig {
            schedule: Schedule::new(),
            ..never
        },
        &pupil,
    );
    never.finish(&pupil).expect("nothing to do");
    assert!(files(folder) == before);
}

/// A model whose loss of a probe is NaN.
fn broken() -> Pupil {
    let happens = Happens {
        nan_at: Some("probe/0".into()),
        ..Happens::default()
    };
    Pupil::with(&device(), happens)
}

#[test]
fn captures_outlive_one_that_fails() {
    let _alone = alone();
    let pupil = Pupil::init(&device());
    let batch = Sequences::made_up(4, 5, &device());
    type Fail = fn(&FisherHook<Sequences>, &Sequences) -> Result<(), Error>;
    let fail: [(&str, Fail); 2] = [
        ("at the end", |hook, _| hook.finish(&broken())),
        ("on the way", |hook, batch| {
            hook.step(&broken(), batch).map(|_| ())
        }),
    ];
    for (name, fail) in fail {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let schedule = Schedule::new().with_every_steps(Some(1)).with_at_end(true);
        let hook = hook(
            &HookConfig {
                schedule,
                ..config(folder)
            },
            &pupil,
        );
        assert!(hook.step(&pupil, &batch).expect("a capture"));
        let error = fail(&hook, &batch).expect_err("NaN");
        assert!(error.to_string().contains("probe/0"), "{name}: {error}");
        assert_eq!(
            loaded(folder).task("beta").expect("a task").count(),
            3,
            "{name}"
        );
        let averages = folder.join("averages.safetensors");
        let averages = Averages::<PerToken>::load(averages, &device()).expect("averages");
        assert_eq!(averages.steps("alpha"), 1, "{name}");
        let history = History::load(folder.join("history.jsonl")).expect("a history");
        assert_eq!(steps(&history), [0], "{name}");
    }
}

/// The last batch makes the weights NaN.
#[rstest]
fn captures_of_a_run_outlive_its_last(
    #[values(OnFailure::Stop, OnFailure::Detach)] on_failure: OnFailure,
) {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let happens = Happens {
        nan_at: Some("sample/13".into()),
        ..Happens::default()
    };
    let pupil = Pupil::with(&device(), happens);
    let hook = hook(&config(folder).with_on_failure(on_failure), &pupil);
    let result = train(folder, &hook, pupil, 1, None);
    assert_eq!(result.error.is_some(), on_failure == OnFailure::Stop);
    assert!(hook.failure().expect("a failure").contains("probe/0"));
    assert_eq!(loaded(folder).task("alpha").expect("a task").count(), 6);
}

/// A loop of one's own, with a capture before every step.
fn own_loop(
    hook: &FisherHook<Sequences>,
    mut pupil: Pupil,
    steps: std::ops::Range<usize>,
) -> Pupil {
    let mut optimizer = optimizer();
    for step in steps {
        let batch = Sequences::made_up(4, 5, &device());
        hook.step(&pupil, &batch).expect("a capture");
        device().seed(step as u64);
        let output = TrainStep::step(&pupil, batch);
        pupil = optimizer.step(1e-2, pupil, output.grads).tied();
    }
    pupil
}

/// What is one line of a history for a task's samples in each checkpoint is none in the next.
#[test]
fn a_checkpoint_does_not_grow_with_what_was_captured_before() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let schedule = Schedule::new().with_every_steps(Some(1));
    let config = HookConfig {
        schedule,
        ..config(folder.path())
    };
    let first = Pupil::init(&device());
    let hook = hook(&config, &first);
    let checkpoints = folder.path().join("checkpoint");
    let size = |name: &str| {
        let all = files(&checkpoints).into_iter();
        let of_name = all.filter(|(file, _)| file.starts_with(name));
        of_name.map(|(_, bytes)| bytes.len()).sum::<usize>()
    };
    let mut pupil = first.clone();
    let (mut done, mut sizes) = (0, Vec::new());
    for captures in [1, 10, 100] {
        pupil = own_loop(&hook, pupil, done..captures);
        done = captures;
        hook.save_checkpoint(captures).expect("saved");
        sizes.push((
            captures,
            size(&format!("fisher-{captures}/")),
            size("history"),
        ));
    }
    println!("captures, bytes of the state, bytes of all captures: {sizes:?}");
    // Numbers of more digits, and no more.
    let grown = sizes[2].1 - sizes[0].1;
    assert!(grown < 200, "{sizes:?}");
    // Captures are written once, in one file.
    let per_capture = sizes[0].2;
    assert!(sizes[2].2 < 110 * per_capture, "{sizes:?}");

    // All of it comes back, from each.
    for (captures, ..) in sizes {
        let again = self::hook(&config, &first);
        again.load_checkpoint(captures).expect("it goes on");
        let statistics = again.statistics();
        let task = statistics.task("alpha").expect("a task");
        assert_eq!(task.count(), 3 * captures);
        assert_eq!(
            task.samples()[3 * captures - 1].step,
            Some(captures as u64 - 1)
        );
        assert_eq!(again.history().readings().len(), captures);
        if captures == 100 {
            let straight = hook.statistics();
            assert_eq!(
                task.samples(),
                straight.task("alpha").expect("it").samples()
            );
        }
    }
}

/// A run that goes on from an earlier checkpoint leaves the later ones as they are.
#[test]
fn later_checkpoints_outlive_going_back() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let schedule = Schedule::new().with_every_steps(Some(1));
    let config = HookConfig {
        schedule,
        ..config(folder.path())
    };
    let first = Pupil::init(&device());
    let straight = hook(&config, &first);
    let mut pupil = first.clone();
    for epoch in 1..=3 {
        pupil = own_loop(&straight, pupil, 2 * epoch - 2..2 * epoch);
        straight.save_checkpoint(epoch).expect("saved");
    }
    let loaded = |epoch: usize| {
        let hook = hook(&config, &first);
        hook.load_checkpoint(epoch).expect("it goes on");
        hook
    };
    // Back to the first, and on by another way, twice.
    for _ in 0..2 {
        let back = loaded(1);
        own_loop(&back, first.clone(), 7..9);
        back.save_checkpoint(4).expect("saved");
        assert_eq!(steps(&loaded(4).history()), [0, 1, 2, 3]);
        for epoch in 1..=3 {
            let found = steps(&loaded(epoch).history());
            assert_eq!(found, (0..2 * epoch as u64).collect::<Vec<_>>());
        }
    }
    // What no checkpoint speaks of goes when the next file is begun.
    let names = files(&folder.path().join("checkpoint")).into_keys();
    let histories = names.filter(|name| name.starts_with("history")).count();
    assert_eq!(
        histories, 3,
        "that of the first run, of the last, and of the one before"
    );

    // A file of captures that was cut, by a copy that broke off.
    let path = folder.path().join("checkpoint/history-0.jsonl");
    let text = std::fs::read_to_string(&path).expect("text");
    let fourth = text.match_indices('\n').nth(7).expect("four captures").0;
    std::fs::write(&path, &text[..fourth + 1]).expect("written");
    assert_eq!(steps(&loaded(2).history()), [0, 1, 2, 3]);
    let error = hook(&config, &first).load_checkpoint(3).expect_err("cut");
    assert!(error.to_string().contains("4 captures"), "{error}");
}

/// Wherever a program ends while one state takes another's place, one of them is found.
#[test]
fn a_checkpoint_is_found_while_it_is_replaced() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let pupil = Pupil::init(&device());
    let hook = hook(&config, &pupil);
    let batch = Sequences::made_up(4, 5, &device());
    hook.step(&pupil, &batch).expect("a capture");
    hook.save_checkpoint(1).expect("saved");
    let place = folder.path().join("checkpoint/fisher-1");
    let aside = folder.path().join("checkpoint/fisher-1.old");
    std::fs::rename(&place, &aside).expect("the program ends here");
    let load = || {
        let hook = self::hook(&config, &pupil);
        hook.load_checkpoint(1).expect("the old one");
        hook
    };
    assert_eq!(steps(&load().history()), [0]);
    hook.finish(&pupil).expect("a capture");
    hook.save_checkpoint(1).expect("saved");
    assert!(!aside.exists());
    assert_eq!(steps(&load().history()), [0, 1]);
}
