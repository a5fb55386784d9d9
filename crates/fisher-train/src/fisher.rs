//! The elementwise Fisher of a task, by parameter: what optimizer, penalty and merge divide by.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use fisher_core::{Catalogue, ContributionUnit, Statistics};

use crate::{Error, Result};

/// Flattened F by path, for every trainable parameter in `catalogue`.
pub(crate) fn elementwise<C: ContributionUnit>(
    statistics: &Statistics<C>,
    task: &str,
    catalogue: &Catalogue,
) -> Result<BTreeMap<String, Tensor<1>>> {
    let of_task = statistics.task(task)?;
    let fisher = catalogue.parameters().iter().map(|parameter| {
        let missing = || Error::NoFisher {
            parameter: parameter.path().into(),
        };
        let statistics = of_task.parameter(parameter.path()).map_err(|_| missing())?;
        let welford = statistics.elementwise().ok_or_else(missing)?;
        let mean = welford
            .mean()
            .ok_or_else(|| fisher_metrics::Error::NoSamples { task: task.into() })?;
        if mean.dims()[0] != parameter.elements() {
            return Err(Error::Metrics(fisher_metrics::Error::Sizes {
                key: parameter.path().into(),
                ours: parameter.elements(),
                theirs: mean.dims()[0],
            }));
        }
        Ok((parameter.path().to_owned(), mean))
    });
    fisher.collect()
}
