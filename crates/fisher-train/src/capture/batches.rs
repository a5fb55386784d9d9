//! Per-sample gradients of batches, by whichever engine serves them.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor};
use fisher_core::Error as CoreError;
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::kind::FisherKind;
use fisher_core::model::Catalogue;
use fisher_core::read;

use super::alone::Alone;
use super::names::Names;
use super::outcome::Outcome;
use super::per_sample::{LoopGradient, PerSample};
use super::policy::{CaptureConfig, Engine, NonFinite};
use super::watch::{EVERY, Watch};
use crate::batch::{SampleBatch, SampleLoss, ids};
use crate::error::{Error, Result};
use crate::gradients::{Captured, HELD, Together, all_shortest};
use crate::losses::SampleLosses;
use crate::trace::Tracer;
use fisher_core::gradient::at_least_single;

impl CaptureConfig {
    /// Ready `model`, as it is now, for the gradients of the parameters at `paths`.
    ///
    /// # Errors
    /// [`CoreError::UnknownParameter`] when the model does not have one of them, or has it frozen.
    pub fn init<'a, M: SampleLoss>(
        &self,
        model: &M,
        paths: impl IntoIterator<Item = &'a str>,
    ) -> Result<Capture<M>> {
        self.init_named(model, paths, &Names::new())
    }

    /// The same, for parameters by other names.
    ///
    /// # Errors
    /// As [`CaptureConfig::init`].
    pub fn init_named<'a, M: SampleLoss>(
        &self,
        model: &M,
        paths: impl IntoIterator<Item = &'a str>,
        names: &Names,
    ) -> Result<Capture<M>> {
        let names = names.for_model(model)?;
        let paths = names.paths(paths);
        let all = || paths.iter().map(String::as_str);
        let by_trace = match self.engine {
            Engine::Loop => None,
            Engine::Auto | Engine::Trace => Some((Tracer::new(model, all())?, None)),
        };
        let device = model.devices().first().cloned().unwrap_or_default();
        Ok(Capture {
            config: self.clone(),
            device: device.without_autodiff(),
            by_loop: PerSample::new(model, all())?,
            by_trace,
            left: BTreeMap::new(),
            left_elements: 0,
            alone: Alone::new(model),
            batches_watched: Watch::default(),
            loop_watched: Watch::default(),
            numbered: BTreeMap::new(),
            paths,
            names,
        })
    }
}

/// Accumulates per-sample gradients of one model, batch by batch.
///
/// The numbers are the same for each [`Engine`], up to rounding: by traces the sums of squares of
/// one batch are taken in float32, and go to the accumulators in their own precision.
///
/// A loss that depends on what else is in the batch, a [`SampleBatch::sample`] that gives another sample: such make
/// numbers wrong without a sign, so they are looked for while gradients are accumulated.
/// - A trace follows on which axis of every tensor the samples lie. Where a sum over them goes back into their losses,
///   and where they are lost sight of, the loop takes over, and compares.
/// - In the first batch, and in each of a new shape (samples that differ in their active tokens, for the first
///   time; another number of samples; gradients in another form), gradient and loss of the sample
///   with the fewest active tokens, of the first and the last such whose loss is more than rounding, are compared
///   with the loop's: a sample or two of the loop. Where there is none, the next batch of that shape is looked at.
/// - In every 32 samples besides, the loss of one is compared with its loss alone. A forward pass of one sample.
///
/// By the loop every sample's gradient is its own. In the first batch, in each of another number of samples,
/// and in one of 8 besides, all losses are compared with those in the batch: a forward pass of the batch
/// without its gradients. A loss that draws anew each time cannot be compared: by the loop it is told by a warning, by a
/// trace it is an error.
///
/// The model is taken as it is when this is made. [`Collector`](crate::collect::Collector) does the rest:
/// loaders, progress, checkpoints.
#[derive(Debug)]
pub struct Capture<M> {
    config: CaptureConfig,
    /// Where gradients lie.
    device: Device,
    /// Of the parameters, in the model.
    paths: Vec<String>,
    names: Names,
    /// All parameters.
    by_loop: PerSample<M>,
    /// Those that traces cover, and the rest.
    by_trace: Option<(Tracer<M>, Option<PerSample<M>>)>,
    /// Parameters that are left to the loop, and why.
    left: BTreeMap<String, String>,
    /// Their elements.
    left_elements: usize,
    alone: Alone<M>,
    batches_watched: Watch,
    loop_watched: Watch,
    /// Samples of each task that came, for the numbers of those without an id.
    numbered: BTreeMap<String, usize>,
}

