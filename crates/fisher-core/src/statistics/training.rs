//! Statistics whose weights move while they are accumulated.

use super::accumulators::Statistics;
use crate::gradient::ContributionUnit;
use crate::provenance::Steps;

impl<C: ContributionUnit> Statistics<C> {
    /// These statistics, of the weights after `step` batches, as a part of a whole run of training
    /// that began with weights of the hash `origin`.
    ///
    /// Parts of one run [merge](Statistics::merge). A sample may come again at another step: it is
    /// known by its id and step, and counts each time, so error bars take for independent what
    /// neighbouring steps share. What needs the Fisher of one model (merging of models, elastic
    /// weight consolidation) refuses such statistics: their weights are many.
    #[must_use]
    pub fn during_training(mut self, origin: &str, step: u64) -> Self {
        self.provenance.model = format!("training from {origin}");
        let one = Steps {
            first: step,
            last: step,
        };
        self.provenance.steps = (!self.tasks.is_empty()).then_some(one);
        let tasks = self.tasks.values_mut();
        tasks.for_each(|task| {
            task.samples.at_step(step);
            // Totals of every sample would grow with the training, and be of other weights each.
            task.rows.give_up();
        });
        self
    }
}
