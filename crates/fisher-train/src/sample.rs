//! What a model and its batches say about samples.

use burn::module::Module;

use crate::losses::SampleLosses;

/// A batch that can name its samples and give each of them by itself.
pub trait SampleBatch {
    /// The samples' ids, in order. Free text; unique within a task, so that shards can be merged
    /// and pairs of samples reported by name.
    fn ids(&self) -> Vec<String>;

    /// The batch that holds only the sample at `index`, which is less than the number of ids.
    #[must_use]
    fn sample(&self, index: usize) -> Self;
}

/// A model that gives the loss of each sample of a batch.
///
/// The losses must not mix samples: what sample `i` loses may not depend on which others are in
/// the batch, nor on how many (a batch norm in training mode would do that; collection turns it off).
/// Collection compares some with those of [`SampleBatch::sample`] alone: see [`Capture`](crate::Capture).
pub trait SampleLoss: Module {
    /// The batches that the model takes.
    type Batch: SampleBatch;

    /// The loss and the active tokens of every sample, in the order of the batch's ids.
    fn sample_losses(&self, batch: &Self::Batch) -> SampleLosses;
}