/// What was compared of traced batches, and of those by the loop.
pub(crate) type Watched = (Watch, Watch);

/// Batches that come by the loop until all losses of one are.
const EVERY_BATCHES: usize = 8;
impl<M: SampleLoss> Capture<M> {
    /// Compare what is unlike all that `watched` has seen, of the same model at other weights.
    pub(crate) fn watching(mut self, watched: Watched) -> Self {
        (self.batches_watched, self.loop_watched) = watched;
        self
    }

    /// Which batches were compared so far.
    pub(crate) fn watched(self) -> Watched {
        (self.batches_watched, self.loop_watched)
    }

    /// Accumulate all samples of a batch.
    ///
    /// # Errors
    /// Those of [`Collector::collect_batches`](crate::collect::Collector::collect_batches) that concern
    /// samples; [`Error::OtherDevice`] when the statistics lie elsewhere; [`Error::Untraced`] and
    /// [`Error::LeftToTheLoop`] and [`Error::Mixed`] for [`Engine::Trace`]; [`Error::Disagree`],
    /// [`Error::LossesDisagree`] and [`Error::TokensDisagree`] when a batch says something else of a sample than
    /// the sample alone.
    pub fn accumulate(
        &mut self,
        batch: &M::Batch,
        task: &str,
        mut into: impl GradientSink,
    ) -> Result<Vec<Outcome>> {
        let numbered = self.numbered.get(task).copied().unwrap_or_default();
        let samples: Vec<(usize, String)> = ids(batch, numbered).into_iter().enumerate().collect();
        let mut outcomes = Vec::new();
        self.run(batch, &samples, task, &mut into, &mut outcomes)?;
        let numbered = numbered + samples.len();
        self.numbered.insert(task.to_owned(), numbered);
        Ok(outcomes)
    }

    /// Accumulate some samples of a batch; those that were are in `outcomes` also after an error.
    pub(crate) fn run(
        &mut self,
        batch: &M::Batch,
        samples: &[(usize, String)],
        task: &str,
        into: &mut impl GradientSink,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        if let Some(device) = into.takes_from().filter(|device| **device != self.device) {
            return Err(Error::OtherDevice {
                model: format!("{:?}", self.device),
                statistics: format!("{device:?}"),
            });
        }
        let whole = samples.len() == batch.len() && samples.len() > 1;
        if whole {
            let ids: Vec<String> = samples.iter().map(|(_, id)| id.clone()).collect();
            if let Some(captured) = self.captured(batch, &ids)?
                && let Some(delivered) = self.deliver(captured, task, into)?
            {
                outcomes.extend(delivered);
                return Ok(());
            }
        }
        let together = self.together(batch)?;
        for (index, id) in samples {
            let span = tracing::debug_span!("sample", id);
            let together = together.as_ref();
            outcomes.push(span.in_scope(|| self.one(batch, *index, id, together, task, into))?);
        }
        Ok(())
    }

