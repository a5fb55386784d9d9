//! The state of a hook, and one capture.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;

use burn::tensor::Device;
use fisher_core::grouping::HeadLayout;
use fisher_core::model::Catalogue;
use fisher_core::statistics::{Averages, Statistics};
use fisher_core::store::GradientStore;

use super::config::{HookConfig, Probes};
use super::cosine::AcrossSink;
use super::history::{History, HistoryFile, Reading, TaskReading};
use super::journal::Journal;
use super::noise_by_task::NoiseByTask;
use super::noise_scale::NoiseScaleConfig;
use super::schedule::TrainingPoint;
use super::stores;
use crate::batch::{SampleBatch, SampleLoss, ids};
use crate::error::{Error, Result};

#[derive(Debug)]
pub(crate) struct Shared<B> {
    pub(super) config: HookConfig,
    pub(super) heads: HeadLayout,
    pub(super) device: Device,
    pub(super) tasks: Vec<String>,
    /// Pairs of paths that were one parameter when training began.
    pub(super) ties: Vec<[String; 2]>,
    /// Behind a lock, so that batches need not be `Sync`. `None` for batches in flight.
    pub(super) probes: Option<Mutex<Probes<B>>>,
    pub(super) state: Mutex<State>,
}

/// What moves. Whoever panics leaves it as it was between two captures.
#[derive(Debug)]
pub(crate) struct State {
    /// Calls of `step`, of all workers.
    pub(super) calls: u64,
    pub(super) epoch: u64,
    /// The step that the epoch began with.
    pub(super) began: u64,
    /// The hash of the weights that training began with.
    pub(super) origin: String,
    pub(super) run: Statistics,
    pub(super) latest: Option<Statistics>,
    pub(super) averages: Option<Averages>,
    pub(super) store: Option<GradientStore>,
    pub(super) history: History,
    /// The captures as checkpoints have them.
    pub(super) journal: Journal,
    /// The calls of `step` before the checkpoint that was resumed from.
    pub(super) resumed_at: u64,
    pub(super) file: Option<HistoryFile>,
    /// Whether this goes on from a checkpoint.
    pub(super) loaded: bool,
    /// Whether there is something that [`FisherHook::save`](super::FisherHook::save) did not write.
    pub(super) unsaved: bool,
    pub(super) failure: Option<String>,
}

/// A step that is to be captured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    pub(super) moment: TrainingPoint,
    /// Whether this worker captures what is captured once for all.
    pub(super) leads: bool,
}

/// What one capture gives.
pub(crate) struct Captured {
    pub(super) statistics: Statistics,
    pub(super) store: Option<GradientStore>,
    pub(super) reading: Reading,
}

impl<B: SampleBatch> Shared<B> {
    pub(super) fn capture<M: SampleLoss<Batch = B>>(
        &self,
        model: &M,
        moment: TrainingPoint,
        sources: &[(&str, &[B])],
    ) -> Result<Captured> {
        let config = &self.config;
        let mut statistics: Statistics = config.statistics.init_with_heads(model, &self.heads)?;
        let parted = |[_, second]: &&[String; 2]| statistics.shape(second).is_some();
        if let Some([first, second]) = self.ties.iter().find(parted) {
            return Err(Error::Hook {
                reason: format!(
                    "`{first}` and `{second}` were one parameter when training began and are two \
                     now: Burn's optimizers step only the first of tied parameters; tie them anew \
                     after each step, or keep one parameter and use it twice"
                ),
            });
        }
        let mut store = self.store(model)?;
        let compared = config.compared(&Catalogue::of(model)?)?;
        let mut paths: BTreeSet<String> = statistics.paths().map(str::to_owned).collect();
        let stored = store.iter().flat_map(|s| s.catalogue().parameters());
        paths.extend(stored.map(|parameter| parameter.path().to_owned()));
        paths.extend(compared.iter().flatten().cloned());
        let moments = config.noise.as_ref().map(NoiseScaleConfig::init);
        let mut noise = moments.transpose()?.map(NoiseByTask::new);
        let mut across = compared.map(AcrossSink::new);
        let mut capture = config
            .capture
            .init(model, paths.iter().map(String::as_str))?;
        let mut losses = BTreeMap::new();
        for (task, batches) in sources {
            let loss: &mut f64 = losses.entry(*task).or_default();
            let mut seen = HashSet::new();
            for batch in *batches {
                // Of several workers each would number its own samples from 0.
                if config.workers > 1
                    && self.probes.is_none()
                    && !batch.is_empty()
                    && batch.id(0).is_none()
                {
                    return Err(Error::Hook {
                        reason: "samples in flight on several workers have no ids to tell them \
                                 apart; give them some (`SampleBatch::id`), or capture probes"
                            .into(),
                    });
                }
                let samples = ids(batch, seen.len());
                if let Some(twice) = samples.iter().find(|id| !seen.insert((*id).clone())) {
                    return Err(Error::DuplicateSample {
                        task: (*task).to_owned(),
                        sample: twice.clone(),
                    });
                }
                // What is committed first counts first: a store keeps what all others have taken in.
                let statistics = (&mut statistics, noise.as_mut());
                let into = (statistics, (across.as_mut(), store.as_mut()));
                let outcomes = capture.accumulate(batch, task, into)?;
                *loss += outcomes
                    .iter()
                    .filter_map(|outcome| outcome.loss)
                    .sum::<f64>();
            }
        }
        if let Some(store) = &store {
            store.sync()?;
        }
        let mut tasks = BTreeMap::new();
        for (task, loss) in losses {
            let (groups, noise) = (config.groups_in_history, noise.as_ref().map(|n| n.of(task)));
            let reading = TaskReading::of(
                &statistics,
                task,
                loss,
                groups,
                noise.transpose()?.flatten(),
            )?;
            tasks.insert(task.to_owned(), reading);
        }
        let reading = Reading {
            noise: noise.map_or(Ok(None), |noise| noise.of_all())?,
            across: across.map_or(Ok(None), |across| across.read())?,
            ..Reading::new(moment, tasks)
        };
        Ok(Captured {
            statistics,
            store,
            reading,
        })
    }

