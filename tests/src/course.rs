//! A run of training that a hook watches, on disk.

use std::path::Path;

use burn::tensor::Device;
use burn::train::LearningResult;
use burn::train::checkpoint::KeepLastNCheckpoints;
use fisher_core::grouping::AttentionConfig;
use fisher_core::statistics::StatisticsConfig;
use fisher_train::monitor::{FisherHook, History, HookConfig, HookSource, Schedule};

use crate::models::Sequences;
use crate::pupil::{Happens, Pupil, launch, loader, training};

/// Where runs are made.
pub fn device() -> Device {
    Device::flex().autodiff()
}

/// A hook that writes to `folder`, every third step and at the end.
pub fn config(folder: &Path) -> HookConfig {
    let schedule = Schedule::new().with_every_steps(Some(3)).with_at_end(true);
    HookConfig::new(schedule)
        .with_statistics(StatisticsConfig::new().with_attention(Some(AttentionConfig::new(2))))
        .with_ema(Some(0.9))
        .with_folder(Some(folder.into()))
        .with_checkpoints(Some(folder.join("checkpoint")))
}

/// Samples of two tasks that are not in the training data.
pub fn probes(tasks: [&str; 2]) -> HookSource<Sequences> {
    let mut all = Sequences::made_up(6, 5, &device());
    all.ids = (0..6).map(|i| format!("probe/{i}")).collect();
    let [first, second] = tasks;
    let task = |name: &str, range| (name.to_owned(), all.slice(range).batches(2));
    HookSource::Probes(vec![task(first, 0..3), task(second, 3..6)])
}

/// The hook of a run.
pub fn hook(config: &HookConfig, pupil: &Pupil) -> FisherHook<Sequences> {
    hook_of(config, pupil, ["alpha", "beta"])
}

/// One that looks at other tasks.
pub fn hook_of(config: &HookConfig, pupil: &Pupil, tasks: [&str; 2]) -> FisherHook<Sequences> {
    config.init(pupil, probes(tasks)).expect("a hook")
}

/// Four batches an epoch; from a checkpoint, where there is one.
pub fn train(
    folder: &Path,
    hook: &FisherHook<Sequences>,
    pupil: Pupil,
    epochs: usize,
    checkpoint: Option<usize>,
) -> LearningResult<Pupil> {
    let data = Sequences::made_up(14, 5, &device());
    let mut training = training(folder, loader(&data, (0..14).collect(), 4, None))
        .num_epochs(epochs)
        .with_default_checkpointers()
        .with_checkpointing_strategy(KeepLastNCheckpoints::new(2))
        .with_training_strategy(hook.strategy());
    if let Some(happens) = pupil.interrupter() {
        training = training.with_interrupter(happens);
    }
    if let Some(checkpoint) = checkpoint {
        training = training.checkpoint(checkpoint);
    }
    launch(training, pupil)
}

/// What makes a run that is resumed the same as one that is not.
pub fn steady() -> Happens {
    Happens {
        steady: true,
        ..Happens::default()
    }
}

/// The steps of a history.
pub fn steps(history: &History) -> Vec<u64> {
    history.readings().iter().map(|r| r.step).collect()
}
