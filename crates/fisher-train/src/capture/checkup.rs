//! What a check of a model and a batch found, and how it is said.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::unbounded;

/// What [`check`](fn@super::check) found. `Display` says it in words, with what to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkup {
    /// Samples of the batch.
    pub samples: usize,
    /// Parameters of the model.
    pub parameters: usize,
    /// In which form one pass over a batch gives the gradients of each parameter.
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
            if self.underflow > 0.01 {
                "; on a device without float64 they count as 0: scale the loss"
            } else {
                ""
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

/// Paths by what is said of them.
fn by_value(paths: &BTreeMap<String, String>) -> BTreeMap<&str, Vec<&str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, value) in paths {
        groups.entry(value).or_default().push(path);
    }
    groups
}

impl Difference {
    pub(super) fn none() -> Self {
        Self {
            relative: 0.0,
            sample: String::new(),
            what: String::new(),
        }
    }

    pub(super) fn raise(&mut self, relative: f64, sample: &str, what: &str) {
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
