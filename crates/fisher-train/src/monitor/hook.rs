//! The hook: captures while a model is trained.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fisher_core::container::ensure_writable;
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::statistics::{Averages, Statistics};
use fisher_core::store::GradientStore;

use super::checkpoint;
use super::config::{HookConfig, HookSource, Probes};
use super::history::{History, HistoryFile};
use super::journal::Journal;
use super::noise_scale::NoiseScaleConfig;
use super::schedule::TrainingPoint;
use super::state::{Due, Shared, State};
use crate::batch::{SampleBatch, SampleLoss};
use crate::capture::deterministic;
use crate::error::Result;

/// Captures token-sum per-sample gradients while a model is trained, on a [`Schedule`](super::Schedule).
///
/// A handle: clones share one state. In Burn's `SupervisedTraining` give it as a strategy
/// ([`FisherHook::strategy`]), with metrics ([`FisherHook::metric`]) if they are wanted. In a loop of
/// your own call [`FisherHook::step`] before each training step, [`FisherHook::end_epoch`] and
/// [`FisherHook::finish`].
///
/// Each capture fills fresh statistics of the weights as they are then ([`FisherHook::latest`]).
/// They join those of the whole run ([`FisherHook::statistics`]), the moving averages, and leave a
/// [`Reading`](super::Reading) in the history. Contributions are per token.
///
/// Training does not notice: the model is only read, gradients are those of a copy with dropout
/// off, and no random number is drawn.
///
/// Where Burn trains on several devices ([`ExecutionStrategy::multi`]), call [`FisherHook::step`] in
/// `TrainStep::step` and say how many workers there are: what they see is joined. Burn's
/// `DistributedDataParallel` is for devices with collective operations, which flex and ndarray are
/// not. Devices on another machine (`remote`) were not tried.
///
/// ```
/// use fisher_train::Result;
/// use fisher_train::monitor::Probes;
/// use fisher_train::prelude::*;
///
/// fn train<M: SampleLoss>(
///     mut model: M,
///     batches: Vec<M::Batch>,
///     probes: Probes<M::Batch>,
///     train_on: impl Fn(M, &M::Batch) -> M,
/// ) -> Result<M> {
///     let schedule = Schedule::new().with_every_steps(Some(50)).with_at_end(true);
///     let probes = HookSource::Probes(probes);
///     let hook = HookConfig::new(schedule).init(&model, probes)?;
///     for batch in batches {
///         hook.step(&model, &batch)?;
///         model = train_on(model, &batch);
///     }
///     hook.finish(&model)?;
///     Ok(model)
/// }
/// ```
///
/// [`ExecutionStrategy::multi`]: burn::train::ExecutionStrategy::multi
#[derive(Debug)]
pub struct FisherHook<B> {
    pub(super) shared: Arc<Shared<B>>,
}

// By hand: a derive would ask the batch to be `Clone`.
impl<B> Clone for FisherHook<B> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl HookConfig {
    /// A hook for training `model`, which is where training begins.
    ///
    /// # Errors
    /// Those of [`StatisticsConfig::init`](fisher_core::statistics::StatisticsConfig::init); [`Error::Hook`](crate::Error::Hook) for an interval or number of workers of
    /// 0, for batches in flight at the end, or averaged or stored over several workers, and without a
    /// probe; [`Io`](fisher_core::Error::Io) when a folder cannot be written;
    /// [`Error::DuplicateSample`](crate::Error::DuplicateSample) when an id comes twice in a task's probes.
    pub fn init<M: SampleLoss>(
        &self,
        model: &M,
        source: impl Into<HookSource<M::Batch>>,
    ) -> Result<FisherHook<M::Batch>> {
        let heads = self.statistics.heads(&Catalogue::of(model)?)?;
        self.init_with_heads(model, &heads, source)
    }

