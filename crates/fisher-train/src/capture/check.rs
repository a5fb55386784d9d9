//! Whether a model and its batches are fit for per-sample gradients.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use fisher_core::gradient::{GradientBatch, SampleGradient};
use fisher_core::model::{Catalogue, places};
use fisher_core::read;

use super::alone::Alone;
use super::checkup::{Checkup, Difference};
use super::per_sample::{LoopGradient, PerSample};
use crate::batch::{SampleLoss, ids};
use crate::error::{Error, Result};
use crate::gradients::{Captured, Together, form, ratio};
use crate::trace::Tracer;
use fisher_core::gradient::at_least_single;

/// Try a batch on a model in every way, sample by sample, and say what is wrong and what is slow.
///
/// Costs a loop over the batch: give it a few samples, of different lengths if there are such.
///
/// # Errors
/// [`Error::OneSample`] for a batch of fewer than two samples, which cannot show whether they mix, and
/// those of [`PerSample::gradient`].
pub fn check<M: SampleLoss>(model: &M, batch: &M::Batch) -> Result<Checkup> {
    let catalogue = Catalogue::of(model)?;
    let paths = || catalogue.parameters().iter().map(|p| p.path());
    let ids = ids(batch, 0);
    if ids.len() < 2 {
        return Err(Error::OneSample);
    }
    let by_loop = PerSample::new(model, paths())?;
    let attempt = Attempt::of(&Tracer::new(model, paths())?, batch, &ids)?;
    let together = match &attempt.captured {
        Some(captured) => captured.together(),
        None => Alone::new(model).losses(batch)?,
    };
    let mut comparison = Comparison {
        together: &together,
        traced: attempt.captured.as_ref().map(|c| &c.gradients),
        engines: Difference::none(),
        unreached: None,
        counts: Counts::default(),
        checkup: Checkup {
            samples: ids.len(),
            parameters: catalogue.parameters().len(),
            traced: attempt.ways(),
            by_loop: attempt.by_loop(paths()),
            engines: None,
            untraced: attempt.untraced.clone(),
            mixed: attempt.mixed.clone(),
            batch: Difference::none(),
            rounding: together.rounding.relative,
            underflow: 0.0,
            underflow_half: 0.0,
            unreached: Vec::new(),
            tokens: Vec::new(),
            batch_norms: norms(model),
            not_finite: Vec::new(),
        },
    };
    for (index, id) in ids.iter().enumerate() {
        let sample = by_loop.of(batch, index, id.clone())?;
        comparison.take(index, id, &sample, paths())?;
    }
    Ok(comparison.finish())
}

/// A batch by a trace, or why it cannot be.
struct Attempt {
    captured: Option<Captured>,
    untraced: Option<String>,
    mixed: Option<String>,
}

impl Attempt {
    fn of<M: SampleLoss>(tracer: &Tracer<M>, batch: &M::Batch, ids: &[String]) -> Result<Self> {
        let (mut untraced, mut mixed) = (None, None);
        let captured = match tracer.capture(batch, ids) {
            Ok(captured) => Some(captured),
            Err(Error::Untraced { reason }) => {
                untraced = Some(reason);
                None
            }
            Err(Error::Mixed { operation }) => {
                mixed = Some(operation);
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            captured,
            untraced,
            mixed,
        })
    }

    /// In which form the gradients of each parameter come.
    fn ways(&self) -> BTreeMap<String, String> {
        let gradients = self.captured.iter().flat_map(|c| c.gradients.iter());
        let ways = gradients.filter_map(|(path, gradient)| Some((path.into(), form(gradient)?)));
        ways.collect()
    }

    /// Why the loop has to give those of others.
    fn by_loop<'a>(&self, paths: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
        if let Some(captured) = &self.captured {
            return captured.left.clone();
        }
        let reason = self.untraced.as_deref();
        let reason = reason.unwrap_or("samples seem to depend on each other");
        let paths = paths.map(|path| (path.to_owned(), reason.to_owned()));
        paths.collect()
    }
}

