//! Whether a model and its batches are fit for per-sample gradients.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use burn::module::{ModuleVisitor, Param};
use burn::tensor::Tensor;
use fisher_core::Catalogue;
use serde::{Deserialize, Serialize};

use super::alone::Alone;
use super::per_sample::PerSample;
use crate::batch::{SampleBatch, SampleLoss};
use crate::error::{Error, Result};
use crate::gradients::ratio;
use crate::precision::{at_least_single, unbounded};
use crate::read::read;
use crate::trace::Tracer;

/// What [`check`] found. `Display` says it in words, with what to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkup {
    /// Samples of the batch.
    pub samples: usize,
    /// Parameters of the model.
    pub parameters: usize,
    /// How the gradients of each parameter are had from one pass over a batch.
    pub traced: BTreeMap<String, String>,
    /// Why the loop has to give those of others.
    pub by_loop: BTreeMap<String, String>,
    /// Why the batch cannot be traced at all.
    pub untraced: Option<String>,
    /// The first operation that takes a sum over the samples together with samples: their losses depend on each other.
    pub mixed: Option<String>,
    /// Parameters that no sample's loss depends on: their Fisher is 0.
    pub unreached: Vec<String>,
    /// Samples with another number of active tokens in the batch than alone.
    pub tokens: Vec<String>,
    /// The largest difference between a gradient by a trace and by the loop, relative to its norm (or
    /// to a small share of the norm of all, if that is more); `None` where there is no trace.
    pub engines: Option<Difference>,
    /// The largest difference between the loss of a sample in the batch and by itself, relative.
    pub batch: Difference,
    /// Relative differences up to here are rounding, in the coarsest type that losses, gradients and
    /// inputs of layers are computed in.
    pub rounding: f64,
    /// The share of gradient elements other than 0 whose square is 0 or denormal in float32.
    pub underflow: f64,
    /// The same for float16.
    pub underflow_half: f64,
    /// Batch norms that train: their batch statistics are replaced by the running ones.
    pub batch_norms: Vec<String>,
    /// Samples whose loss or gradient is NaN or infinite.
    pub not_finite: Vec<String>,
}

/// The largest difference of its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Relative; ∞ where one is NaN or infinite, which JSON has as `null`.
    #[serde(with = "unbounded")]
    pub relative: f64,
    /// The sample it was found in.
    pub sample: String,
    /// The parameter, or `loss`.
    pub what: String,
}

impl Checkup {
    /// Whether nothing was found that makes numbers wrong.
    pub fn is_sound(&self) -> bool {
        let close = |difference: &Difference| difference.relative <= self.rounding;
        let agree = close(&self.batch) && self.engines.as_ref().is_none_or(close);
        agree && self.mixed.is_none() && self.not_finite.is_empty() && self.tokens.is_empty()
    }

    /// Whether one pass a batch is enough.
    pub fn is_fast(&self) -> bool {
        self.by_loop.is_empty()
    }
}