    /// The same, with heads whose layout was made by hand.
    ///
    /// # Errors
    /// As [`HookConfig::init`].
    pub fn init_with_heads<M: SampleLoss>(
        &self,
        model: &M,
        heads: &HeadLayout,
        source: impl Into<HookSource<M::Batch>>,
    ) -> Result<FisherHook<M::Batch>> {
        let source = source.into();
        self.check(&source)?;
        let origin = hash_weights(model)?;
        let fresh: Statistics = self.statistics.init_with_heads(model, heads)?;
        let device = fresh.device().clone();
        let catalogue = Catalogue::of(model)?;
        self.compared(&catalogue)?;
        let ties = catalogue.parameters().iter().flat_map(|parameter| {
            let tied = parameter.tied().iter();
            tied.map(|path| [parameter.path().to_owned(), path.clone()])
        });
        self.noise
            .as_ref()
            .map(NoiseScaleConfig::init)
            .transpose()?;
        // What cannot be written is to be known before training.
        let store = self.store.as_ref().and_then(|store| store.folder.as_ref());
        for folder in [&self.folder, &self.checkpoints]
            .into_iter()
            .flatten()
            .chain(store)
        {
            ensure_writable(folder.join("statistics.safetensors"))?;
        }
        let (tasks, probes) = match source {
            HookSource::InFlight(task) => (vec![task], None),
            HookSource::Probes(probes) => {
                let tasks = probes.iter().map(|(task, _)| task.clone()).collect();
                (tasks, Some(Mutex::new(probes)))
            }
        };
        let file = self.folder.as_ref().map(|f| f.join("history.jsonl"));
        let state = State {
            calls: 0,
            epoch: 0,
            began: 0,
            run: fresh.during_training(&origin, 0),
            origin,
            latest: None,
            averages: self.ema.map(Averages::new).transpose()?,
            store: None,
            history: History::default(),
            journal: Journal::default(),
            resumed_at: 0,
            file: file.map(HistoryFile::new),
            loaded: false,
            unsaved: false,
            failure: None,
        };
        Ok(FisherHook {
            shared: Arc::new(Shared {
                config: self.clone(),
                heads: heads.clone(),
                device,
                tasks,
                ties: ties.collect(),
                probes,
                state: Mutex::new(state),
            }),
        })
    }
}

impl<B: SampleBatch> FisherHook<B> {
    /// Call before `model` is trained on `batch`: captures when the schedule says so, and tells
    /// whether it did.
    ///
    /// # Errors
    /// Those of [`Capture::accumulate`](crate::capture::Capture::accumulate), of the store, and of writing
    /// the history. The statistics are as they were before then, are saved as by
    /// [`FisherHook::save`], and training can go on.
    pub fn step<M: SampleLoss<Batch = B>>(&self, model: &M, batch: &B) -> Result<bool> {
        let Some(due) = self.advance() else {
            return Ok(false);
        };
        self.capture(model, due, Some(batch))
    }

    /// Call after each epoch, if the schedule counts them.
    pub fn end_epoch(&self) {
        let workers = self.shared.config.workers as u64;
        let mut state = self.state();
        state.epoch += 1;
        // Workers whose data ended sooner are level again.
        state.began = state.calls.div_ceil(workers);
        state.calls = state.began * workers;
    }

    /// Call after training: captures if the schedule says so, and writes what is to be written at
    /// the end, whether or not this last capture fails.
    ///
    /// # Errors
    /// As [`FisherHook::step`], and those of [`Statistics::save`]; of both, that of the capture, and
    /// the other is logged.
    pub fn finish<M: SampleLoss<Batch = B>>(&self, model: &M) -> Result<()> {
        let captures = self.shared.config.schedule.at_end && self.failure().is_none();
        let captured = if captures {
            let due = Due {
                moment: self.moment(),
                leads: true,
            };
            self.capture(model, due, None)
        } else {
            Ok(false)
        };
        let saved = self.save();
        if let (Err(_), Err(error)) = (&captured, &saved) {
            tracing::error!(%error, "what was captured before could not be saved");
        }
        captured.and(saved)
    }

    /// Write statistics and averages to the folder, if there is one. A hook that has neither captured
    /// nor gone on from a checkpoint writes nothing: what is in the folder is another run's.
    ///
    /// # Errors
    /// Those of [`Statistics::save`].
    pub fn save(&self) -> Result<()> {
        let Some(folder) = &self.shared.config.folder else {
            return Ok(());
        };
        let mut state = self.state();
        if state.is_empty() {
            return Ok(());
        }
        state.run.save(folder.join("statistics.safetensors"))?;
        if let Some(latest) = &state.latest {
            latest.save(folder.join("latest.safetensors"))?;
        }
        if let Some(averages) = &state.averages {
            averages.save(folder.join("averages.safetensors"))?;
        }
        state.unsaved = false;
        Ok(())
    }

    /// Count a step; `Some` when it is to be captured.
    pub(crate) fn advance(&self) -> Option<Due> {
        let workers = self.shared.config.workers as u64;
        let mut state = self.state();
        let moment = state.moment(workers);
        let leads = state.calls.is_multiple_of(workers);
        let first = moment.step == state.began;
        state.calls += 1;
        let captures = leads || self.shared.probes.is_none();
        let due = captures && state.failure.is_none();
        let fires = self.shared.config.schedule.fires(moment, first);
        (due && fires).then_some(Due { moment, leads })
    }

