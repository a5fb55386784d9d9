//! Made-up gradients with a known truth.

use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::conflicts::{ConflictReport, ConflictsConfig};
use fisher_tests::backend::Backend;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

pub(crate) fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

/// Settings without a progress bar.
pub(crate) fn quiet() -> ConflictsConfig {
    ConflictsConfig::new().with_progress(false)
}

/// Random numbers.
pub(crate) struct Noise(ChaCha8Rng);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn uniform(&mut self) -> f32 {
        self.0.random()
    }

    pub(crate) fn normal(&mut self) -> f32 {
        let (u, v) = (self.uniform(), self.uniform());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// Samples of two tasks, `a` and `b`, over `slices` parameters of `elements` each.
pub(crate) struct Made {
    pub(crate) counts: [usize; 2],
    pub(crate) slices: usize,
    pub(crate) elements: usize,
    /// Active tokens by task and sample.
    pub(crate) tokens: fn(usize, usize) -> u64,
    /// Samples of a cluster, by task; 1 for none.
    pub(crate) cluster: usize,
}

impl Made {
    pub(crate) fn new(counts: [usize; 2], slices: usize, elements: usize) -> Self {
        Self {
            counts,
            slices,
            elements,
            tokens: |_, i| 1 + i as u64 % 3,
            cluster: 1,
        }
    }

    /// The store: `gradient(task, sample, slice)`, slice after slice, task after task.
    pub(crate) fn store(
        &self,
        mut gradient: impl FnMut(usize, usize, usize) -> Vec<f32>,
    ) -> GradientStore {
        let parameter = |i: usize| {
            let shape = [self.elements];
            Parameter::new(name(i), shape, Role::Vector, Orientation::InputOutput)
        };
        let catalogue = Catalogue::new((0..self.slices).map(parameter).collect());
        let config = GradientStoreConfig::new(1 << 28);
        let store = config.init_for(&catalogue.expect("parameters"), "made".into());
        let mut store = store.expect("a store").with_device(&flex());
        for (task, count) in self.counts.into_iter().enumerate() {
            let sample = |i: usize| {
                let sample = Sample::new(format!("{i}"), (self.tokens)(task, i)).expect("tokens");
                match self.cluster {
                    1 => sample,
                    size => sample.with_cluster(format!("{task}:{}", i / size)),
                }
            };
            let mut batch = GradientBatch::new((0..count).map(sample).collect());
            for slice in 0..self.slices {
                let rows = (0..count).flat_map(|i| gradient(task, i, slice));
                let rows: Vec<f32> = rows.collect();
                let tensor = Tensor::<1>::from_floats(rows.as_slice(), &flex());
                let tensor = tensor.reshape([count, self.elements]);
                batch.insert(name(slice), Gradient::token_sum(tensor));
            }
            store.push(["a", "b"][task], &batch).expect("gradients");
        }
        store
    }

    /// The report on gradients of normal noise around `mean(task, sample, slice)`, which is on the first
    /// element.
    pub(crate) fn shifted(
        &self,
        config: ConflictsConfig,
        seed: u64,
        mean: impl Fn(usize, usize, usize) -> f32,
    ) -> ConflictReport {
        let mut noise = Noise::new(seed);
        let elements = self.elements;
        report(
            config,
            &self.store(|task, i, slice| {
                let mut row = noise.normals(elements);
                row[0] += mean(task, i, slice);
                row
            }),
        )
    }
}

/// The name of a parameter.
pub(crate) fn name(slice: usize) -> String {
    format!("p{slice:02}")
}

/// Tasks `a` and `b` of a store.
pub(crate) fn report(config: ConflictsConfig, store: &GradientStore) -> ConflictReport {
    let conflicts = config.init().expect("settings");
    conflicts.forward(store, ["a", "b"]).expect("a report")
}