impl fmt::Display for Checkup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.is_sound(), self.is_fast()) {
            (true, true) => "fit: one pass a batch gives every gradient, and agrees with the loop",
            (true, false) => "fit, but slow: the loop has to help",
            (false, _) => "NOT fit: see below",
        };
        writeln!(
            f,
            "{} samples, {} parameters: {verdict}",
            self.samples, self.parameters
        )?;
        if let Some(Difference {
            relative,
            sample,
            what,
        }) = &self.engines
        {
            let judged = if *relative <= self.rounding {
                "agree"
            } else {
                "DISAGREE: does `SampleBatch::sample` give that very sample?"
            };
            writeln!(
                f,
                "  engines: trace and loop {judged} (at most {relative:.1e}, `{what}` of `{sample}`)"
            )?;
        }
        for (way, paths) in by_value(&self.traced) {
            writeln!(f, "  {way}: {}", paths.join(", "))?;
        }
        if let Some(reason) = &self.untraced {
            writeln!(
                f,
                "  all by the loop, since the batch cannot be traced: {reason}\n    A forward pass that reads values \
                 (`into_data`, `into_scalar`) or branches on them cannot; nor one that makes tensors on a device it \
                 remembers: take that of a tensor of the batch."
            )?;
        } else if let Some(operation) = &self.mixed {
            writeln!(
                f,
                "  SAMPLES SEEM TO DEPEND ON EACH OTHER: a sum over all of them goes into {operation}\n    (if that \
                 is a sum of each sample's own, by segments, write it as a sum over an axis; the loop is right)"
            )?;
        } else {
            for (reason, paths) in by_value(&self.by_loop) {
                writeln!(f, "  by the loop, since {reason}: {}", paths.join(", "))?;
            }
        }
        if !self.unreached.is_empty() {
            let list = self.unreached.join(", ");
            writeln!(f, "  no loss depends on {list}: their Fisher is 0")?;
        }
        if !self.tokens.is_empty() {
            let list = self.tokens.join(", ");
            writeln!(
                f,
                "  ACTIVE TOKENS DIFFER between the batch and the sample alone: {list}; see \
                 `SampleBatch::sample`"
            )?;
        }
        let Difference {
            relative, sample, ..
        } = &self.batch;
        let judged = if *relative <= self.rounding {
            "do not depend on the batch"
        } else {
            "DEPEND ON THE BATCH: what else is in it must not matter (masks? norms?)"
        };
        writeln!(f, "  losses {judged} (at most {relative:.1e}, `{sample}`)")?;
        writeln!(
            f,
            "  squares below float32's range: {:.2} % of gradients that are not 0; below float16's: {:.2} %{}",
            100.0 * self.underflow,
            100.0 * self.underflow_half,
            match self.underflow > 0.01 {
                true => "; on a device without float64 they count as 0: scale the loss",
                false => "",
            }
        )?;
        if !self.batch_norms.is_empty() {
            let list = self.batch_norms.join(", ");
            writeln!(
                f,
                "  batch norms in training: {list}; collection uses their running statistics"
            )?;
        }
        if !self.not_finite.is_empty() {
            let list = self.not_finite.join(", ");
            writeln!(
                f,
                "  NaN or infinite: {list}; leave them out or use `NonFinite::Skip`"
            )?;
        }
        Ok(())
    }
}

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
    let ids = batch.ids();
    if ids.len() < 2 {
        return Err(Error::OneSample);
    }
    let by_loop = PerSample::new(model, paths())?;
    let (mut untraced, mut mixed) = (None, None);
    let captured = match Tracer::new(model, paths())?.capture(batch) {
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
    let together = match &captured {
        Some(captured) => captured.together(),
        None => Alone::new(model).losses(batch)?,
    };
    let factors = captured.as_ref().map(|captured| &captured.factors);
    let ways = factors.into_iter().flatten();
    let ways = ways.filter_map(|(path, f)| Some((path.clone(), f.as_ref()?.way())));
    let untraced_paths = || {
        let reason = untraced
            .as_deref()
            .unwrap_or("samples seem to depend on each other");
        let paths = paths().map(|path| (path.to_owned(), reason.to_owned()));
        paths.collect()
    };

    let mut norms = Norms::default();
    model.visit(&mut norms);
    let mut checkup = Checkup {
        samples: ids.len(),
        parameters: catalogue.parameters().len(),
        traced: ways.collect(),
        by_loop: captured
            .as_ref()
            .map_or_else(untraced_paths, |c| c.left.clone()),
        engines: None,
        untraced: None,
        mixed: None,
        batch: Difference::none(),
        rounding: together.rounding.relative,
        underflow: 0.0,
        underflow_half: 0.0,
        unreached: Vec::new(),
        tokens: Vec::new(),
        batch_norms: norms.found,
        not_finite: Vec::new(),
    };
    let mut engines = Difference::none();
    let mut unreached: Option<BTreeSet<String>> = None;
    let mut counts = Counts::default();
    for (index, id) in ids.iter().enumerate() {
        let sample = by_loop.of(batch, index, id.clone())?;
        let tokens = sample.gradients.samples()[0].tokens();
        let (found, largest) = (together.losses[index], together.largest(sample.loss));
        let rounding = together.rounding;
        let off = rounding.of_loss(found, sample.loss, tokens, largest);
        checkup.batch.raise(off, id, "loss");
        let bounds = rounding.at_loss(sample.loss, tokens, largest);
        if together.tokens[index] != tokens {
            checkup.tokens.push(id.clone());
        }
        let missed = sample.unreached.iter().cloned().collect();
        unreached = Some(match unreached {
            Some(before) => &before & &missed,
            None => missed,
        });
        let mut finite = sample.loss.is_finite();
        let mut distances = Vec::new();
        for path in paths() {
            let Some(expected) = sample.gradients.get(path) else {
                continue;
            };
            // On the host, in float64: squares would leave float32's range.
            let values = flat(expected.tensor().clone())?;
            finite &= values.iter().all(|value| value.is_finite());
            counts.add(&values);
            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
            if let Some(factors) = factors.and_then(|factors| factors.get(path)) {
                let distance = match factors {
                    Some(factors) => {
                        let found = flat(factors.sample(index).whole())?;
                        let pairs = found.iter().zip(&values);
                        pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
                    }
                    // What was not seen at all is no rounding.
                    None if norm > 0.0 => f64::INFINITY,
                    None => 0.0,
                };
                distances.push((path, distance, norm));
            }
        }
        let all = distances.iter().map(|d| d.2).fold(0.0, f64::max);
        for (path, distance, norm) in distances {
            let off = ratio(distance, bounds.of_gradient(norm, all));
            engines.raise(off * rounding.relative, id, path);
        }
        if !finite {
            checkup.not_finite.push(id.clone());
        }
    }
    checkup.engines = factors.is_some_and(|f| !f.is_empty()).then_some(engines);
    (checkup.untraced, checkup.mixed) = (untraced, mixed);
    checkup.unreached = unreached.into_iter().flatten().collect();
    [checkup.underflow, checkup.underflow_half] = counts.shares();
    Ok(checkup)
}

fn flat(gradient: Tensor<2>) -> Result<Vec<f64>> {
    let [rows, columns] = gradient.dims();
    Ok(read(at_least_single(gradient).reshape([rows * columns]))?)
}

/// Paths by what is said of them.
fn by_value(paths: &BTreeMap<String, String>) -> BTreeMap<&str, Vec<&str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, value) in paths {
        groups.entry(value).or_default().push(path);
    }
    groups
}

impl Difference {
    fn none() -> Self {
        Self {
            relative: 0.0,
            sample: String::new(),
            what: String::new(),
        }
    }

    fn raise(&mut self, relative: f64, sample: &str, what: &str) {
        if relative > self.relative || relative.is_nan() || self.sample.is_empty() {
            *self = Self {
                relative: if relative.is_nan() {
                    f64::INFINITY
                } else {
                    relative
                },
                sample: sample.into(),
                what: what.into(),
            };
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
#[derive(Default)]
struct Norms {
    path: Vec<String>,
    found: Vec<String>,
}

impl ModuleVisitor for Norms {
    fn enter_module(&mut self, name: &str, container: &str) {
        // The container is what the name is a field of.
        let path = self.path.join(".");
        if container.contains("BatchNorm") && !self.found.contains(&path) {
            self.found.push(path);
        }
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {}
}
