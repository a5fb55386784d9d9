//! A batch that was begun and not committed.

use std::collections::BTreeMap;

use crate::gradient::SampleGradient;
use crate::sample::Sample;

/// A batch that was begun and not committed: nothing of it is in an accumulator.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) task: String,
    pub(super) samples: Vec<Sample>,
    pub(super) gradients: BTreeMap<String, SampleGradient>,
}

impl Pending {
    pub(super) fn new(task: &str, samples: &[Sample]) -> Self {
        Self {
            task: task.into(),
            samples: samples.to_vec(),
            gradients: BTreeMap::new(),
        }
    }
}
