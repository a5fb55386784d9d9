//! The factors of a task.

use std::collections::BTreeMap;

use super::block::Block;
use super::second::Second;
use crate::error::{Error, Result, list};
use crate::sample::{SampleRecord, Seen};

/// The factors of every parameter over the samples of a task.
#[derive(Debug, Clone, Default)]
pub struct TaskFactors {
    pub(super) samples: Seen,
    pub(super) count: u64,
    pub(super) blocks: BTreeMap<String, Block>,
}

impl TaskFactors {
    /// Samples counted: those that were not skipped.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The samples in the order they came, with those that were skipped.
    pub fn samples(&self) -> &[SampleRecord] {
        self.samples.records()
    }

    /// Every parameter's sums, by path.
    pub fn blocks(&self) -> impl Iterator<Item = (&str, &Block)> {
        self.blocks.iter().map(|(path, block)| (&**path, block))
    }

    /// *A* and *S* of the parameter at `path`, of its first axis and of all others.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when it has no factors.
    pub fn factors(&self, path: &str) -> Result<[Second; 2]> {
        let block = self.blocks.get(path);
        let block = block.ok_or_else(|| Error::UnknownParameter {
            parameter: path.into(),
            known: list(self.blocks.keys()),
        })?;
        Ok(block.factors(self.count))
    }
}