    /// A batch that was traced, to where it goes; `None` when a gradient is not finite after all, and the loop has to
    /// tell whose it is.
    fn deliver(
        &self,
        captured: Captured,
        task: &str,
        into: &mut impl GradientSink,
    ) -> Result<Option<Vec<Outcome>>> {
        check_kind(into, captured.kind)?;
        let samples = captured.samples().to_vec();
        let mut unreached = Vec::new();
        let put = || -> fisher_core::Result<()> {
            into.begin(task, &samples)?;
            for (path, gradient) in self.names.rename(captured.gradients) {
                if matches!(gradient, SampleGradient::Zero { .. }) {
                    unreached.push(path.clone());
                }
                if into.wants(&path) {
                    into.put(&path, gradient)?;
                }
            }
            into.prepare()
        };
        if let Err(error) = put() {
            into.forget();
            return match error {
                CoreError::NonFinite { .. } => Ok(None),
                error => Err(error.into()),
            };
        }
        into.commit()?;
        let outcomes = samples.iter().zip(captured.losses);
        let outcomes = outcomes.map(|(sample, loss)| Outcome {
            id: sample.id().into(),
            tokens: sample.tokens(),
            loss: Some(loss),
            unreached: unreached.clone(),
        });
        Ok(Some(outcomes.collect()))
    }

    /// The losses of a batch, by a forward pass that keeps nothing for a backward one.
    pub(crate) fn losses(&self, batch: &M::Batch) -> SampleLosses {
        self.alone.model().sample_losses(batch)
    }

    /// One sample by the loop, whole.
    pub(crate) fn of(&self, batch: &M::Batch, index: usize, id: &str) -> Result<LoopGradient> {
        let mut sample = self.by_loop.of(batch, index, id.to_owned())?;
        sample.gradients = self.names.rename(sample.gradients);
        let unreached = sample.unreached.iter().map(|path| self.names.of(path));
        sample.unreached = unreached.collect();
        Ok(sample)
    }

    /// The losses of a batch that goes by the loop, where they are to be compared.
    fn together(&mut self, batch: &M::Batch) -> Result<Option<Together>> {
        let samples = batch.len();
        let watch = &mut self.loop_watched;
        if watch.is_new(samples) || watch.is_due(samples, EVERY_BATCHES * samples) {
            return self.alone.together(batch);
        }
        Ok(None)
    }

