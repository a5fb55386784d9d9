//! The mean of what goes into matrices, read off gradients that are products with it.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor};
use fisher_core::Error as CoreError;
use fisher_core::gradient::{GradientSink, SampleGradient, at_least_single};
use fisher_core::model::Orientation;
use fisher_core::read;
use fisher_core::sample::Sample;

use crate::error::{Error, Result};

/// Sums of inputs over positions that the losses depend on, and how many these are.
pub(super) struct InputMeans {
    /// Which side of a matrix is its input.
    orientations: BTreeMap<String, Orientation>,
    sums: BTreeMap<String, (Vec<f64>, f64)>,
    /// A matrix whose input was not found.
    missing: Option<String>,
}

impl InputMeans {
    pub(super) fn new(orientations: BTreeMap<String, Orientation>) -> Self {
        Self {
            orientations,
            sums: BTreeMap::new(),
            missing: None,
        }
    }

    /// By path.
    pub(super) fn finish(self) -> Result<BTreeMap<String, Vec<f64>>> {
        let unseen = self.orientations.into_keys();
        let mut unseen =
            unseen.filter(|path| self.sums.get(path).is_none_or(|(_, count)| *count == 0.0));
        if let Some(parameter) = self.missing.or_else(|| unseen.next()) {
            return Err(Error::NoMean {
                parameter,
                reason: "its gradient came in another form than a product with what goes into the matrix, or not \
                         at all (batches need two samples, and a model that can be traced)"
                    .into(),
            });
        }
        let mean = |(path, (sums, count)): (String, (Vec<f64>, f64))| {
            (path, sums.into_iter().map(|sum| sum / count).collect())
        };
        Ok(self.sums.into_iter().map(mean).collect())
    }
}

impl GradientSink for InputMeans {
    fn wants(&self, path: &str) -> bool {
        self.orientations.contains_key(path)
    }

    fn begin(&mut self, _task: &str, _samples: &[Sample]) -> fisher_core::Result<()> {
        Ok(())
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        let (input, delta) = match (self.orientations.get(path), gradient) {
            (Some(Orientation::InputOutput), SampleGradient::Outer { left, right }) => {
                (left, right)
            }
            (Some(Orientation::OutputInput), SampleGradient::Outer { left, right }) => {
                (right, left)
            }
            _ => {
                self.missing.get_or_insert_with(|| path.to_owned());
                return Ok(());
            }
        };
        let [input, delta] = [input, delta].map(at_least_single);
        let width = input.dims()[2];
        let active = delta
            .max_abs_dim(2)
            .not_equal_scalar(0.0)
            .float()
            .cast(input.dtype());
        let sums = (input * active.clone())
            .sum_dim(1)
            .sum_dim(0)
            .reshape([width]);
        let count = active.sum().reshape([1]);
        let numbers = read(Tensor::cat(vec![sums, count], 0).cast(DType::F32))?;
        let (count, sums) = numbers.split_last().ok_or(CoreError::NoBatch)?;
        let (all, counted) = self
            .sums
            .entry(path.to_owned())
            .or_insert_with(|| (vec![0.0; width], 0.0));
        all.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
        *counted += count;
        Ok(())
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        Ok(())
    }
}
