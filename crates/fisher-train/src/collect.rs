//! Filling statistics from data.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use burn::config::Config;
use burn::data::dataloader::DataLoader;
use fisher_core::gradient::{ContributionUnit, GradientSink};
use fisher_core::statistics::Statistics;
use fisher_metrics::progress::styled;
use indicatif::ProgressBar;

use crate::batch::{SampleLoss, ids};
use crate::capture::{Capture, CaptureConfig, Engine, Names, NonFinite, Outcome};
use crate::destination::Destination;
use crate::error::{Error, Result};

/// Where and how often a collection is saved so that it can go on after an interruption: also when
/// it ends, or stops with an error.
#[derive(Config, Debug)]
pub struct CheckpointConfig {
    /// The file: a statistics file like any other. Its folder is made where it is not there.
    pub path: PathBuf,
    /// Samples between two writes.
    pub every: usize,
}

/// Configuration of a [`Collector`].
#[derive(Config, Debug)]
pub struct CollectorConfig {
    /// How per-sample gradients are taken.
    #[config(default = "Engine::Auto")]
    pub engine: Engine,
    /// What to do with a sample whose gradient is NaN or infinite.
    #[config(default = "NonFinite::Error")]
    pub non_finite: NonFinite,
    /// Save on the way.
    pub checkpoint: Option<CheckpointConfig>,
    /// Show a progress bar, where standard error is a terminal.
    #[config(default = true)]
    pub progress: bool,
}

impl CollectorConfig {
    /// A collector.
    ///
    /// # Errors
    /// [`Error::CheckpointEvery`] for checkpoints every 0 samples.
    pub fn init(&self) -> Result<Collector> {
        if let Some(CheckpointConfig { every: 0, .. }) = self.checkpoint {
            return Err(Error::CheckpointEvery);
        }
        Ok(Collector {
            config: self.clone(),
            names: Names::new(),
        })
    }
}

/// Fills [`Statistics`] with the per-sample gradients of a task.
#[derive(Debug, Clone)]
pub struct Collector {
    config: CollectorConfig,
    names: Names,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collected {
    /// Samples whose gradients were collected.
    pub samples: usize,
    /// Their active tokens.
    pub tokens: u64,
    /// Samples left out because their gradient was not finite: see the task's sample records.
    pub skipped: usize,
    /// Samples that the checkpoint already held.
    pub resumed: usize,
    /// `Σ_i L_i` of the samples collected, in nats.
    pub loss: f64,
    /// Parameters that no sample collected had a gradient for: their Fisher is 0.
    pub unreached: Vec<String>,
    /// Samples of the task that the store has and the statistics lack: a store on disk that an
    /// earlier run filled with other data.
    pub only_stored: usize,
    /// Time taken.
    pub elapsed: Duration,
}

impl Collector {
    /// Collect by other names than the model's own: statistics and store are of
    /// [`Names::catalogue`].
    #[must_use]
    pub fn with_names(mut self, names: Names) -> Self {
        self.names = names;
        self
    }

    /// The statistics in the checkpoint, or `fresh` ones where none was written yet.
    ///
    /// Collecting then goes on where it stopped: with a checkpoint configured, the samples that a
    /// task already has are taken to be the first of its data.
    ///
    /// # Errors
    /// Those of [`Statistics::load`], and [`Incompatible`](fisher_core::Error::Incompatible) when the checkpoint is of
    /// another model or configuration than `fresh`.
    pub fn resume<C: ContributionUnit>(&self, fresh: Statistics<C>) -> Result<Statistics<C>> {
        let Some(checkpoint) = &self.config.checkpoint else {
            return Ok(fresh);
        };
        if !checkpoint.path.exists() {
            return Ok(fresh);
        }
        let saved = Statistics::load(&checkpoint.path, fresh.device())?;
        fresh.same_configuration(&saved)?;
        tracing::info!(path = %checkpoint.path.display(), "resuming from a checkpoint");
        Ok(saved.with_ghosts_of(&fresh))
    }

    /// Collect the samples of a Burn data loader. To be resumed it must give the samples in the
    /// same order each time: no shuffling, and one worker at most.
    ///
    /// # Errors
    /// Those of [`Collector::collect_batches`], and [`Error::Data`] when the loader fails.
    pub fn collect<'a, M: SampleLoss, C: ContributionUnit>(
        &self,
        model: &M,
        task: &str,
        loader: &dyn DataLoader<M::Batch>,
        into: impl Into<Destination<'a, C>>,
    ) -> Result<Collected> {
        let batches = loader.iter().map(|batch| {
            batch.map_err(|e| Error::Data {
                reason: e.to_string(),
            })
        });
        self.run(model, task, batches, Some(loader.num_items()), into.into())
    }

