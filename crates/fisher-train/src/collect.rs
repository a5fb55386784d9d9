//! Filling statistics from data.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use burn::config::Config;
use burn::data::dataloader::DataLoader;
use fisher_core::check_argument;
use fisher_core::gradient::{ContributionUnit, GradientSink};
use fisher_core::kind::FisherKind;
use fisher_core::statistics::Statistics;
use fisher_metrics::kinds::KindRatio;
use fisher_metrics::progress::styled;
use indicatif::ProgressBar;

use crate::batch::{SampleBatch, SampleLoss, ids};
use crate::capture::{Capture, CaptureConfig, Engine, Names, NonFinite, Outcome};
use crate::destination::Destination;
use crate::error::{Error, Result};
use crate::kinds::{Centred, DrawSpread, Fisher, MeanGradient, Means, Plan, Rounds, Spread, held};

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
    /// Which Fisher, and how.
    #[config(default = "Fisher::AsGiven")]
    pub fisher: Fisher,
    /// Compare with the empirical Fisher of the same samples while a Monte-Carlo one is collected
    /// ([`Collected::ratio`]): one pass more over each batch.
    #[config(default = false)]
    pub compare: bool,
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
    /// [`Error::CheckpointEvery`] for checkpoints every 0 samples; [`fisher_core::Error::Argument`] for no draws.
    pub fn init(&self) -> Result<Collector> {
        if let Fisher::MonteCarlo { draws, .. } = self.fisher {
            check_argument(draws > 0, "draws", "at least 1", draws)?;
        }
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
    /// Samples whose gradients were collected: tokens, where every token is one ([`Fisher::TokenLevel`]).
    pub samples: usize,
    /// Their active tokens.
    pub tokens: u64,
    /// Samples left out because their gradient was not finite: see the task's sample records.
    pub skipped: usize,
    /// Samples that the checkpoint already held.
    pub resumed: usize,
    /// `Σ_i L_i` of the samples collected, in nats, by the labels of the data.
    pub loss: f64,
    /// How far draws of labels carry, where they were drawn ([`Fisher::MonteCarlo`]).
    pub draws: Option<DrawSpread>,
    /// The empirical Fisher over the Monte-Carlo one, where that was asked for ([`CollectorConfig::compare`]).
    pub ratio: Option<KindRatio>,
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
        let total = Some(loader.num_items());
        self.run(model, task, batches, total, into.into(), None)
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
        let batches = batches.into_iter().map(Ok);
        self.run(model, task, batches, None, into.into(), None)
    }

    /// The mean gradient of a task's samples, of the parameters of `statistics` and in their unit: what
    /// [`Collector::collect_centred`] takes off. By the labels of the data; nothing is kept but one sum.
    ///
    /// # Errors
    /// Those of [`Capture::accumulate`], [`Error::DuplicateSample`] when an id comes twice. A sample whose gradient is not finite
    /// is an error, whatever [`CollectorConfig::non_finite`] says.
    pub fn mean_gradient<M: SampleLoss, C: ContributionUnit>(
        &self,
        model: &M,
        task: &str,
        batches: impl IntoIterator<Item = M::Batch>,
        statistics: &Statistics<C>,
    ) -> Result<MeanGradient<C>> {
        let capture = CaptureConfig::new().with_engine(self.config.engine);
        let mut capture = capture.init_named(model, statistics.paths(), &self.names)?;
        let mut means = Means::new(statistics, task);
        for batch in batches {
            capture.accumulate(&batch, task, &mut means)?;
        }
        Ok(means.into_mean())
    }

    /// Collect [centred](FisherKind::Centred) statistics: the gradients of the samples of `mean`, less that mean.
    ///
    /// ```
    /// # use fisher_train::prelude::*;
    /// fn centred<M: SampleLoss>(model: &M, batches: &[M::Batch]) -> fisher_train::Result<Statistics>
    /// where
    ///     M::Batch: Clone,
    /// {
    ///     let mut statistics = StatisticsConfig::new().with_kind(FisherKind::Centred).init(model)?;
    ///     let collector = CollectorConfig::new().init()?;
    ///     let mean = collector.mean_gradient(model, "task", batches.to_vec(), &statistics)?;
    ///     collector.collect_centred(model, "task", batches.to_vec(), &mean, &mut statistics)?;
    ///     Ok(statistics)
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of [`Collector::collect_batches`], [`Error::Fisher`] for a sample that is not one of the mean's.
    pub fn collect_centred<M: SampleLoss, C: ContributionUnit>(
        &self,
        model: &M,
        task: &str,
        batches: impl IntoIterator<Item = M::Batch>,
        mean: &MeanGradient<C>,
        into: &mut Statistics<C>,
    ) -> Result<Collected> {
        let batches = batches.into_iter().map(Ok);
        self.run(model, task, batches, None, into.into(), Some(mean))
    }

    /// Whether this Fisher goes there.
    ///
    /// # Errors
    /// [`Error::LossKind`] when the statistics are of another, [`Error::Fisher`] when a store would have to keep what are
    /// no gradients.
    fn check_fisher<C: ContributionUnit>(
        &self,
        into: &Destination<C>,
        centre: Option<&MeanGradient<C>>,
    ) -> Result<()> {
        let expected = into.statistics.provenance().kind;
        let found = match (self.config.fisher.kind(), centre) {
            (Some(kind), Some(_)) => {
                let reason = "gradients are centred as they are given (`Fisher::AsGiven`)".into();
                return Err(Error::Fisher { kind, reason });
            }
            (None, Some(_)) => FisherKind::Centred,
            (Some(kind), None) => kind,
            (None, None) => return Ok(()),
        };
        if found != expected {
            return Err(Error::LossKind { expected, found });
        }
        if into.stores() {
            let reason = "a store keeps the gradient of each sample, and this Fisher is made of several or of what is \
                          left of one: collect into statistics alone, and the store by the labels of the data";
            let (kind, reason) = (found, reason.into());
            return Err(Error::Fisher { kind, reason });
        }
        Ok(())
    }

    fn run<M: SampleLoss, C: ContributionUnit>(
        &self,
        model: &M,
        task: &str,
        batches: impl Iterator<Item = Result<M::Batch>>,
        total: Option<usize>,
        mut into: Destination<C>,
        centre: Option<&MeanGradient<C>>,
    ) -> Result<Collected> {
        let _span = tracing::info_span!("collect", task).entered();
        let start = Instant::now();
        let saved = match &self.config.checkpoint {
            Some(CheckpointConfig { path, .. }) => into.check_path(path)?,
            None => false,
        };
        into.check_model(model)?;
        self.check_fisher(&into, centre)?;
        into.check_gates(task)?;
        if let Some(checkpoint) = &self.config.checkpoint {
            into.statistics.ensure_savable(&checkpoint.path, task)?;
        }
        let capture = CaptureConfig::new()
            .with_engine(self.config.engine)
            .with_non_finite(self.config.non_finite);
        let capture = capture.init_named(model, into.paths(), &self.names)?;
        let spread = match self.config.fisher {
            Fisher::MonteCarlo { draws, .. } => {
                let totals = into.statistics.totals();
                let heads = totals.heads().iter();
                let heads = heads.map(|key| format!("{} head {}", key.attention, key.head));
                let spread = Spread::new(draws, totals.layers().to_vec(), heads.collect());
                Some((spread, self.config.compare))
            }
            _ => None,
        };
        let mut pass = Pass {
            config: &self.config,
            task,
            capture,
            centre,
            spread,
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
        if let Some((spread, _)) = &pass.spread {
            collected.draws = spread.read();
            collected.ratio = spread.ratio();
        }
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
struct Pass<'a, M, C: ContributionUnit> {
    config: &'a CollectorConfig,
    task: &'a str,
    capture: Capture<M>,
    centre: Option<&'a MeanGradient<C>>,
    /// How far draws carry, and whether they are compared with the labels of the data.
    spread: Option<(Spread, bool)>,
    unreached: Unreached,
    bar: ProgressBar,
    /// Samples of the task when all that there is was saved; `None` before.
    saved: Option<usize>,
    collected: Collected,
}

impl<'a, M: SampleLoss, C: ContributionUnit> Pass<'a, M, C> {
    fn over(
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
        // Of samples, and of what is counted: tokens, where every token is a sample.
        let (mut numbered, mut position) = (0, 0);
        for batch in batches {
            let batch = batch?;
            let before = position;
            let names = ids(&batch, numbered);
            numbered += batch.len();
            let rounds = self.rounds(&batch, &names)?;
            let mut fresh = Vec::new();
            for (index, id) in self.counted(rounds.as_ref(), &names) {
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
                    self.take(&batch, rounds.as_ref(), &fresh, into, &mut Vec::new())?;
                    return Err(Error::DuplicateSample {
                        task: task.into(),
                        sample: id,
                    });
                }
                position += 1;
            }
            let mut outcomes = Vec::new();
            self.take(&batch, rounds.as_ref(), &fresh, into, &mut outcomes)?;
            self.count(outcomes);
            self.bar.inc(batch.len() as u64);
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

    /// The labels that take the place of the batch's own, where any do.
    fn rounds<'b>(&self, batch: &'b M::Batch, ids: &'b [String]) -> Result<Option<Rounds<'b, M>>>
    where
        'a: 'b,
    {
        if self.config.fisher == Fisher::AsGiven {
            return Ok(None);
        }
        let plan = Plan {
            fisher: self.config.fisher,
            task: self.task,
            non_finite: self.config.non_finite,
        };
        Rounds::new(&self.capture, batch, ids, plan).map(Some)
    }

    /// What of a batch is counted, with the place of its sample: samples, or tokens.
    fn counted(&self, rounds: Option<&Rounds<M>>, ids: &[String]) -> Vec<(usize, String)> {
        match (self.config.fisher, rounds) {
            (Fisher::TokenLevel, Some(rounds)) => {
                let tokens = rounds.all_tokens().into_iter();
                tokens.map(|token| (token.index, token.id)).collect()
            }
            _ => ids.iter().cloned().enumerate().collect(),
        }
    }

    /// Some samples of a batch; one by one where a store on disk is ahead of the statistics and has some of them.
    fn take(
        &mut self,
        batch: &M::Batch,
        rounds: Option<&Rounds<M>>,
        samples: &[(usize, String)],
        into: &mut Destination<C>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        if samples.is_empty() {
            return Ok(());
        }
        let (task, statistics) = (self.task, &mut *into.statistics);
        match (self.config.fisher, rounds) {
            (Fisher::TokenLevel, Some(rounds)) => {
                let fresh = samples.iter().map(|(_, id)| &**id).collect();
                return rounds.tokens(&mut self.capture, &fresh, statistics, outcomes);
            }
            (_, Some(rounds)) => {
                let (capture, spread) = (&mut self.capture, &mut self.spread);
                return rounds.mixed(capture, samples, statistics, spread, outcomes);
            }
            (_, None) => {}
        }
        if let Some(mean) = self.centre {
            mean.check(task, samples.iter().map(|(_, id)| id.clone()))?;
            for samples in samples.chunks(held(statistics, samples.len())) {
                let mut sink = Centred::new(statistics, mean);
                self.capture
                    .run(batch, samples, task, &mut sink, outcomes)?;
            }
            return Ok(());
        }
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
    fn save(&mut self, into: &mut Destination<C>) -> Result<()> {
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
