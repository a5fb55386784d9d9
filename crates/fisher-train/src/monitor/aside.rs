//! What a capture wants of gradients besides their squares.

use std::collections::{BTreeMap, BTreeSet};

use fisher_core::{GradientBatch, Sample};

use super::cosine::{AcrossTasks, Kept};
use super::noise_scale::{GradientMoments, NoiseScale};
use crate::error::Result;
use crate::gradients::Factors;

/// Fed by the engines beside statistics and store: a batch is begun, its parameters come one by
/// one, and it is ended.
#[derive(Debug)]
pub(crate) struct Aside {
    /// What the moments of a task begin as.
    empty: Option<GradientMoments>,
    moments: BTreeMap<String, GradientMoments>,
    kept: Option<Kept>,
}

impl Aside {
    /// `compared` are the parameters whose gradients are compared across tasks.
    pub(crate) fn new(empty: Option<GradientMoments>, compared: Option<BTreeSet<String>>) -> Self {
        Self {
            empty,
            moments: BTreeMap::new(),
            kept: compared.map(Kept::new),
        }
    }

    pub(crate) fn begin(&mut self, task: &str, samples: &[Sample]) {
        if let Some(empty) = &self.empty {
            let moments = self.moments.entry(task.to_owned());
            moments.or_insert_with(|| empty.clone());
        }
        if let Some(kept) = &mut self.kept {
            kept.begin(task, samples);
        }
    }

    /// One parameter of the batch.
    pub(crate) fn take(&mut self, task: &str, samples: &[Sample], path: &str, factors: &Factors) {
        if let Some(moments) = self.moments.get_mut(task) {
            moments.take(samples, path, factors);
        }
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.wants(path)) {
            kept.take(task, path, factors.whole());
        }
    }

    pub(crate) fn end(&mut self, task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        match self.moments.get_mut(task) {
            Some(moments) => moments.end(samples),
            None => Ok(()),
        }
    }

    /// A batch that is there whole.
    pub(crate) fn push(&mut self, task: &str, batch: &GradientBatch) -> fisher_core::Result<()> {
        self.begin(task, batch.samples());
        for (path, gradient) in batch.iter() {
            let factors = Factors::Vector(gradient.tensor().clone());
            self.take(task, batch.samples(), path, &factors);
        }
        self.end(task, batch.samples())
    }

    /// The noise scale of one task.
    pub(crate) fn noise_of(&self, task: &str) -> Result<Option<NoiseScale>> {
        match self.moments.get(task) {
            Some(moments) => moments.read(),
            None => Ok(None),
        }
    }

    /// The noise scale over the samples of all tasks.
    pub(crate) fn noise(&self) -> Result<Option<NoiseScale>> {
        GradientMoments::pooled(&self.moments.values().collect::<Vec<_>>())
    }

    pub(crate) fn across(&self) -> Result<Option<AcrossTasks>> {
        self.kept.as_ref().map_or(Ok(None), Kept::read)
    }
}