    /// Collect the samples of an iterator over batches.
    ///
    /// The gradient of each sample is that of its token-sum loss, dropout off, parameters that
    /// are asked for by neither statistics nor store frozen. How samples are batched makes no
    /// difference but for rounding. Samples that a store on disk already has are not written twice.
    ///
    /// # Errors
    /// [`Error::OtherModel`] when the statistics belong to other weights, [`Error::OtherKind`] when
    /// the store is of another Fisher, [`Error::LossKind`] when the losses are, [`Error::Label`] for a
    /// label that is no class, [`OtherSample`](fisher_core::Error::OtherSample) when it has other gradients of a
    /// sample, [`Error::GatesBehind`] when gates have other samples than the statistics, [`Error::OtherData`]
    /// when the data does not begin with what a checkpoint holds, [`Error::DuplicateSample`] when
    /// an id comes twice, [`Error::OtherCheckpoint`] when the checkpoint's file has samples that the
    /// statistics lack (it is another collection's, or was not resumed), errors of single samples
    /// ([`PerSample::gradient`](crate::capture::PerSample::gradient), [`NonFinite`](fisher_core::Error::NonFinite)), and those of [`Statistics::save`] and
    /// [`GradientStore::push`](fisher_core::store::GradientStore::push).
    /// Samples collected before an error stay in the statistics and are in the checkpoint, unless elements of
    /// products were not finite, which is seen while they are accumulated: the statistics say so then
    /// ([`HalfBatch`](fisher_core::Error::HalfBatch)), and the checkpoint is the last one.
    /// Samples without ids are numbered from the first of the data on, so that the same data twice are an error: a
    /// task that is collected in several calls, or in shards, needs ids.
    pub fn collect_batches<'a, M: SampleLoss, C: ContributionUnit>(
        &self,
        model: &M,
        task: &str,
        batches: impl IntoIterator<Item = M::Batch>,
        into: impl Into<Destination<'a, C>>,
    ) -> Result<Collected> {
        self.run(model, task, batches.into_iter().map(Ok), None, into.into())
    }

    fn run<M: SampleLoss, C: ContributionUnit>(
        &self,
        model: &M,
        task: &str,
        batches: impl Iterator<Item = Result<M::Batch>>,
        total: Option<usize>,
        mut into: Destination<C>,
    ) -> Result<Collected> {
        let _span = tracing::info_span!("collect", task).entered();
        let start = Instant::now();
        let saved = match &self.config.checkpoint {
            Some(CheckpointConfig { path, .. }) => into.check_path(path)?,
            None => false,
        };
        into.check_model(model)?;
        into.check_gates(task)?;
        if let Some(checkpoint) = &self.config.checkpoint {
            into.statistics.ensure_savable(&checkpoint.path, task)?;
        }
        let capture = CaptureConfig::new()
            .with_engine(self.config.engine)
            .with_non_finite(self.config.non_finite);
        let capture = capture.init_named(model, into.paths(), &self.names)?;
        let mut pass = Pass {
            config: &self.config,
            task,
            capture,
            unreached: Unreached::default(),
            bar: self.bar(task, total),
            saved: saved.then(|| into.seen(task)),
            collected: Collected::default(),
        };
        let passed = pass.over(batches, &mut into);
        // What was counted before an error is not lost with it.
        let saved = pass.save(&mut into);
        if let (Err(_), Err(error)) = (&passed, &saved) {
            tracing::error!(%error, "what was collected since the last checkpoint is not in it");
        }
        passed.and(saved)?;
        pass.bar.finish_and_clear();
        let mut collected = pass.collected;
        collected.unreached = pass.unreached.into_paths();
        if !collected.unreached.is_empty() && collected.samples > 0 {
            let parameters = collected.unreached.join(", ");
            tracing::warn!(parameters, "no sample has a gradient for these parameters");
        }
        collected.only_stored = into.only_stored(task);
        if collected.only_stored > 0 {
            let samples = collected.only_stored;
            tracing::warn!(samples, "the store has samples that the statistics lack");
        }
        collected.elapsed = start.elapsed();
        tracing::info!(samples = collected.samples, elapsed = ?collected.elapsed, "collected");
        Ok(collected)
    }

    fn bar(&self, task: &str, total: Option<usize>) -> ProgressBar {
        if !self.config.progress {
            return ProgressBar::hidden();
        }
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total as u64),
                "{prefix} {wide_bar} {pos}/{len} samples, {per_sec}, {eta} left",
            ),
            None => (
                ProgressBar::new_spinner(),
                "{prefix} {spinner} {pos} samples, {per_sec}, {elapsed}",
            ),
        };
        styled(bar, template, task.to_owned())
    }
}

