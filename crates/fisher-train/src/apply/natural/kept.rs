//! Gradients that are looked at more than once.

use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::kind::FisherKind;
use fisher_core::sample::Sample;
use fisher_core::{Error, Result};

/// Keeps gradients in the form in which they come.
#[derive(Default)]
pub(super) struct Kept {
    kind: Option<FisherKind>,
    pending: Option<GradientBatch>,
    pub(super) batches: Vec<GradientBatch>,
}

impl Kept {
    pub(super) fn of(kind: FisherKind) -> Self {
        Self {
            kind: Some(kind),
            ..Self::default()
        }
    }
}

impl GradientSink for Kept {
    fn wants(&self, _path: &str) -> bool {
        true
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        self.kind.filter(|kind| *kind != found)
    }

    fn begin(&mut self, _task: &str, samples: &[Sample]) -> Result<()> {
        self.pending = Some(GradientBatch::new(samples.to_vec()));
        Ok(())
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        let pending = self.pending.as_mut().ok_or(Error::NoBatch)?;
        pending.insert(path, gradient);
        Ok(())
    }

    fn prepare(&mut self) -> Result<()> {
        self.pending.as_ref().ok_or(Error::NoBatch)?.check_finite()
    }

    fn commit(&mut self) -> Result<()> {
        self.prepare()?;
        self.batches.extend(self.pending.take());
        Ok(())
    }

    fn forget(&mut self) {
        self.pending = None;
    }
}
