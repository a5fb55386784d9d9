//! The elementwise Fisher of a task, by parameter: what optimizer, penalty and merge divide by.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor};
use fisher_core::gradient::ContributionUnit;
use fisher_core::model::Catalogue;
use fisher_core::moments::accumulation_dtype;
use fisher_core::statistics::{ParameterStatistics, Statistics};
use fisher_metrics::Error as MetricsError;
use fisher_metrics::growth::Growth;

use crate::error::{Error, Result};

/// F of every element of a parameter.
#[derive(Debug, Clone)]
pub(crate) struct Diagonal {
    /// Of the parameter.
    pub(crate) shape: Vec<usize>,
    /// Flattened.
    pub(crate) fisher: Tensor<1>,
}

impl Diagonal {
    /// F where it is used: on `device`, as precise as that can be.
    pub(crate) fn on(&self, device: &Device) -> Tensor<1> {
        move_to(self.fisher.clone(), device)
    }
}

/// F by path, for every trainable parameter in `catalogue`.
pub(crate) fn elementwise<C: ContributionUnit>(
    statistics: &Statistics<C>,
    task: &str,
    catalogue: &Catalogue,
    growth: Growth,
) -> Result<BTreeMap<String, Diagonal>> {
    let fisher = catalogue.parameters().iter().map(|parameter| {
        let path = parameter.path();
        let (found, shape) = measured(statistics, task, path)?;
        let welford = found.elementwise().ok_or_else(|| Error::no_fisher(path))?;
        let mean = welford.mean();
        let mean = mean.ok_or_else(|| MetricsError::no_samples(task))?;
        growth.check(path, shape, parameter.shape())?;
        check_finite("F", path, mean.clone())?;
        let fisher = Diagonal {
            shape: shape.to_vec(),
            fisher: mean,
        };
        Ok((path.to_owned(), fisher))
    });
    fisher.collect()
}

/// What statistics have of the parameter at `path`, and its shape there.
pub(crate) fn measured<'a, C: ContributionUnit>(
    statistics: &'a Statistics<C>,
    task: &str,
    path: &str,
) -> Result<(&'a ParameterStatistics, &'a [usize])> {
    let found = statistics.task(task)?.parameter(path).ok();
    let found = found.zip(statistics.shape(path));
    found.ok_or_else(|| Error::no_fisher(path))
}

pub(crate) fn check_finite(what: &'static str, path: &str, values: Tensor<1>) -> Result<()> {
    let finite = values.is_finite().all().try_into_data();
    let finite = finite.map_err(fisher_core::Error::device)?;
    if finite.iter::<bool>().all(|finite| finite) {
        return Ok(());
    }
    Err(MetricsError::not_finite(what, path).into())
}

/// A copy on another device, in float32 where that has no float64.
pub(crate) fn move_to(tensor: Tensor<1>, device: &Device) -> Tensor<1> {
    let device = device.clone().without_autodiff();
    if tensor.device() == device {
        return tensor;
    }
    let dtype = match accumulation_dtype(&device) {
        DType::F64 => tensor.dtype(),
        other => other,
    };
    tensor.cast(dtype).to_device(&device)
}