/// One pass over the data of a task.
struct Pass<'a, M> {
    config: &'a CollectorConfig,
    task: &'a str,
    capture: Capture<M>,
    unreached: Unreached,
    bar: ProgressBar,
    /// Samples of the task when all that there is was saved; `None` before.
    saved: Option<usize>,
    collected: Collected,
}

impl<M: SampleLoss> Pass<'_, M> {
    fn over<C: ContributionUnit>(
        &mut self,
        batches: impl Iterator<Item = Result<M::Batch>>,
        into: &mut Destination<C>,
    ) -> Result<()> {
        let task = self.task;
        let records = match into.statistics.task(task) {
            Ok(task) => task.samples().to_vec(),
            Err(_) => Vec::new(),
        };
        let mut seen: HashSet<String> = records.iter().map(|s| s.id.clone()).collect();
        let done = match self.config.checkpoint {
            Some(_) => records,
            None => Vec::new(),
        };
        let mut position = 0;
        for batch in batches {
            let batch = batch?;
            let before = position;
            let mut fresh = Vec::new();
            for (index, id) in ids(&batch, position).into_iter().enumerate() {
                if let Some(expected) = done.get(position) {
                    check_resumed(task, position, &expected.id, &id)?;
                    self.collected.resumed += 1;
                    // A store that was only in memory is empty again.
                    if into.lacks(task, &id) && expected.skipped.is_none() {
                        let sample = self.capture.of(&batch, index, &id)?;
                        if let Some(expected) = into.refuses(sample.kind) {
                            let found = sample.kind;
                            return Err(Error::LossKind { expected, found });
                        }
                        into.restore(task, &sample.gradients, self.config.non_finite)?;
                    }
                } else if seen.insert(id.clone()) {
                    fresh.push((index, id));
                } else {
                    self.take(&batch, &fresh, into, &mut Vec::new())?;
                    return Err(Error::DuplicateSample {
                        task: task.into(),
                        sample: id,
                    });
                }
                position += 1;
            }
            let mut outcomes = Vec::new();
            self.take(&batch, &fresh, into, &mut outcomes)?;
            self.count(outcomes);
            self.bar.inc((position - before) as u64);
            if let Some(CheckpointConfig { every, .. }) = &self.config.checkpoint
                && position / every > before / every
            {
                self.save(into)?;
            }
        }
        match done.get(position) {
            Some(expected) => check_resumed(task, position, &expected.id, "the end of the data"),
            None => Ok(()),
        }
    }

    /// Some samples of a batch; one by one where a store on disk is ahead of the statistics and has some of them.
    fn take<C: ContributionUnit>(
        &mut self,
        batch: &M::Batch,
        samples: &[(usize, String)],
        into: &mut Destination<C>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        let lacking = samples.iter().filter(|(_, id)| into.lacks(self.task, id));
        let alike = [0, samples.len()].contains(&lacking.count());
        let together = if alike { samples.len() } else { 1 };
        for samples in samples.chunks(together.max(1)) {
            self.capture
                .run(batch, samples, self.task, into, outcomes)?;
        }
        Ok(())
    }

    fn count(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            self.unreached.add(&outcome.unreached);
            match outcome.loss {
                Some(loss) => {
                    self.collected.samples += 1;
                    self.collected.tokens += outcome.tokens;
                    self.collected.loss += loss;
                }
                None => self.collected.skipped += 1,
            }
        }
    }

    /// Write the checkpoint, if there is one and it lacks anything: nothing is put in a file's place
    /// before there is something to put.
    fn save<C: ContributionUnit>(&mut self, into: &mut Destination<C>) -> Result<()> {
        let Some(CheckpointConfig { path, .. }) = &self.config.checkpoint else {
            return Ok(());
        };
        let seen = Some(into.seen(self.task));
        if seen == self.saved {
            return Ok(into.sync()?);
        }
        into.save(path)?;
        self.saved = seen;
        Ok(())
    }
}

/// The parameters that no sample has reached so far.
#[derive(Debug, Default)]
struct Unreached(Option<BTreeSet<String>>);

impl Unreached {
    fn add(&mut self, paths: &[String]) {
        match &mut self.0 {
            Some(never) => never.retain(|path| paths.contains(path)),
            None => self.0 = Some(paths.iter().cloned().collect()),
        }
    }

    fn into_paths(self) -> Vec<String> {
        self.0.unwrap_or_default().into_iter().collect()
    }
}

fn check_resumed(task: &str, position: usize, expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::OtherData {
        task: task.into(),
        position,
        expected: expected.into(),
        found: found.into(),
    })
}
