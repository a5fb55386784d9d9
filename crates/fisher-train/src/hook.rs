//! Fisher information of a model that is being trained.

mod across;
pub(crate) mod aside;
mod history;
mod metric;
mod resume;
mod schedule;
mod strategy;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::config::Config;
use burn::module::ParamGroup;
use burn::tensor::Device;
use fisher_core::{
    Averages, Catalogue, GradientStore, HeadLayout, Statistics, StatisticsConfig, StoreConfig,
    hash_weights,
};
use serde::{Deserialize, Serialize};

pub use across::AcrossTasks;
pub use history::{HISTORY_SCHEMA, History, Part, Reading, TaskReading};
pub use metric::{FisherMetric, Quantity};
pub use schedule::{Moment, Schedule};
pub use strategy::FisherStrategy;

use crate::capture::CaptureConfig;
use crate::destination::Destination;
use crate::noise::NoiseScaleConfig;
use crate::sample::{SampleBatch, SampleLoss};
use crate::{Error, Result};
use aside::Aside;
use history::HistoryFile;

/// Configuration of a [`FisherHook`].
#[derive(Config, Debug)]
pub struct HookConfig {
    /// When to capture.
    pub schedule: Schedule,
    /// What to accumulate: unless said, groups, layers and heads, and no elements.
    #[config(default = "StatisticsConfig::new().with_elementwise(false)")]
    pub statistics: StatisticsConfig,
    /// How gradients are had.
    #[config(default = "CaptureConfig::new()")]
    pub capture: CaptureConfig,
    /// β of a moving average over captures.
    pub ema: Option<f64>,
    /// Estimate the gradient noise scale at each capture.
    pub noise: Option<NoiseScaleConfig>,
    /// Compare the gradients of these parameters across tasks at each capture. All samples'
    /// gradients of them are in memory then: attention alone ([`HeadLayout::group`]) is less.
    pub compare: Option<ParamGroup>,
    /// Keep the gradients of each capture whole: in `step-N` under the store's folder, or those of
    /// the last capture in memory where it has none.
    pub store: Option<StoreConfig>,
    /// Put the means of all groups in the history, beside layers and heads.
    #[config(default = false)]
    pub groups_in_history: bool,
    /// Where to write: `history.jsonl` as training goes; at its end `statistics.safetensors` (over
    /// all captures), `latest.safetensors` (of the last) and `averages.safetensors`. A new run
    /// begins them anew.
    pub folder: Option<PathBuf>,
    /// The folder of the learner's checkpoints, `checkpoint` in that of `SupervisedTraining`: the
    /// state of the hook is saved beside them and comes back with them.
    pub checkpoints: Option<PathBuf>,
    /// The workers that call [`FisherHook::step`] once in every step.
    #[config(default = 1)]
    pub workers: usize,
    /// What a [`FisherStrategy`] does when a capture fails.
    #[config(default = "OnFailure::Stop")]
    pub on_failure: OnFailure,
}

/// What happens to training when a capture fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It stops, with the error in its result.
    #[default]
    Stop,
    /// It goes on without captures. The error is logged, and [`FisherHook::failure`] has it.
    Detach,
}

/// A name and batches for each task.
pub type Probes<B> = Vec<(String, Vec<B>)>;

/// What is captured.
#[derive(Debug)]
pub enum Source<B> {
    /// The batch that is about to be trained on, as a task of this name.
    InFlight(String),
    /// The same samples each time.
    Probes(Probes<B>),
}

