//! A batch that was begun and not committed.

use std::collections::BTreeMap;

use super::writer::{Reduced, Writer};
use crate::gradient::SampleGradient;
use crate::sample::Sample;

/// A batch that was begun and not committed: nothing of it is in an accumulator.
#[derive(Debug, Clone)]
pub(super) struct Pending<C> {
    pub(super) task: String,
    pub(super) samples: Vec<Sample>,
    pub(super) gradients: BTreeMap<String, SampleGradient>,
    /// What the gradients come to, once they all are there.
    pub(super) prepared: Option<Prepared<C>>,
}

/// A batch of which only what changes accumulators is left to do.
#[derive(Debug, Clone)]
pub(super) struct Prepared<C> {
    pub(super) writer: Writer<C>,
    /// By path.
    pub(super) reduced: Vec<(String, Reduced)>,
}

impl<C> Pending<C> {
    pub(super) fn new(task: &str, samples: &[Sample]) -> Self {
        Self {
            task: task.into(),
            samples: samples.to_vec(),
            gradients: BTreeMap::new(),
            prepared: None,
        }
    }
}
