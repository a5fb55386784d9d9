//! A batch under several labellings, counted as one contribution a sample.

use std::collections::{HashMap, HashSet};

use fisher_core::Error as CoreError;
use fisher_core::gradient::{ContributionUnit, GradientBatch, GradientSink, SampleGradient};
use fisher_core::kind::FisherKind;
use fisher_core::read;
use fisher_core::sample::Sample;
use fisher_core::statistics::{Mixed, Mixture, SampleTraces, Statistics};

use super::fisher::Fisher;
use super::spread::Spread;
use super::tokens::{Token, Tokens, tokens_of};
use crate::batch::{SampleLoss, SampleMapper, clustered};
use crate::capture::{Capture, NonFinite, Outcome};
use crate::error::{Error, Result};
use crate::gradients::HELD;
use crate::predictions::{Active, Predictions};
use fisher_core::gradient::at_least_single;

/// How many of `samples` samples are taken together, where all of their gradients are written out: all or one, since no
/// engine takes a part of a batch at once.
pub(crate) fn held<C: ContributionUnit>(statistics: &Statistics<C>, samples: usize) -> usize {
    let shapes = statistics.paths().filter_map(|path| statistics.shape(path));
    let elements: usize = shapes.map(|shape| shape.iter().product::<usize>()).sum();
    if elements.saturating_mul(samples) > HELD {
        1
    } else {
        samples.max(1)
    }
}

/// A batch whose labels are replaced, round by round.
pub(crate) struct Rounds<'a, M: SampleLoss> {
    batch: &'a M::Batch,
    ids: &'a [String],
    samples: Vec<Sample>,
    /// By the labels of the data.
    losses: Vec<f64>,
    predictions: Predictions,
    plan: Plan<'a>,
}

/// What is to be done with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) fisher: Fisher,
    pub(crate) task: &'a str,
    pub(crate) non_finite: NonFinite,
}

impl<'a, M: SampleLoss> Rounds<'a, M> {
    /// # Errors
    /// [`Error::NoPredictions`], those of [`SampleLosses::samples`](crate::losses::SampleLosses::samples).
    pub(crate) fn new(
        capture: &Capture<M>,
        batch: &'a M::Batch,
        ids: &'a [String],
        plan: Plan<'a>,
    ) -> Result<Self> {
        let losses = capture.losses(batch);
        let samples = losses.samples(ids)?.into_iter().enumerate();
        let samples = samples.map(|(index, sample)| clustered(batch, index, sample));
        Ok(Self {
            batch,
            ids,
            samples: samples.collect(),
            predictions: losses.predictions()?,
            losses: read(at_least_single(losses.sums().clone().inner()))?,
            plan,
        })
    }

    /// Every active token of the batch.
    pub(crate) fn all_tokens(&self) -> Vec<Token> {
        tokens_of(&self.predictions, self.ids)
    }

    /// Contributions over several labellings of some samples: few enough at a time to hold their gradients.
    pub(crate) fn mixed<C: ContributionUnit>(
        &self,
        capture: &mut Capture<M>,
        chosen: &[(usize, String)],
        into: &mut Statistics<C>,
        spread: &mut Option<(Spread, bool)>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        let chosen = self.finite(chosen, into, outcomes)?;
        for chosen in chosen.chunks(held(into, chosen.len())) {
            let samples = chosen.iter().map(|(index, _)| self.samples[*index].clone());
            let mut mixture = Mixture::new(into, samples.collect());
            match self.plan.fisher {
                Fisher::MonteCarlo { draws, seed } => {
                    let draws = [draws as u64, seed];
                    self.draw(capture, chosen, &mut mixture, draws, spread)?;
                }
                _ => self.enumerate(capture, chosen, &mut mixture)?,
            }
            let mixed = mixture.into_batch();
            self.push(mixed, into, outcomes)?;
        }
        Ok(())
    }