    /// Capture now; `false` when there is nothing to.
    pub(crate) fn capture<M: SampleLoss<Batch = B>>(
        &self,
        model: &M,
        due: Due,
        batch: Option<&B>,
    ) -> Result<bool> {
        // One after the other: they share the probes, and the place where a store is filled.
        let probes = self.shared.probes.as_ref();
        let probes = probes.map(|p| p.lock().unwrap_or_else(PoisonError::into_inner));
        let captured = self.try_capture(model, due, batch, probes.as_deref());
        captured.inspect_err(|_| {
            self.shared.clear();
            let unsaved = self.state().unsaved;
            if unsaved && let Err(error) = self.save() {
                tracing::error!(%error, "what was captured before could not be saved");
            }
        })
    }

    fn try_capture<M: SampleLoss<Batch = B>>(
        &self,
        model: &M,
        due: Due,
        batch: Option<&B>,
        probes: Option<&Probes<B>>,
    ) -> Result<bool> {
        let shared = &self.shared;
        let _span = tracing::info_span!("capture", step = due.moment.step).entered();
        let captured = match (probes, batch) {
            (None, None) => return Ok(false),
            (None, Some(batch)) => {
                let sources = [(&*shared.tasks[0], std::slice::from_ref(batch))];
                shared.capture(model, due.moment, &sources)?
            }
            (Some(_), _) if !due.leads => return Ok(false),
            (Some(probes), _) => {
                let sources: Vec<(&str, &[B])> = probes
                    .iter()
                    .map(|(task, batches)| (&**task, &**batches))
                    .collect();
                // A copy of the model may be on another device than the probes.
                match model.devices().first() {
                    Some(device) if device.clone().without_autodiff() != shared.device => {
                        // With running statistics of its own: a clone would take the model's along.
                        let model = deterministic(model, |_| true);
                        let model = model.fork(&shared.device.clone().autodiff());
                        shared.capture(&model, due.moment, &sources)?
                    }
                    _ => shared.capture(model, due.moment, &sources)?,
                }
            }
        };
        let mut state = self.state();
        state.take(captured, &shared.config, &shared.device)?;
        Ok(true)
    }
}

impl<B> FisherHook<B> {
    /// Save the state in `fisher-{epoch}` in the folder of the configuration's `checkpoints`, and
    /// remove those whose checkpoint of the learner has gone before. A [`FisherStrategy`](crate::monitor::FisherStrategy)
    /// does this with each of the learner's checkpoints; call it after
    /// [`FisherHook::end_epoch`].
    ///
    /// A folder is there whole or not at all, also when the program is killed meanwhile or the power
    /// goes; one that was there before is found until the new one is. The captures themselves are
    /// beside them in `history-N.jsonl`, where each is written once.
    ///
    /// # Errors
    /// [`Error::Hook`](crate::Error::Hook) when the configuration has no such folder; those of [`Statistics::save`].
    pub fn save_checkpoint(&self, epoch: usize) -> Result<()> {
        checkpoint::save(&self.shared, &mut self.state(), epoch)
    }

    /// Go on where [`FisherHook::save_checkpoint`] was: statistics, averages, history and the place
    /// in the schedule are as they were then.
    ///
    /// # Errors
    /// [`Error::Hook`](crate::Error::Hook) when the state was saved by a hook of another schedule, tasks, average or
    /// number of workers; [`fisher_core::Error::Incompatible`] when its statistics are of another
    /// configuration; errors of reading, and [`fisher_core::Error::Io`] when nothing was saved then.
    /// The hook and the files in its folder are as they were before then.
    pub fn load_checkpoint(&self, epoch: usize) -> Result<()> {
        checkpoint::load(&self.shared, &mut self.state(), epoch)
    }

    /// Whether the configuration says where checkpoints are.
    pub(crate) fn has_checkpoints(&self) -> bool {
        self.shared.config.checkpoints.is_some()
    }

    /// Batches trained on so far, and epochs that are over.
    pub fn moment(&self) -> TrainingPoint {
        let workers = self.shared.config.workers as u64;
        self.state().moment(workers)
    }

    /// The statistics of all captures together: see [`Statistics::during_training`].
    pub fn statistics(&self) -> Statistics {
        self.state().run.clone()
    }

    /// The statistics of the last capture alone: of the weights as they were then.
    pub fn latest(&self) -> Option<Statistics> {
        self.state().latest.clone()
    }

    /// The moving averages, if they were asked for.
    pub fn averages(&self) -> Option<Averages> {
        self.state().averages.clone()
    }

    /// Take the last capture's gradients away, if they were asked for. A store on disk is open for
    /// reading.
    pub fn take_store(&self) -> Option<GradientStore> {
        self.state().store.take()
    }

    /// What captures found so far.
    pub fn history(&self) -> History {
        self.state().history.clone()
    }

    /// Why captures ended before training did, if they have: see
    /// [`OnFailure`](super::OnFailure).
    pub fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}
