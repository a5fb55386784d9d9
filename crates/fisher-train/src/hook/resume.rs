//! The state of a hook beside the learner's checkpoints.

use std::path::{Path, PathBuf};

use fisher_core::{Averages, Statistics};
use serde::{Deserialize, Serialize};

use super::FisherHook;
use super::history::{History, io};
use super::schedule::Schedule;
use super::state::State;
use crate::{Error, Result};

const SCHEMA: u64 = 1;
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
    /// The history, line by line: a number that is parsed may be off in its last digit.
    lines: Vec<String>,
}

impl<B> FisherHook<B> {
    /// Save the state in `fisher-{epoch}` in the folder of the configuration's `checkpoints`, and
    /// remove those whose checkpoint of the learner has gone before. A [`FisherStrategy`](crate::FisherStrategy)
    /// does this with each of the learner's checkpoints; call it after
    /// [`FisherHook::end_epoch`].
    ///
    /// A folder is there whole or not at all, also when the program is killed meanwhile.
    ///
    /// # Errors
    /// [`Error::Hook`] when the configuration has no such folder; those of [`Statistics::save`].
    pub fn save_checkpoint(&self, epoch: usize) -> Result<()> {
        let folder = self.checkpoints()?;
        let (partial, whole) = (folder.join("fisher.partial"), state_folder(folder, epoch));
        remove(&partial)?;
        std::fs::create_dir_all(&partial).map_err(|e| io(&partial, e))?;
        {
            let state = self.state();
            state.run.save(partial.join(STATISTICS))?;
            if let Some(averages) = &state.averages {
                averages.save(partial.join(AVERAGES))?;
            }
            let about = partial.join(ABOUT);
            let json = serde_json::to_vec(&self.about(&state)).map_err(|e| format(&about, e))?;
            std::fs::write(&about, json).map_err(|e| io(&about, e))?;
        }
        remove(&whole)?;
        std::fs::rename(&partial, &whole).map_err(|e| io(&whole, e))?;
        prune(folder, epoch)
    }

    /// Go on where [`FisherHook::save_checkpoint`] was: statistics, averages, history and the place
    /// in the schedule are as they were then.
    ///
    /// # Errors
    /// [`Error::Hook`] when the state was saved by a hook of another schedule, tasks, average or
    /// number of workers; [`fisher_core::Error::Incompatible`] when its statistics are of another
    /// configuration; errors of reading, and [`fisher_core::Error::Io`] when nothing was saved then.
    pub fn load_checkpoint(&self, epoch: usize) -> Result<()> {
        let folder = state_folder(self.checkpoints()?, epoch);
        let path = folder.join(ABOUT);
        let json = std::fs::read(&path).map_err(|e| io(&path, e))?;
        let about: About = serde_json::from_slice(&json).map_err(|e| format(&path, e))?;
        if about.schema != SCHEMA {
            return Err(Error::Core(fisher_core::Error::Version {
                path,
                found: about.schema,
                supported: SCHEMA,
            }));
        }
        let history = History::parse(&about.lines).map_err(|e| format(&path, e))?;
        let shared = &self.shared;
        let mut state = self.state();
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
        let (ours, theirs) = (settings(&self.about(&state)), settings(&about));
        if ours != theirs {
            return Err(Error::Hook {
                reason: format!(
                    "the state in {} is of another hook ({theirs}; here: {ours}); resume with the \
                     same one",
                    folder.display()
                ),
            });
        }
        let run = Statistics::load(folder.join(STATISTICS), &shared.device)?;
        // The weights to begin with may have been drawn anew.
        let here = state.run.clone().during_training(&about.origin, 0);
        here.same_configuration(&run)?;
        let averages = match &state.averages {
            Some(_) => Some(Averages::load(folder.join(AVERAGES), &shared.device)?),
            None => None,
        };
        if let Some(file) = &mut state.file {
            file.begin(&about.lines)?;
        }
        state.calls = about.calls;
        state.resumed_at = about.calls;
        state.epoch = about.epoch;
        state.began = about.began;
        state.origin = about.origin;
        state.history = history;
        state.lines = about.lines;
        state.run = run;
        state.averages = averages;
        state.latest = None;
        state.store = None;
        Ok(())
    }

    /// Whether the configuration says where checkpoints are.
    pub(crate) fn has_checkpoints(&self) -> bool {
        self.shared.config.checkpoints.is_some()
    }

    fn checkpoints(&self) -> Result<&Path> {
        let folder = self.shared.config.checkpoints.as_deref();
        folder.ok_or_else(|| Error::Hook {
            reason: "it does not know where the learner's checkpoints are, so its state can \
                     neither be saved nor come back; set `checkpoints` to their folder"
                .into(),
        })
    }

    fn about(&self, state: &State) -> About {
        let config = &self.shared.config;
        About {
            schema: SCHEMA,
            schedule: config.schedule.clone(),
            ema: config.ema,
            workers: config.workers,
            tasks: self.shared.tasks.clone(),
            calls: state.calls,
            epoch: state.epoch,
            began: state.began,
            origin: state.origin.clone(),
            lines: state.lines.clone(),
        }
    }
}

fn state_folder(checkpoints: &Path, epoch: usize) -> PathBuf {
    checkpoints.join(format!("fisher-{epoch}"))
}

/// Remove states of epochs before `epoch` whose learner is gone. The learner's files are named as
/// Burn's default checkpointers name them; where there are none, nothing is removed.
fn prune(folder: &Path, epoch: usize) -> Result<()> {
    let learner = |epoch: usize| folder.join(format!("model-{epoch}.bpk")).exists();
    if !(1..epoch).any(learner) {
        return Ok(());
    }
    // The one before may still be on its way to the disk.
    for old in (1..epoch.saturating_sub(1)).filter(|&old| !learner(old)) {
        remove(&state_folder(folder, old))?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(folder, error)),
        _ => Ok(()),
    }
}

fn format(path: &Path, reason: serde_json::Error) -> Error {
    Error::Core(fisher_core::Error::Format {
        path: path.into(),
        reason: reason.to_string(),
    })
}