    /// The store of a capture: gradients of other weights are of another model. On disk it is
    /// filled beside its place, so that what an earlier run left there does not matter.
    fn store<M: SampleLoss>(&self, model: &M) -> Result<Option<GradientStore>> {
        let Some(config) = &self.config.store else {
            return Ok(None);
        };
        let partial = config.folder.as_deref().map(stores::clear).transpose()?;
        let store = config.clone().with_folder(partial).init(model)?;
        // Those of the hook, unless the store was given some.
        let own = config.attention.is_some();
        Ok(Some(if own {
            store
        } else {
            store.with_heads(self.heads.clone())
        }))
    }

    /// Remove what a capture that failed left of its store.
    pub(super) fn clear(&self) {
        let folder = self.config.store.as_ref();
        let cleared = folder.and_then(|c| c.folder.as_deref()).map(stores::clear);
        if let Some(Err(error)) = cleared {
            tracing::warn!(%error, "half a store is left");
        }
    }
}

impl State {
    pub(super) fn moment(&self, workers: u64) -> TrainingPoint {
        TrainingPoint {
            step: self.calls / workers,
            epoch: self.epoch,
        }
    }

    /// Everything that can fail first, then what was captured takes its places. What a capture costs
    /// does not depend on how many there were.
    pub(super) fn take(
        &mut self,
        captured: Captured,
        config: &HookConfig,
        device: &Device,
    ) -> Result<()> {
        let Captured {
            statistics,
            store,
            reading,
        } = captured;
        let statistics = statistics.to_device(device);
        let part = statistics
            .clone()
            .during_training(&self.origin, reading.step);
        self.run.mergeable(&part)?;
        let mut averages = self.averages.clone();
        if let Some(averages) = &mut averages {
            for task in reading.tasks.keys() {
                if reading.tasks[task].samples > 0 {
                    averages.push(&statistics, task)?;
                }
            }
        }
        let line = reading.line()?;
        let mut samples = BTreeMap::new();
        for task in part.tasks() {
            samples.insert(task.to_owned(), part.task(task)?.samples().to_vec());
        }
        let folder = config.store.as_ref().and_then(|c| c.folder.as_deref());
        let store = match (store, folder) {
            (Some(store), Some(folder)) => Some(stores::place(store, folder, reading.step)?),
            (store, _) => store,
        };
        if let Some(file) = &mut self.file {
            file.append(&line)?;
        }
        if config.checkpoints.is_some() {
            self.journal.note(line, samples);
        }
        self.run.merge(part)?;
        tracing::info!(step = reading.step, "captured");
        self.history.push(reading);
        self.averages = averages;
        self.store = store;
        self.latest = Some(statistics);
        self.unsaved = true;
        Ok(())
    }

    /// What has neither captured nor gone on from a checkpoint has nothing to save, and might
    /// replace what another has saved.
    pub(super) fn is_empty(&self) -> bool {
        self.history.readings().is_empty() && !self.loaded
    }
}