    fn one(
        &mut self,
        batch: &M::Batch,
        index: usize,
        id: &str,
        together: Option<&Together>,
        task: &str,
        into: &mut impl GradientSink,
    ) -> Result<Outcome> {
        let sample = self.of(batch, index, id)?;
        check_kind(into, sample.kind)?;
        let counted = sample.gradients.samples()[0].clone();
        if let Some(together) = together {
            let (loss, tokens) = (sample.loss, counted.tokens());
            self.alone.agree(batch, index, together, loss, tokens)?;
        }
        let taken = if sample.loss.is_finite() {
            into.push_batch(task, sample.gradients)
        } else {
            // Gradients of a loss that is no number are none of it, also where they are finite.
            Err(CoreError::NonFinite {
                sample: id.to_owned(),
                parameter: not_finite(&sample.gradients)?.unwrap_or("loss").into(),
            })
        };
        let loss = match taken {
            Ok(()) => Some(sample.loss),
            Err(CoreError::NonFinite { parameter, .. })
                if self.config.non_finite == NonFinite::Skip =>
            {
                tracing::warn!(id, parameter, "gradient not finite, sample skipped");
                into.skip(task, &counted, &parameter)?;
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Outcome {
            id: id.to_owned(),
            tokens: counted.tokens(),
            loss,
            unreached: sample.unreached,
        })
    }

    /// The batch by a trace; `None` when the loop has to do it.
    fn captured(&mut self, batch: &M::Batch, ids: &[String]) -> Result<Option<Captured>> {
        let Some((tracer, _)) = &self.by_trace else {
            return Ok(None);
        };
        let captured = match tracer.capture(batch, ids) {
            // The loop tells which samples it could take before.
            Err(Error::Core(CoreError::NoActiveTokens { .. })) => return Ok(None),
            Err(Error::Untraced { reason }) if self.config.engine == Engine::Auto => {
                tracing::warn!(
                    reason,
                    "the model cannot be traced: it goes by the loop, which is slow"
                );
                self.by_trace = None;
                return Ok(None);
            }
            // It compares all losses of its first batch.
            Err(Error::Mixed { operation }) if self.config.engine == Engine::Auto => {
                tracing::warn!(
                    operation,
                    "a sum over all samples goes into this operation: if that is no sample's own, \
                     their losses depend on each other; it goes by the loop, which is slow"
                );
                self.by_trace = None;
                return Ok(None);
            }
            captured => captured?,
        };
        if !captured.left.is_empty() {
            self.leave_to_the_loop(&captured.left)?;
            return self.captured(batch, ids);
        }
        if !captured.finite {
            tracing::debug!("a gradient is not finite: the batch goes by the loop");
            return Ok(None);
        }
        let watch = &mut self.batches_watched;
        let together = captured.together();
        let new = watch.is_new(captured.shape());
        if new {
            // Nothing but rounding is left of the gradients of what is learnt to the last digit.
            let largest = together.largest(0.0);
            let tells = |&at: &usize| {
                let (loss, tokens) = (together.losses[at], together.tokens[at]);
                captured.rounding.tells(loss, tokens, largest)
            };
            let shortest = all_shortest(&together.tokens);
            let telling: Vec<usize> = shortest.into_iter().filter(tells).collect();
            let (first, last) = (telling.first(), telling.last());
            let ends = first
                .into_iter()
                .chain(last.filter(|last| Some(*last) != first));
            for &at in ends {
                self.compare(batch, &captured, &together, at)?;
            }
            if telling.is_empty() {
                self.batches_watched.forget(captured.shape());
            }
        } else if watch.is_due(captured.samples().len(), EVERY) {
            let shortest = watch.shortest(&together.tokens);
            self.alone.compare(batch, shortest, &together)?;
        }
        self.rest(batch, captured)
    }

    /// Add the gradients of parameters that traces do not cover, and compare losses, which are at hand
    /// then; `None` when one is not finite, or when they are too many to be held for a whole batch.
    fn rest(&mut self, batch: &M::Batch, mut captured: Captured) -> Result<Option<Captured>> {
        if self.left.is_empty() {
            return Ok(Some(captured));
        }
        if self.left_elements * captured.samples().len() > HELD {
            tracing::warn!(
                "the loop takes all parameters: those left to it are too many to hold for a batch"
            );
            self.by_trace = None;
            return Ok(None);
        }
        let Some((_, Some(by_loop))) = &self.by_trace else {
            return Ok(Some(captured));
        };
        let together = captured.together();
        let mut rows: BTreeMap<&String, Vec<Tensor<2>>> = BTreeMap::new();
        for (index, sample) in captured.samples().iter().enumerate() {
            let sample = by_loop.of(batch, index, sample.id().into())?;
            let tokens = sample.gradients.samples()[0].tokens();
            self.alone
                .agree(batch, index, &together, sample.loss, tokens)?;
            for path in self.left.keys() {
                let gradient = sample.gradients.get(path).map(SampleGradient::to_full);
                rows.entry(path).or_default().extend(gradient);
            }
        }
        let mut probes = Vec::new();
        for (path, rows) in rows {
            let gradient = Tensor::cat(rows, 0);
            probes.push(gradient.clone().cast(DType::F32).sum());
            captured
                .gradients
                .insert(path.clone(), SampleGradient::full(gradient));
        }
        let finite = read(Tensor::cat(probes, 0))?
            .iter()
            .all(|sum| sum.is_finite());
        Ok(finite.then_some(captured))
    }

    fn leave_to_the_loop(&mut self, left: &BTreeMap<String, String>) -> Result<()> {
        self.left.extend(left.clone());
        let list = self
            .left
            .iter()
            .map(|(path, reason)| format!("{path} ({reason})"));
        let parameters = list.collect::<Vec<_>>().join(", ");
        if self.config.engine == Engine::Trace {
            return Err(Error::LeftToTheLoop { parameters });
        }
        tracing::warn!(
            parameters,
            "the loop gives the gradients of these, which is slow"
        );
        let model = self.by_loop.model();
        let rest = self
            .paths
            .iter()
            .filter(|path| !self.left.contains_key(*path));
        let rest: Vec<&str> = rest.map(String::as_str).collect();
        let catalogue = Catalogue::of(model)?;
        let elements = |path: &String| catalogue.get(path).map_or(0, |p| p.elements());
        self.left_elements = self.left.keys().map(elements).sum();
        self.by_trace = None;
        if !rest.is_empty() {
            let left = self.left.keys().map(String::as_str);
            let by_loop = PerSample::new(model, left)?;
            self.by_trace = Some((Tracer::new(model, rest)?, Some(by_loop)));
        }
        Ok(())
    }

    /// A pass over the batch against the loop, on one sample.
    fn compare(
        &mut self,
        batch: &M::Batch,
        captured: &Captured,
        together: &Together,
        at: usize,
    ) -> Result<()> {
        let id = captured.samples()[at].id();
        let sample = self.by_loop.of(batch, at, id.into())?;
        let tokens = sample.gradients.samples()[0].tokens();
        if tokens != together.tokens[at] {
            return Err(Error::TokensDisagree {
                sample: id.into(),
                together: together.tokens[at],
                alone: tokens,
            });
        }
        // Not by squares, which leave float32's range sooner; of an element, or large parameters
        // would hide small ones.
        let size = |tensor: Tensor<2>| at_least_single(tensor).abs().mean().cast(DType::F32);
        let mut distances = Vec::new();
        let pairs = captured.gradients.iter();
        let pairs: Vec<(&str, &SampleGradient, &SampleGradient)> = pairs
            .filter_map(|(path, found)| Some((path, found, sample.gradients.get(path)?)))
            .collect();
        for (_, found, expected) in &pairs {
            let expected = at_least_single(expected.to_full());
            let distance = at_least_single(found.sample(at).to_full()) - expected.clone();
            distances.extend([size(distance), size(expected)]);
        }
        let distances = if distances.is_empty() {
            Vec::new()
        } else {
            read(Tensor::cat(distances, 0))?
        };
        let all = distances.chunks(2).map(|pair| pair[1]).fold(0.0, f64::max);
        let largest = together.largest(sample.loss);
        let rounding = captured.rounding.at_loss(sample.loss, tokens, largest);
        for ((path, found, _), pair) in pairs.iter().zip(distances.chunks(2)) {
            let (distance, norm) = (pair[0], pair[1]);
            // What was not seen at all is no rounding. And so that NaN does not agree.
            let bound = if matches!(found, SampleGradient::Zero { .. }) {
                0.0
            } else {
                rounding.of_gradient(norm, all)
            };
            let agrees = distance <= bound;
            if !agrees {
                return Err(Error::Disagree {
                    parameter: (*path).to_owned(),
                    sample: id.into(),
                    distance,
                    norm,
                });
            }
        }
        self.alone.agree(batch, at, together, sample.loss, tokens)
    }
}

fn check_kind(into: &impl GradientSink, found: FisherKind) -> Result<()> {
    match into.refuses(found) {
        Some(expected) => Err(Error::LossKind { expected, found }),
        None => Ok(()),
    }
}

/// The first parameter whose gradient is not finite.
fn not_finite(gradients: &GradientBatch) -> Result<Option<&str>> {
    for (path, gradient) in gradients.iter() {
        let sum = read(at_least_single(gradient.to_full()).sum())?;
        if !sum.iter().all(|sum| sum.is_finite()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