/// Captures token-sum per-sample gradients while a model is trained, on a [`Schedule`].
///
/// A handle: clones share one state. In Burn's `SupervisedTraining` give it as a strategy
/// ([`FisherHook::strategy`]), with metrics ([`FisherHook::metric`]) if they are wanted. In a loop of
/// your own call [`FisherHook::step`] before each training step, [`FisherHook::end_epoch`] and
/// [`FisherHook::finish`].
///
/// Each capture fills fresh statistics of the weights as they are then ([`FisherHook::latest`]).
/// They join those of the whole run ([`FisherHook::statistics`]), the moving averages, and leave a
/// [`Reading`] in the history. Contributions are per token.
///
/// Training does not notice: the model is only read, gradients are those of a copy with dropout
/// off, and no random number is drawn.
#[derive(Debug)]
pub struct FisherHook<B> {
    shared: Arc<Shared<B>>,
}

// By hand: a derive would ask the batch to be `Clone`.
impl<B> Clone for FisherHook<B> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

#[derive(Debug)]
struct Shared<B> {
    config: HookConfig,
    heads: HeadLayout,
    device: Device,
    tasks: Vec<String>,
    /// Behind a lock, so that batches need not be `Sync`. `None` for batches in flight.
    probes: Option<Mutex<Probes<B>>>,
    state: Mutex<State>,
}

/// What moves. Whoever panics leaves it as it was between two captures.
#[derive(Debug)]
struct State {
    /// Calls of `step`, of all workers.
    calls: u64,
    epoch: u64,
    /// The step that the epoch began with.
    began: u64,
    /// The hash of the weights that training began with.
    origin: String,
    run: Statistics,
    latest: Option<Statistics>,
    averages: Option<Averages>,
    store: Option<GradientStore>,
    history: History,
    /// The same as they were written.
    lines: Vec<String>,
    /// The calls of `step` before the checkpoint that was resumed from.
    resumed_at: u64,
    file: Option<HistoryFile>,
    failure: Option<String>,
}

/// A step that is to be captured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    moment: Moment,
    /// Whether this worker captures what is captured once for all.
    leads: bool,
}

