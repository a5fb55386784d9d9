//! Statistics whose weights move while they are accumulated.

use burn::tensor::Device;

use crate::gradient::ContributionUnit;
use crate::provenance::Steps;
use crate::statistics::{ParameterStatistics, Statistics, TaskStatistics};
use crate::welford::Welford;

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
        let samples = self.tasks.values_mut().flat_map(|task| &mut task.samples);
        samples.for_each(|sample| sample.step = Some(step));
        self
    }

    /// The statistics on another device of the same kind, to merge them with others there.
    #[must_use]
    pub fn to_device(mut self, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        if self.device == device {
            return self;
        }
        for task in self.tasks.values_mut() {
            for welford in task.accumulators_mut() {
                *welford = welford.to_device(&device);
            }
        }
        self.device = device;
        self
    }
}

impl TaskStatistics {
    fn accumulators_mut(&mut self) -> impl Iterator<Item = &mut Welford> {
        let parameters = self.parameters.values_mut();
        let parameters = parameters.flat_map(ParameterStatistics::accumulators_mut);
        [&mut self.layers, &mut self.heads]
            .into_iter()
            .chain(parameters)
    }
}

impl ParameterStatistics {
    fn accumulators_mut(&mut self) -> impl Iterator<Item = &mut Welford> {
        let groups = self.groups.iter_mut().map(|(_, welford)| welford);
        self.elementwise.iter_mut().chain(groups)
    }
}
