//! The noise scale of every task.

use std::collections::BTreeMap;

use fisher_core::Error as CoreError;
use fisher_core::gradient::{GradientSink, SampleGradient};
use fisher_core::sample::Sample;

use super::noise_scale::{GradientMoments, NoiseScale};
use crate::error::Result;

/// A sink for the samples of several tasks, each with moments of its own.
#[derive(Debug)]
pub(super) struct NoiseByTask {
    /// What the moments of a task begin as.
    empty: GradientMoments,
    moments: BTreeMap<String, GradientMoments>,
    /// The task of the batch that was begun.
    task: String,
}

impl NoiseByTask {
    pub(super) fn new(empty: GradientMoments) -> Self {
        Self {
            empty,
            moments: BTreeMap::new(),
            task: String::new(),
        }
    }

    /// The noise scale of one task.
    pub(super) fn of(&self, task: &str) -> Result<Option<NoiseScale>> {
        let moments = self.moments.get(task);
        moments.map_or(Ok(None), GradientMoments::read)
    }

    /// The noise scale over the samples of all tasks.
    pub(super) fn of_all(&self) -> Result<Option<NoiseScale>> {
        GradientMoments::pooled(&self.moments.values().collect::<Vec<_>>())
    }

    fn begun(&mut self) -> fisher_core::Result<&mut GradientMoments> {
        self.moments.get_mut(&self.task).ok_or(CoreError::NoBatch)
    }
}

impl GradientSink for NoiseByTask {
    fn wants(&self, _path: &str) -> bool {
        true
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        self.task = task.to_owned();
        let moments = self.moments.entry(self.task.clone());
        let moments = moments.or_insert_with(|| self.empty.clone());
        moments.begin(task, samples)
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        self.begun()?.put(path, gradient)
    }

    fn prepare(&mut self) -> fisher_core::Result<()> {
        self.begun()?.prepare()
    }

    fn forget(&mut self) {
        if let Some(moments) = self.moments.get_mut(&self.task) {
            moments.forget();
        }
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        self.begun()?.commit()
    }
}
