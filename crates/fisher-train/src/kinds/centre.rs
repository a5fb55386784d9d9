//! Gradients with their mean taken off.

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;

use burn::tensor::{Device, Tensor};
use fisher_core::Error as CoreError;
use fisher_core::gradient::{
    ContributionUnit, GradientBatch, GradientSink, SampleGradient, at_least_single,
};
use fisher_core::kind::FisherKind;
use fisher_core::sample::Sample;
use fisher_core::statistics::Statistics;

use crate::error::{Error, Result};

/// The mean gradient of a task's samples in the unit `C`: `ū = (1/n) Σ_i g_i / √T_i`
/// ([`PerToken`](fisher_core::gradient::PerToken)), or `(1/n) Σ_i g_i` ([`Raw`](fisher_core::gradient::Raw)). What the
/// [centred](FisherKind::Centred) Fisher is about.
///
/// Had by [`Collector::mean_gradient`](crate::collect::Collector::mean_gradient), given to
/// [`Collector::collect_centred`](crate::collect::Collector::collect_centred). Two passes over the data, since `F − ū ⊙ ū` would leave
/// no digit where gradients hardly vary, and since only deviations of single samples have error bars.
#[derive(Debug, Clone)]
pub struct MeanGradient<C: ContributionUnit> {
    task: String,
    samples: HashSet<String>,
    /// `Σ_i g_i / √T_i` by parameter; none where it is 0.
    sums: BTreeMap<String, Tensor<1>>,
    unit: PhantomData<C>,
}

impl<C: ContributionUnit> MeanGradient<C> {
    pub(crate) fn new(task: &str) -> Self {
        Self {
            task: task.into(),
            samples: HashSet::new(),
            sums: BTreeMap::new(),
            unit: PhantomData,
        }
    }

    /// The number of samples, `n`.
    pub fn count(&self) -> usize {
        self.samples.len()
    }

    /// `ū` of the parameter at `path`, flattened; `None` where no sample has a gradient of it.
    pub fn get(&self, path: &str) -> Option<Tensor<1>> {
        let sum = self.sums.get(path)?.clone();
        Some(sum.div_scalar(self.count().max(1) as f64))
    }

    /// # Errors
    /// [`Error::Fisher`] for a sample that is not one of the mean's.
    pub(crate) fn check(&self, task: &str, ids: impl IntoIterator<Item = String>) -> Result<()> {
        let mut ids = ids.into_iter();
        let what = match ids.find(|id| !self.samples.contains(id)) {
            _ if task != self.task => {
                format!(
                    "the mean gradient is of task `{}`, not of `{task}`",
                    self.task
                )
            }
            Some(id) => format!(
                "sample `{id}` is not one of the {} of the mean gradient",
                self.count()
            ),
            None => return Ok(()),
        };
        Err(Error::Fisher {
            kind: FisherKind::Centred,
            reason: format!("{what}; take the mean over the very samples that are collected"),
        })
    }
}

/// Fills a mean gradient with what statistics want.
#[derive(Debug)]
pub(crate) struct Means<'a, C: ContributionUnit> {
    of: &'a Statistics<C>,
    mean: MeanGradient<C>,
    pending: Option<GradientBatch>,
}

impl<'a, C: ContributionUnit> Means<'a, C> {
    pub(crate) fn new(of: &'a Statistics<C>, task: &str) -> Self {
        Self {
            of,
            mean: MeanGradient::new(task),
            pending: None,
        }
    }

    pub(crate) fn into_mean(self) -> MeanGradient<C> {
        self.mean
    }
}

impl<C: ContributionUnit> GradientSink for Means<'_, C> {
    fn wants(&self, path: &str) -> bool {
        self.of.wants(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        Some(FisherKind::Empirical).filter(|kind| *kind != found)
    }

    fn takes_from(&self) -> Option<&Device> {
        self.of.takes_from()
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        let twice = samples.iter().find(|s| self.mean.samples.contains(s.id()));
        if let Some(sample) = twice {
            return Err(CoreError::SampleTwice {
                task: task.into(),
                sample: sample.id().into(),
            });
        }
        self.pending = Some(GradientBatch::new(samples.to_vec()));
        Ok(())
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        let pending = self.pending.as_mut().ok_or(CoreError::NoBatch)?;
        if self.of.wants(path) {
            pending.insert(path, gradient);
        }
        Ok(())
    }

    /// # Errors
    /// [`CoreError::NonFinite`] for a gradient that is NaN or infinite.
    fn prepare(&mut self) -> fisher_core::Result<()> {
        let pending = self.pending.as_ref().ok_or(CoreError::NoBatch)?;
        pending.check_finite()
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        self.prepare()?;
        let batch = self.pending.take().ok_or(CoreError::NoBatch)?;
        let samples = batch.samples().to_vec();
        let rows: Vec<usize> = (0..samples.len()).collect();
        let weights = samples.iter().map(|sample| C::root(sample.tokens()));
        let weights: Vec<f64> = weights.collect();
        for (path, gradient) in batch {
            if !matches!(gradient, SampleGradient::Zero { .. }) {
                let before = self.mean.sums.remove(&path);
                let sum = gradient.add_to(before, &rows, &weights);
                self.mean.sums.insert(path, sum);
            }
        }
        let ids = samples.iter().map(|sample| sample.id().to_owned());
        self.mean.samples.extend(ids);
        Ok(())
    }

    fn forget(&mut self) {
        self.pending = None;
    }
}

/// Passes on gradients with the mean taken off: `g_i − √T_i ū`, all of them written out.
#[derive(Debug)]
pub(crate) struct Centred<'a, S, C: ContributionUnit> {
    into: &'a mut S,
    mean: &'a MeanGradient<C>,
    /// `√T_i` of the batch that was begun, or 1.
    roots: Vec<f64>,
}

impl<'a, S: GradientSink, C: ContributionUnit> Centred<'a, S, C> {
    pub(crate) fn new(into: &'a mut S, mean: &'a MeanGradient<C>) -> Self {
        let roots = Vec::new();
        Self { into, mean, roots }
    }
}

impl<S: GradientSink, C: ContributionUnit> GradientSink for Centred<'_, S, C> {
    fn wants(&self, path: &str) -> bool {
        self.into.wants(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        Some(FisherKind::Empirical).filter(|kind| *kind != found)
    }

    fn takes_from(&self) -> Option<&Device> {
        self.into.takes_from()
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        let roots = samples
            .iter()
            .map(|sample| C::root(sample.tokens()).recip());
        self.roots = roots.collect();
        self.into.begin(task, samples)
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        let Some(mean) = self.mean.get(path) else {
            return self.into.put(path, gradient);
        };
        let gradient = at_least_single(gradient.to_full());
        let options = (&gradient.device(), gradient.dtype());
        let roots = Tensor::<1>::from_data(&*self.roots, options);
        let roots = roots.reshape([self.roots.len(), 1]);
        let mean = mean.cast(gradient.dtype()).unsqueeze::<2>();
        let centred = gradient - roots * mean;
        self.into.put(path, SampleGradient::full(centred))
    }

    fn prepare(&mut self) -> fisher_core::Result<()> {
        self.into.prepare()
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        self.into.commit()
    }

    fn forget(&mut self) {
        self.into.forget();
    }

    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> fisher_core::Result<()> {
        self.into.skip(task, sample, parameter)
    }
}
