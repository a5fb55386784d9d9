//! The state of a hook beside the learner's checkpoints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fisher_core::container::sync_folder;
use fisher_core::statistics::{Averages, Statistics};
use serde::{Deserialize, Serialize};

use super::folder::{self, failed, malformed};
use super::history::History;
use super::journal::{Journal, Span};
use super::schedule::Schedule;
use super::state::{Shared, State};
use crate::error::{Error, Result};

const SCHEMA: u64 = 2;
const ABOUT: &str = "state.json";
const STATISTICS: &str = "statistics.safetensors";
const AVERAGES: &str = "averages.safetensors";

/// What is not in statistics and averages.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    schema: u64,
    schedule: Schedule,
    ema: Option<f64>,
    workers: usize,
    tasks: Vec<String>,
    calls: u64,
    epoch: u64,
    began: u64,
    origin: String,
    /// The captures so far: how much of which files.
    captures: Vec<Span>,
}

/// See [`FisherHook::save_checkpoint`](super::FisherHook::save_checkpoint).
pub(super) fn save<B>(shared: &Shared<B>, state: &mut State, epoch: usize) -> Result<()> {
    let folder = checkpoints(shared)?;
    let (partial, place) = (folder.join("fisher.partial"), state_folder(folder, epoch));
    folder::remove(&partial).map_err(|e| failed(&partial, e))?;
    std::fs::create_dir_all(&partial).map_err(|e| failed(&partial, e))?;
    state.journal.write(folder, || spoken_of(folder))?;
    let statistics = partial.join(STATISTICS);
    state.run.save_without_samples(statistics)?;
    if let Some(averages) = &state.averages {
        averages.save(partial.join(AVERAGES))?;
    }
    let about = partial.join(ABOUT);
    let json = serde_json::to_vec(&About::of(shared, state)).map_err(|e| malformed(&about, e))?;
    folder::write(&about, &json).map_err(|e| failed(&about, e))?;
    sync_folder(&partial).map_err(|e| failed(&partial, e))?;
    folder::replace(&partial, &place).map_err(|e| failed(&place, e))?;
    prune(folder, epoch)
}

/// See [`FisherHook::load_checkpoint`](super::FisherHook::load_checkpoint).
pub(super) fn load<B>(shared: &Shared<B>, state: &mut State, epoch: usize) -> Result<()> {
    let checkpoints = checkpoints(shared)?;
    let folder = folder::whole(&state_folder(checkpoints, epoch));
    let path = folder.join(ABOUT);
    let about = read(&path)?;
    let settings = |about: &About| {
        let About {
            schedule,
            ema,
            workers,
            tasks,
            ..
        } = about;
        format!("{schedule:?}, average {ema:?}, {workers} workers, tasks {tasks:?}")
    };
    let (ours, theirs) = (settings(&About::of(shared, state)), settings(&about));
    if ours != theirs {
        return Err(Error::Hook {
            reason: format!(
                "the state in {} is of another hook ({theirs}; here: {ours}); resume with the \
                 same one",
                folder.display()
            ),
        });
    }
    let (journal, lines, samples) = Journal::read(checkpoints, about.captures.clone())?;
    let history = History::parse(&lines).map_err(|e| malformed(&path, e))?;
    let statistics = folder.join(STATISTICS);
    let run = Statistics::load_with_samples(statistics, &shared.device, samples)?;
    // The weights to begin with may have been drawn anew.
    let here = state.run.clone().during_training(&about.origin, 0);
    here.same_configuration(&run)?;
    let averages = match &state.averages {
        Some(_) => Some(Averages::load(folder.join(AVERAGES), &shared.device)?),
        None => None,
    };
    if let Some(file) = &mut state.file {
        file.begin(&lines)?;
    }
    state.calls = about.calls;
    state.resumed_at = about.calls;
    state.epoch = about.epoch;
    state.began = about.began;
    state.origin = about.origin;
    state.history = history;
    state.journal = journal;
    state.run = run;
    state.averages = averages;
    state.latest = None;
    state.store = None;
    state.loaded = true;
    state.unsaved = true;
    Ok(())
}

fn checkpoints<B>(shared: &Shared<B>) -> Result<&Path> {
    let folder = shared.config.checkpoints.as_deref();
    folder.ok_or_else(|| Error::Hook {
        reason: "it does not know where the learner's checkpoints are, so its state can \
                 neither be saved nor come back; set `checkpoints` to their folder"
            .into(),
    })
}

impl About {
    fn of<B>(shared: &Shared<B>, state: &State) -> Self {
        let config = &shared.config;
        Self {
            schema: SCHEMA,
            schedule: config.schedule.clone(),
            ema: config.ema,
            workers: config.workers,
            tasks: shared.tasks.clone(),
            calls: state.calls,
            epoch: state.epoch,
            began: state.began,
            origin: state.origin.clone(),
            captures: state.journal.spans().to_vec(),
        }
    }
}

fn state_folder(checkpoints: &Path, epoch: usize) -> PathBuf {
    checkpoints.join(format!("fisher-{epoch}"))
}

/// # Errors
/// [`fisher_core::Error::Io`], [`fisher_core::Error::Format`], [`fisher_core::Error::Version`].
fn read(path: &Path) -> Result<About> {
    let json = std::fs::read(path).map_err(|e| failed(path, e))?;
    folder::parse(path, "", &json, SCHEMA)
}

/// The files of captures that the states in a folder speak of; `None` where that cannot be told.
fn spoken_of(folder: &Path) -> Option<BTreeSet<u64>> {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder).ok()? {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_string_lossy().into_owned();
        let about = path.join(ABOUT);
        if name.starts_with("fisher-") && about.exists() {
            files.extend(read(&about).ok()?.captures.iter().map(|span| span.file));
        }
    }
    Some(files)
}

/// Remove states of epochs before `epoch` whose learner is gone. The learner's files are named as
/// Burn's default checkpointers name them; where there are none, nothing is removed.
fn prune(folder: &Path, epoch: usize) -> Result<()> {
    let (mut learners, mut states) = (BTreeSet::new(), BTreeSet::new());
    for entry in std::fs::read_dir(folder).map_err(|e| failed(folder, e))? {
        let name = entry.map_err(|e| failed(folder, e))?.file_name();
        let name = name.to_string_lossy();
        let number = |text: &str| text.parse::<usize>().ok();
        let learner = name.strip_prefix("model-");
        learners.extend(learner.and_then(|name| number(name.strip_suffix(".bpk")?)));
        let state = name.strip_prefix("fisher-");
        states.extend(state.and_then(|name| number(name.strip_suffix(".old").unwrap_or(name))));
    }
    if learners.range(..epoch).next().is_none() {
        return Ok(());
    }
    // The one before may still be on its way to the disk.
    for &old in states.range(..epoch.saturating_sub(1)) {
        if !learners.contains(&old) {
            let place = state_folder(folder, old);
            folder::remove_both(&place).map_err(|e| failed(&place, e))?;
        }
    }
    Ok(())
}
