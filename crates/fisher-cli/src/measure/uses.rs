//! What a Fisher is for: gradients divided by it, models merged by it.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use fisher_core::statistics::Statistics;
use fisher_core::store::GradientStore;

use super::args::AnalysisArgs;
use super::measured::{Measured, key};
use super::merge::{MERGED, Merged, fisher, merge};
use super::outcome::Result;
use super::values::Scale;
use crate::models::Checkpoint;
use crate::say::say;

/// What was made of the Fisher.
#[derive(Debug, Default)]
pub struct Uses {
    /// The model merged with another.
    pub merged: Option<Merged>,
}

/// Do what `analysis` asks for; a merged model goes to its folder in `out`.
///
/// # Errors
/// When a parameter has no Fisher element by element, or a folder cannot be read or written.
pub fn uses(
    analysis: &AnalysisArgs,
    checkpoint: &Checkpoint,
    tasks: &[Measured],
    statistics: &Statistics,
    out: &Path,
) -> Result<Uses> {
    let mut uses = Uses::default();
    if let (Some(second), [a, b]) = (&analysis.merge_with, tasks) {
        let folder = out.join(MERGED);
        let merged = merge(
            checkpoint,
            second,
            [&a.name, &b.name],
            statistics,
            analysis.merge_run.as_deref(),
            analysis.merge_scale.into(),
            &folder,
        )?;
        say!("The merged model is in {}.", folder.display());
        uses.merged = Some(merged);
    }
    Ok(uses)
}

/// The first gradient of `task` in the parameter at `path`, divided.
///
/// # Errors
/// When F or the gradient is not there.
pub(super) fn divided(
    scale: &Scale,
    statistics: &Statistics,
    store: &GradientStore,
    task: &Measured,
    path: &str,
) -> Result<Vec<f64>> {
    let sample = task.ids.first().map(key).unwrap_or_default();
    let host = Device::flex();
    let tensor = |values: Vec<f64>| {
        let shape = [values.len()];
        Tensor::<1>::from_data(TensorData::new(values, shape), (&host, DType::F64))
    };
    let gradient = store.gradient(&task.name, &sample, path)?;
    let gradient = tensor(gradient.iter().map(|&g| g.into()).collect());
    let fisher = tensor(fisher(statistics, &task.name, path)?);
    let scaled = scale.config.init()?.forward(gradient, fisher);
    let data = scaled.try_into_data();
    let data = data.map_err(|e| format!("the device did not give {path}: {e}"))?;
    Ok(data.iter().collect())
}
