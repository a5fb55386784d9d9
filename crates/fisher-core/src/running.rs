//! Statistics whose weights move while they are accumulated.

use burn::tensor::{DType, Device};

use crate::gradient::ContributionUnit;
use crate::moments::Welford;
use crate::provenance::Steps;
use crate::statistics::{ParameterStatistics, Statistics, TaskStatistics};

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
        tasks.for_each(|task| task.samples.at_step(step));
        self
    }

    /// The statistics on another device, to go on or to merge them with others there: as pairs of
    /// float32 on one that has no float64 (twice float32's digits, in its range), and in float64 on
    /// one that has it, unless they were configured to be compensated. Both say the same number.
    #[must_use]
    pub fn to_device(mut self, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        if self.device == device {
            return self;
        }
        let dtype = self.plan.dtype(&device);
        let tasks = std::mem::take(&mut self.tasks).into_iter();
        let moved = tasks.map(|(name, task)| (name, task.on(&device, dtype)));
        self.tasks = moved.collect();
        self.device = device;
        self
    }
}

impl TaskStatistics {
    /// All accumulators on `device`, in float64 or in pairs of float32.
    pub(crate) fn on(mut self, device: &Device, dtype: DType) -> Self {
        for welford in self.accumulators_mut() {
            *welford = welford.on(device, dtype);
        }
        self
    }

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
