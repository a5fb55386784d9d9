//! What a small step for one task does to the loss of another: predicted, and measured.

use std::collections::BTreeMap;

use burn::config::Config;
use fisher_core::clusters::{cluster_numbers, clustered_mean};
use fisher_core::moments::IntervalMethod;
use fisher_core::read;
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::check_argument;
use fisher_metrics::weights::Weights;
use serde::{Deserialize, Serialize};

use crate::batch::SampleLoss;
use crate::capture::{CaptureConfig, deterministic};
use crate::error::{Error, Result};

/// Configuration of [`Transfer`].
#[derive(Config, Debug)]
pub struct TransferConfig {
    /// η: the step is `−η ḡ_A`, with `ḡ_A` the mean of the token-sum gradients of the samples of A. Small
    /// enough that the first order is what counts, large enough that losses change by more than
    /// rounding.
    pub step: f64,
    /// Level of the intervals.
    #[config(default = 0.95)]
    pub level: f64,
    /// Bytes of gradients to hold.
    #[config(default = 1073741824)]
    pub memory: usize,
}

/// Measures whether what helps task A costs task B: B's losses before and after a small step on A, sample
/// by sample, beside the first order, `−η ⟨ḡ_A, g_j⟩`.
///
/// Losses are of the model as it is evaluated (dropout off), summed over tokens.
#[derive(Debug, Clone)]
pub struct Transfer {
    config: TransferConfig,
}

/// A sample of B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transferred {
    /// Its id.
    pub id: String,
    /// `−η ⟨ḡ_A, g_j⟩`.
    pub predicted: f64,
    /// Its loss after the step less its loss before.
    pub measured: f64,
}

/// A mean over the samples of B, with its interval by Student's t; samples of a cluster count as one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanChange {
    /// The mean.
    pub mean: f64,
    /// Its standard error; `None` for fewer than two clusters.
    pub standard_error: Option<f64>,
    /// Its interval, likewise.
    pub interval: Option<[f64; 2]>,
}

/// What a step on A did to B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransferReport {
    /// η.
    pub step: f64,
    /// Mean change of the loss of A's own samples, measured: negative where the step helps A.
    pub own: MeanChange,
    /// Mean change of B's losses, predicted.
    pub predicted: MeanChange,
    /// Mean change of B's losses, measured: positive where the step costs B.
    pub measured: MeanChange,
    /// Measured less predicted, sample by sample: what the first order misses.
    pub missed: MeanChange,
    /// Every sample of B.
    pub samples: Vec<Transferred>,
}