    fn draw<C: ContributionUnit>(
        &self,
        capture: &mut Capture<M>,
        chosen: &[(usize, String)],
        mixture: &mut Mixture<C>,
        [draws, seed]: [u64; 2],
        spread: &mut Option<(Spread, bool)>,
    ) -> Result<()> {
        let weights = vec![1.0 / draws as f64; chosen.len()];
        let mut traces: Vec<SampleTraces> = Vec::new();
        for draw in 0..draws {
            let labels = self.predictions.draw(seed, self.ids, draw);
            let batch = SampleMapper::replace(self.batch, labels)?;
            capture.run(&batch, chosen, self.plan.task, mixture, &mut Vec::new())?;
            if spread.is_some() {
                traces.push(mixture.traces()?);
            }
            mixture.end_round(&weights)?;
        }
        let Some((spread, compare)) = spread else {
            return Ok(());
        };
        let data = if *compare {
            mixture.expect(FisherKind::Empirical);
            capture.run(self.batch, chosen, self.plan.task, mixture, &mut Vec::new())?;
            let traces = mixture.traces()?;
            mixture.end_round(&vec![0.0; chosen.len()])?;
            Some(traces)
        } else {
            None
        };
        let samples = chosen.iter().map(|(index, _)| &self.samples[*index]);
        let samples: Vec<&Sample> = samples.collect();
        spread.add(&samples, &traces, data.as_ref());
        Ok(())
    }

    fn enumerate<C: ContributionUnit>(
        &self,
        capture: &mut Capture<M>,
        chosen: &[(usize, String)],
        mixture: &mut Mixture<C>,
    ) -> Result<()> {
        let kind = FisherKind::Exact;
        let classes = self.predictions.classes().ok_or_else(|| Error::Fisher {
            kind,
            reason: "the losses are of no classes to go through; draw targets instead \
                     (`Fisher::MonteCarlo`)"
                .into(),
        })?;
        let active = self.active();
        for number in 0..self.longest(chosen, &active) {
            for class in 0..classes {
                let label = class as i64;
                let cells = active.iter().map(|of| Active {
                    label,
                    ..*of.get(number).unwrap_or(&of[0])
                });
                let cells: Vec<Active> = cells.collect();
                let weights = chosen
                    .iter()
                    .map(|(index, _)| match active[*index].get(number) {
                        Some(cell) => self.predictions.probability(*index, cell.position, class),
                        None => 0.0,
                    });
                let weights: Vec<f64> = weights.collect();
                if weights.iter().all(|weight| *weight == 0.0) {
                    continue;
                }
                let labels = self.predictions.only(&cells, kind);
                let batch = SampleMapper::replace(self.batch, labels)?;
                capture.run(&batch, chosen, self.plan.task, mixture, &mut Vec::new())?;
                mixture.end_round(&weights)?;
            }
        }
        Ok(())
    }

    /// Some active tokens of the batch, each as a sample.
    pub(crate) fn tokens(
        &self,
        capture: &mut Capture<M>,
        fresh: &HashSet<&str>,
        into: &mut impl GradientSink,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        if self.predictions.classes().is_none() {
            return Err(Error::Fisher {
                kind: FisherKind::TokenLevel,
                reason: "the losses are of no tokens; collect them as they are".into(),
            });
        }
        let active = self.active();
        let all = self.all_tokens();
        for number in 0..active.iter().map(Vec::len).max().unwrap_or(0) {
            let now = all.iter().filter(|token| token.number == number);
            let now = now.filter(|token| fresh.contains(&*token.id));
            let mut of_sample = HashMap::new();
            for token in now {
                let sample = &self.samples[token.index];
                of_sample.insert(sample.id().to_owned(), token.sample(sample)?);
            }
            if of_sample.is_empty() {
                continue;
            }
            let cells = active.iter().map(|of| *of.get(number).unwrap_or(&of[0]));
            let cells: Vec<Active> = cells.collect();
            let labels = self.predictions.only(&cells, FisherKind::TokenLevel);
            let batch = SampleMapper::replace(self.batch, labels)?;
            let batch_of: Vec<(usize, String)> = self.ids.iter().cloned().enumerate().collect();
            let mut sink = Tokens::new(into, of_sample);
            let mut of_round = Vec::new();
            capture.run(&batch, &batch_of, self.plan.task, &mut sink, &mut of_round)?;
            let of_tokens = of_round.into_iter().filter_map(|outcome| {
                let id = sink.tokens.get(&outcome.id)?.id().to_owned();
                Some(Outcome { id, ..outcome })
            });
            outcomes.extend(of_tokens);
        }
        Ok(())
    }