/// Samples of a batch against the same by the loop.
struct Comparison<'a> {
    together: &'a Together,
    traced: Option<&'a GradientBatch>,
    engines: Difference,
    unreached: Option<BTreeSet<String>>,
    counts: Counts,
    checkup: Checkup,
}

impl Comparison<'_> {
    fn take<'a>(
        &mut self,
        index: usize,
        id: &str,
        sample: &LoopGradient,
        paths: impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        let (together, checkup) = (self.together, &mut self.checkup);
        let tokens = sample.gradients.samples()[0].tokens();
        let (found, largest) = (together.losses[index], together.largest(sample.loss));
        let rounding = together.rounding;
        let off = rounding.of_loss(found, sample.loss, tokens, largest);
        checkup.batch.raise(off, id, "loss");
        if together.tokens[index] != tokens {
            checkup.tokens.push(id.to_owned());
        }
        let missed = sample.unreached.iter().cloned().collect();
        self.unreached = Some(match self.unreached.take() {
            Some(before) => &before & &missed,
            None => missed,
        });
        let mut finite = sample.loss.is_finite();
        let mut distances = Vec::new();
        for path in paths {
            let Some(expected) = sample.gradients.get(path) else {
                continue;
            };
            // On the host, in float64: squares would leave float32's range.
            let values = read(at_least_single(expected.to_full()))?;
            finite &= values.iter().all(|value| value.is_finite());
            self.counts.add(&values);
            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
            if let Some(traced) = self.traced.and_then(|traced| traced.get(path)) {
                let distance = match traced {
                    // What was not seen at all is no rounding.
                    SampleGradient::Zero { .. } if norm > 0.0 => f64::INFINITY,
                    SampleGradient::Zero { .. } => 0.0,
                    traced => {
                        let found = read(at_least_single(traced.sample(index).to_full()))?;
                        let pairs = found.iter().zip(&values);
                        pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
                    }
                };
                distances.push((path, distance, norm));
            }
        }
        if !finite {
            checkup.not_finite.push(id.to_owned());
        }
        let bounds = rounding.at_loss(sample.loss, tokens, largest);
        let all = distances.iter().map(|d| d.2).fold(0.0, f64::max);
        for (path, distance, norm) in distances {
            let off = ratio(distance, bounds.of_gradient(norm, all));
            self.engines.raise(off * rounding.relative, id, path);
        }
        Ok(())
    }

    fn finish(self) -> Checkup {
        let compared = self
            .traced
            .is_some_and(|traced| traced.iter().next().is_some());
        let [underflow, underflow_half] = self.counts.shares();
        Checkup {
            engines: compared.then_some(self.engines),
            unreached: self.unreached.into_iter().flatten().collect(),
            underflow,
            underflow_half,
            ..self.checkup
        }
    }
}

/// Gradient elements that are not 0, and those whose square is too small.
#[derive(Default)]
struct Counts {
    all: u64,
    single: u64,
    half: u64,
}

impl Counts {
    fn add(&mut self, gradients: &[f64]) {
        for square in gradients.iter().filter(|g| **g != 0.0).map(|g| g * g) {
            self.all += 1;
            self.single += u64::from(square < f64::from(f32::MIN_POSITIVE));
            // The smallest number of float16 that is not denormal is 2⁻¹⁴.
            self.half += u64::from(square < 2f64.powi(-14));
        }
    }

    fn shares(&self) -> [f64; 2] {
        [self.single, self.half].map(|count| count as f64 / self.all.max(1) as f64)
    }
}

/// Paths of batch norms.
fn norms<M: Module>(model: &M) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for place in places(model) {
        let names: Vec<&str> = place.path.split('.').collect();
        // A container is what the name is a field of.
        for (at, container) in place.containers.iter().enumerate() {
            let path = names[..at].join(".");
            if container.contains("BatchNorm") && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}