impl TransferConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Argument`] when a number is out of range.
    pub fn init(&self) -> Result<Transfer> {
        let fits = self.step > 0.0 && self.step.is_finite();
        check_argument(fits, "step", "finite and above 0", self.step)?;
        let fits = self.level > 0.0 && self.level < 1.0;
        check_argument(fits, "level", "between 0 and 1", self.level)?;
        Ok(Transfer {
            config: self.clone(),
        })
    }
}

impl Transfer {
    /// Step on the samples of `a` and look at those of `b`. The model stays as it is.
    ///
    /// # Errors
    /// Those of [`Capture::accumulate`](crate::capture::Capture::accumulate) and of a store that is full,
    /// [`fisher_core::Error::NoSamples`] when a task has none, [`Error::BatchLosses`] when a task has not one loss for each
    /// sample, [`Error::MovedLoss`] for a loss that is not finite.
    pub fn forward<M: SampleLoss>(
        &self,
        model: &M,
        a: &[M::Batch],
        b: &[M::Batch],
    ) -> Result<TransferReport> {
        let mut store = GradientStoreConfig::new(self.config.memory).init(model)?;
        let paths: Vec<String> = store
            .catalogue()
            .parameters()
            .iter()
            .map(|p| p.path().into())
            .collect();
        let mut capture = CaptureConfig::new().init(model, paths.iter().map(String::as_str))?;
        for (task, batches) in [(A, a), (B, b)] {
            for batch in batches {
                capture.accumulate(batch, task, &mut store)?;
            }
            if store.samples(task).is_empty() {
                return Err(fisher_core::Error::NoSamples { task: task.into() }.into());
            }
        }
        let (moved, predicted) = self.step(model, &store)?;
        let [of_a, of_b] = [A, B].map(|task| store.samples(task));
        let change = |batches: &[M::Batch], samples: &[Sample]| -> Result<Vec<f64>> {
            let before = losses(model, batches, samples)?;
            let after = losses(&moved, batches, samples)?;
            let changes = after.iter().zip(before).zip(samples);
            changes
                .map(|((after, before), sample)| {
                    let change = after - before;
                    let wrong = || Error::MovedLoss {
                        sample: sample.id().into(),
                    };
                    change.is_finite().then_some(change).ok_or_else(wrong)
                })
                .collect()
        };
        let (own, measured) = (change(a, of_a)?, change(b, of_b)?);
        let missed: Vec<f64> = measured
            .iter()
            .zip(&predicted)
            .map(|(m, p)| m - p)
            .collect();
        let level = self.config.level;
        let samples = of_b.iter().zip(predicted.iter().zip(&measured));
        Ok(TransferReport {
            step: self.config.step,
            own: MeanChange::of(&own, of_a, level)?,
            predicted: MeanChange::of(&predicted, of_b, level)?,
            measured: MeanChange::of(&measured, of_b, level)?,
            missed: MeanChange::of(&missed, of_b, level)?,
            samples: samples
                .map(|(sample, (&predicted, &measured))| Transferred {
                    id: sample.id().into(),
                    predicted,
                    measured,
                })
                .collect(),
        })
    }

    /// The model after the step, and what it should do to each sample of B.
    fn step<M: SampleLoss>(&self, model: &M, store: &GradientStore) -> Result<(M, Vec<f64>)> {
        let weights = Weights::of(model)?;
        let counts = [A, B].map(|task| store.samples(task).len());
        let mut predicted = vec![0.0; counts[1]];
        let mut moved = BTreeMap::new();
        for parameter in store.catalogue().parameters() {
            let (path, elements) = (parameter.path(), parameter.elements());
            let mut mean = vec![0.0; elements];
            for i in 0..counts[0] {
                let row = store.row(A, i, path, 0..elements)?;
                let terms = mean.iter_mut().zip(&*row);
                terms.for_each(|(sum, &g)| *sum += f64::from(g) / counts[0] as f64);
            }
            for (j, change) in predicted.iter_mut().enumerate() {
                let row = store.row(B, j, path, 0..elements)?;
                let product: f64 = mean.iter().zip(&*row).map(|(m, &g)| m * f64::from(g)).sum();
                *change -= self.config.step * product;
            }
            let old = weights.get(path, elements)?.iter().zip(mean);
            let new = old.map(|(weight, g)| weight - self.config.step * g);
            moved.insert(path.to_owned(), new.collect());
        }
        Ok((Weights::from(moved).write(model.clone())?, predicted))
    }
}

/// Names of the tasks in the store that is made here.
const A: &str = "a";
const B: &str = "b";

/// The loss of every sample.
///
/// # Errors
/// [`Error::BatchLosses`] unless there is one for each.
fn losses<M: SampleLoss>(model: &M, batches: &[M::Batch], samples: &[Sample]) -> Result<Vec<f64>> {
    let model = deterministic(model, |_| false);
    let mut all = Vec::new();
    for batch in batches {
        all.extend(read(model.sample_losses(batch).sums().clone())?);
    }
    if all.len() != samples.len() {
        return Err(Error::BatchLosses {
            samples: samples.len(),
            found: all.len(),
        });
    }
    Ok(all)
}

impl MeanChange {
    fn of(values: &[f64], samples: &[Sample], level: f64) -> Result<Self> {
        let clusters = cluster_numbers(samples.iter().map(Sample::cluster));
        let estimate = clustered_mean(values, &clusters);
        let interval = estimate.interval(level, IntervalMethod::StudentT)?;
        Ok(Self {
            mean: estimate.mean,
            standard_error: estimate.standard_error,
            interval: interval.map(|of| [of.lower, of.upper]),
        })
    }
}