    /// The active positions of every sample of the batch: one at least.
    fn active(&self) -> Vec<Vec<Active>> {
        let samples = 0..self.samples.len();
        samples
            .map(|index| self.predictions.active(index))
            .collect()
    }

    fn longest(&self, chosen: &[(usize, String)], active: &[Vec<Active>]) -> usize {
        let counts = chosen.iter().map(|(index, _)| active[*index].len());
        counts.max().unwrap_or(0)
    }

    /// The samples whose predictions are numbers; others are an error, or skipped.
    fn finite<C: ContributionUnit>(
        &self,
        chosen: &[(usize, String)],
        into: &mut Statistics<C>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Vec<(usize, String)>> {
        let mut kept = Vec::new();
        for (index, id) in chosen {
            if self.predictions.is_finite(*index) && self.losses[*index].is_finite() {
                kept.push((*index, id.clone()));
                continue;
            }
            let sample = &self.samples[*index];
            self.skip(sample, "loss", into, outcomes)?;
        }
        Ok(kept)
    }

    /// # Errors
    /// [`CoreError::NonFinite`] where nothing is to be skipped.
    fn skip<C: ContributionUnit>(
        &self,
        sample: &Sample,
        parameter: &str,
        into: &mut Statistics<C>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        if self.plan.non_finite == NonFinite::Error {
            return Err(Error::Core(CoreError::NonFinite {
                sample: sample.id().into(),
                parameter: parameter.into(),
            }));
        }
        tracing::warn!(id = sample.id(), parameter, "not finite, sample skipped");
        into.skip(self.plan.task, sample, parameter)?;
        outcomes.push(Outcome {
            id: sample.id().into(),
            tokens: sample.tokens(),
            loss: None,
            unreached: Vec::new(),
        });
        Ok(())
    }

    fn push<C: ContributionUnit>(
        &self,
        mixed: Mixed,
        into: &mut Statistics<C>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        let Mixed { batch, skipped } = mixed;
        for (sample, parameter) in skipped {
            self.skip(&sample, &parameter, into, outcomes)?;
        }
        let zero = |(_, gradient): &(&str, &SampleGradient)| {
            matches!(gradient, SampleGradient::Zero { .. })
        };
        let unreached = batch.iter().filter(zero);
        let unreached: Vec<String> = unreached.map(|(path, _)| path.to_owned()).collect();
        let outcome = |sample: &Sample| {
            let at = self.ids.iter().position(|id| id == sample.id());
            Outcome {
                id: sample.id().into(),
                tokens: sample.tokens(),
                loss: at.map(|at| self.losses[at]),
                unreached: unreached.clone(),
            }
        };
        if batch.samples().is_empty() {
            return Ok(());
        }
        match into.push(self.plan.task, batch.clone()) {
            Ok(()) => outcomes.extend(batch.samples().iter().map(outcome)),
            // Squares that left float32's range: one by one, to tell whose.
            Err(CoreError::NonFinite { .. }) if self.plan.non_finite == NonFinite::Skip => {
                for (row, sample) in batch.samples().iter().enumerate() {
                    let mut one = GradientBatch::new(vec![sample.clone()]);
                    for (path, gradient) in batch.iter() {
                        one.insert(path, gradient.sample(row));
                    }
                    match into.push(self.plan.task, one) {
                        Ok(()) => outcomes.push(outcome(sample)),
                        Err(CoreError::NonFinite { parameter, .. }) => {
                            self.skip(sample, &parameter, into, outcomes)?;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
