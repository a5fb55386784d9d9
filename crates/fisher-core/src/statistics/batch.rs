//! A batch taken into statistics as a whole, or not at all.

use burn::tensor::Tensor;

use super::accumulators::Statistics;
use super::task::TaskStatistics;
use crate::error::{Error, Result, list};
use crate::gradient::{Contribution, ContributionUnit, GradientBatch};
use crate::grouping::BatchTotals;
use crate::sample::{Sample, Tokens};

impl<C: ContributionUnit> Statistics<C> {
    /// Take in a batch of samples of `task`, which begins to exist with its first batch.
    ///
    /// The gradients are squared per sample, reduced to groups and accumulated. Nothing is
    /// changed when an error is returned.
    ///
    /// # Errors
    /// [`Error::MissingParameter`], [`Error::UnknownParameter`], [`Error::ParameterTwice`] and
    /// [`Error::Shape`] when the gradients are not those of the statistics' parameters,
    /// [`Error::SampleTwice`] when a sample has been seen before or is twice in the batch,
    /// [`Error::NonFinite`] when a squared gradient is NaN or infinite, [`Error::Device`] when that
    /// cannot be read.
    pub fn push(&mut self, task: &str, batch: GradientBatch) -> Result<()> {
        self.check_whole()?;
        self.check(&batch)?;
        self.check_new(task, &batch.samples)?;
        if batch.samples.is_empty() {
            return Ok(());
        }
        let GradientBatch {
            samples, gradients, ..
        } = batch;
        let tokens = Tokens::of(&samples, &self.device);
        let dtype = self.plan.dtype(&self.device);
        let contributions: Vec<(String, Contribution<C>, Tensor<2>)> = gradients
            .into_iter()
            .map(|(path, gradient)| {
                let contribution = gradient.contribution_in::<C>(&tokens, dtype);
                let sums = contribution.tensor().clone().sum_dim(1);
                (path, contribution, sums)
            })
            .collect();
        check_finite(&samples, &contributions)?;

        let reduction = self.provenance.reduction;
        let (plan, device) = (&self.plan, &self.device);
        let task = self
            .tasks
            .entry(task.to_owned())
            .or_insert_with(|| TaskStatistics::new(plan, device));
        let mut totals = BatchTotals::new(&plan.totals);
        for (path, contribution, sums) in contributions {
            totals.add(&plan.totals, &path, &contribution, sums);
            let Some(statistics) = task.parameters.get_mut(&path) else {
                continue; // `check` has seen that the paths are the plan's
            };
            for (grouping, welford) in &mut statistics.groups {
                let reduced = grouping.reduce(&contribution, reduction);
                welford.push_batch(reduced.tensor().clone());
            }
            if let Some(welford) = &mut statistics.elementwise {
                welford.push_batch(contribution.tensor().clone());
            }
        }
        let (layers, heads) = totals.finish();
        for (welford, sums) in [(&mut task.layers, layers), (&mut task.heads, heads)] {
            if let Some(sums) = sums {
                welford.push_batch(sums);
            }
        }
        for sample in &samples {
            task.samples.push(sample.into());
        }
        Ok(())
    }

    fn check(&self, batch: &GradientBatch) -> Result<()> {
        batch.check_once()?;
        for (path, gradient) in &batch.gradients {
            let Some(plan) = self.plan.parameters.get(path) else {
                return Err(Error::UnknownParameter {
                    parameter: path.clone(),
                    known: list(self.plan.parameters.keys()),
                });
            };
            self.check_device(path, &gradient.tensor().device())?;
            let expected = [batch.samples.len(), plan.shape.iter().product()];
            let found = gradient.tensor().dims();
            if expected != found {
                return Err(Error::Shape {
                    parameter: path.clone(),
                    expected: format!("[samples, elements] = {expected:?}"),
                    found: format!("{found:?}"),
                });
            }
        }
        let mut paths = self.plan.parameters.keys();
        match paths.find(|path| !batch.gradients.contains_key(*path)) {
            Some(path) => Err(Error::MissingParameter {
                parameter: path.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// The sums are read in one transfer; one that is not finite names its sample and parameter.
fn check_finite<C: ContributionUnit>(
    samples: &[Sample],
    contributions: &[(String, Contribution<C>, Tensor<2>)],
) -> Result<()> {
    let sums = contributions.iter().map(|(_, _, sums)| sums.clone());
    let sums = Tensor::cat(sums.collect(), 1).try_into_data();
    let sums = sums.map_err(|e| Error::Device {
        reason: e.to_string(),
    })?;
    let infinite = sums.iter::<f64>().position(|sum| !sum.is_finite());
    match infinite {
        Some(at) => Err(Error::NonFinite {
            sample: samples[at / contributions.len()].id().into(),
            parameter: contributions[at % contributions.len()].0.clone(),
        }),
        None => Ok(()),
    }
}