impl HookConfig {
    /// A hook for training `model`, which is where training begins.
    ///
    /// # Errors
    /// Those of [`StatisticsConfig::init`]; [`Error::Hook`] for an interval or number of workers of
    /// 0, for batches in flight at the end or averaged over several workers, and without a probe;
    /// [`Error::DuplicateSample`] when an id comes twice in a task's probes.
    pub fn init<M: SampleLoss>(
        &self,
        model: &M,
        heads: &HeadLayout,
        source: Source<M::Batch>,
    ) -> Result<FisherHook<M::Batch>> {
        self.check(&source)?;
        let origin = hash_weights(model)?;
        let fresh: Statistics = self.statistics.init(model, heads)?;
        let device = fresh.device().clone();
        self.compared(&Catalogue::of(model)?)?;
        self.noise
            .as_ref()
            .map(NoiseScaleConfig::init)
            .transpose()?;
        if let Some(folder) = &self.folder {
            std::fs::create_dir_all(folder).map_err(|e| history::io(folder, e))?;
        }
        let (tasks, probes) = match source {
            Source::InFlight(task) => (vec![task], None),
            Source::Probes(probes) => {
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
            lines: Vec::new(),
            resumed_at: 0,
            file: file.map(HistoryFile::new),
            failure: None,
        };
        Ok(FisherHook {
            shared: Arc::new(Shared {
                config: self.clone(),
                heads: heads.clone(),
                device,
                tasks,
                probes,
                state: Mutex::new(state),
            }),
        })
    }

    fn check<B: SampleBatch>(&self, source: &Source<B>) -> Result<()> {
        let refuse = |reason: &str| {
            Err(Error::Hook {
                reason: reason.into(),
            })
        };
        if self.schedule.has_zero() || self.workers == 0 {
            return refuse("an interval or number of workers of 0; give one above 0");
        }
        match source {
            Source::InFlight(_) if self.schedule.at_end => {
                refuse("no batch is in flight at the end of training; capture probes there")
            }
            Source::InFlight(_) if self.workers > 1 && self.ema.is_some() => refuse(
                "a moving average depends on the order that workers come in; average probes, or \
                 train with one worker",
            ),
            Source::InFlight(_) => Ok(()),
            Source::Probes(probes) => {
                let mut seen = HashSet::new();
                for (task, batches) in probes {
                    for id in batches.iter().flat_map(SampleBatch::ids) {
                        if !seen.insert((task, id.clone())) {
                            return Err(Error::DuplicateSample {
                                task: task.clone(),
                                sample: id,
                            });
                        }
                    }
                }
                match seen.is_empty() {
                    true => refuse("there is no sample to capture; give at least one probe"),
                    false => Ok(()),
                }
            }
        }
    }

    /// Paths of the parameters to compare.
    fn compared(&self, catalogue: &Catalogue) -> Result<Option<BTreeSet<String>>> {
        let Some(group) = &self.compare else {
            return Ok(None);
        };
        let chosen = catalogue.filter(group)?;
        let paths = chosen.parameters().iter().map(|p| p.path().to_owned());
        Ok(Some(paths.collect()))
    }
}

impl<B: SampleBatch> FisherHook<B> {
    /// Call before `model` is trained on `batch`: captures when the schedule says so, and tells
    /// whether it did.
    ///
    /// # Errors
    /// Those of [`Capture::accumulate`](crate::Capture::accumulate), of the store, and of writing
    /// the history. The statistics are as they were before then, and training can go on.
    pub fn step<M: SampleLoss<Batch = B>>(&self, model: &M, batch: &B) -> Result<bool> {
        match self.advance() {
            Some(due) => self.capture(model, due, Some(batch)),
            None => Ok(false),
        }
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
    /// the end.
    ///
    /// # Errors
    /// As [`FisherHook::step`], and those of [`Statistics::save`].
    pub fn finish<M: SampleLoss<Batch = B>>(&self, model: &M) -> Result<()> {
        if self.shared.config.schedule.at_end && self.failure().is_none() {
            let moment = self.moment();
            self.capture(
                model,
                Due {
                    moment,
                    leads: true,
                },
                None,
            )?;
        }
        self.save()
    }

    /// Write statistics and averages to the folder, if there is one.
    ///
    /// # Errors
    /// Those of [`Statistics::save`].
    pub fn save(&self) -> Result<()> {
        let Some(folder) = &self.shared.config.folder else {
            return Ok(());
        };
        let state = self.state();
        state.run.save(folder.join("statistics.safetensors"))?;
        if let Some(latest) = &state.latest {
            latest.save(folder.join("latest.safetensors"))?;
        }
        if let Some(averages) = &state.averages {
            averages.save(folder.join("averages.safetensors"))?;
        }
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
        let shared = &self.shared;
        let _span = tracing::info_span!("capture", step = due.moment.step).entered();
        let captured = match (&shared.probes, batch) {
            (None, None) => return Ok(false),
            (None, Some(batch)) => {
                let sources = [(&*shared.tasks[0], std::slice::from_ref(batch))];
                shared.capture(model, due.moment, &sources)?
            }
            (Some(_), _) if !due.leads => return Ok(false),
            (Some(probes), _) => {
                let probes = probes.lock().unwrap_or_else(PoisonError::into_inner);
                let sources: Vec<(&str, &[B])> = probes
                    .iter()
                    .map(|(task, batches)| (&**task, &**batches))
                    .collect();
                // A copy of the model may be on another device than the probes.
                match model.devices().first() {
                    Some(device) if device.clone().without_autodiff() != shared.device => {
                        let model = model.clone().fork(&shared.device.clone().autodiff());
                        shared.capture(&model, due.moment, &sources)?
                    }
                    _ => shared.capture(model, due.moment, &sources)?,
                }
            }
        };
        self.state().take(captured, &shared.device)?;
        Ok(true)
    }
}

impl<B> FisherHook<B> {
    /// Batches trained on so far, and epochs that are over.
    pub fn moment(&self) -> Moment {
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

    /// Take the last capture's gradients away, if they were asked for.
    pub fn take_store(&self) -> Option<GradientStore> {
        self.state().store.take()
    }

    /// What captures found so far.
    pub fn history(&self) -> History {
        self.state().history.clone()
    }

    /// Why captures ended before training did, if they have: see [`OnFailure`].
    pub fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    /// What captures found, as a metric for Burn's training: it plots in the dashboard and lands in
    /// the logs. Of the training split (`metric_train_numeric`).
    pub fn metric(&self, quantity: Quantity) -> FisherMetric
    where
        B: Send + 'static,
    {
        FisherMetric::new(self.clone(), quantity)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one capture gives.
struct Captured {
    statistics: Statistics,
    store: Option<GradientStore>,
    reading: Reading,
}

impl<B: SampleBatch> Shared<B> {
    fn capture<M: SampleLoss<Batch = B>>(
        &self,
        model: &M,
        moment: Moment,
        sources: &[(&str, &[B])],
    ) -> Result<Captured> {
        let config = &self.config;
        let mut statistics: Statistics = config.statistics.init(model, &self.heads)?;
        let mut store = self.store(model, moment)?;
        let compared = config.compared(&Catalogue::of(model)?)?;
        let mut aside = Aside::new(config.noise.clone(), compared);
        let mut into = Destination {
            statistics: &mut statistics,
            store: store.as_mut(),
            aside: Some(&mut aside),
        };
        let mut capture = config.capture.init(model, into.paths())?;
        let mut losses = BTreeMap::new();
        for (task, batches) in sources {
            let loss: &mut f64 = losses.entry(*task).or_default();
            let mut seen = HashSet::new();
            for batch in *batches {
                if let Some(twice) = batch.ids().into_iter().find(|id| !seen.insert(id.clone())) {
                    return Err(Error::DuplicateSample {
                        task: (*task).to_owned(),
                        sample: twice,
                    });
                }
                let outcomes = capture.accumulate(batch, task, into.reborrow())?;
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
            let (groups, noise) = (config.groups_in_history, aside.noise_of(task)?);
            let reading = TaskReading::of(&statistics, task, loss, groups, noise)?;
            tasks.insert(task.to_owned(), reading);
        }
        let reading = Reading {
            noise: aside.noise()?,
            across: aside.across()?,
            ..Reading::new(moment, tasks)
        };
        Ok(Captured {
            statistics,
            store,
            reading,
        })
    }

    /// The store of a capture: gradients of other weights are of another model.
    fn store<M: SampleLoss>(&self, model: &M, moment: Moment) -> Result<Option<GradientStore>> {
        let Some(config) = &self.config.store else {
            return Ok(None);
        };
        let folder = config.folder.as_ref();
        let folder = folder.map(|folder| folder.join(format!("step-{}", moment.step)));
        Ok(Some(config.clone().with_folder(folder).init(model)?))
    }
}

impl State {
    fn moment(&self, workers: u64) -> Moment {
        Moment {
            step: self.calls / workers,
            epoch: self.epoch,
        }
    }

    /// Everything that can fail first, then what was captured takes its places.
    fn take(&mut self, captured: Captured, device: &Device) -> Result<()> {
        let Captured {
            statistics,
            store,
            reading,
        } = captured;
        let statistics = statistics.to_device(device);
        let mut run = self.run.clone();
        run.merge(
            statistics
                .clone()
                .during_training(&self.origin, reading.step),
        )?;
        let mut averages = self.averages.clone();
        if let Some(averages) = &mut averages {
            for task in reading.tasks.keys() {
                if reading.tasks[task].samples > 0 {
                    averages.push(&statistics, task)?;
                }
            }
        }
        let line = reading.line()?;
        if let Some(file) = &mut self.file {
            file.append(&line)?;
        }
        tracing::info!(step = reading.step, "captured");
        self.lines.push(line);
        self.history.push(reading);
        self.run = run;
        self.averages = averages;
        self.store = store;
        self.latest = Some(statistics);
        Ok(())
    }
}
