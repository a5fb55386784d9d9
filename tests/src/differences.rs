//! Per-sample gradients by the loop, against finite differences of the losses.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use fisher_core::model::Catalogue;
use fisher_train::batch::{SampleBatch, SampleLoss};
use fisher_train::capture::PerSample;

use crate::tolerance::FINITE_DIFFERENCE;

/// Per-sample gradients by the loop, path to one row a sample.
///
/// # Panics
/// Where there is none.
pub fn by_loop<M: SampleLoss>(
    model: &M,
    data: &M::Batch,
    paths: &[String],
) -> BTreeMap<String, Vec<Vec<f64>>> {
    let engine = PerSample::new(model, paths.iter().map(String::as_str)).expect("an engine");
    let mut rows: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
    for index in 0..data.len() {
        let sample = engine.gradient(data, index).expect("a gradient");
        for path in paths {
            let gradient = sample.gradients.get(path).expect("a gradient").to_full();
            let row = gradient.to_data().iter::<f64>().collect();
            rows.entry(path.clone()).or_default().push(row);
        }
    }
    rows
}

/// Moves element `index` of the parameter, in all its uses, by `step`.
struct Nudge {
    id: ParamId,
    index: usize,
    step: f32,
    seen: usize,
}

impl ModuleMapper for Nudge {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.id != self.id {
            return param;
        }
        self.seen += 1;
        param.map(|tensor| {
            let shape = tensor.shape();
            let mut values: Vec<f32> = tensor.to_data().iter::<f32>().collect();
            values[self.index] += self.step;
            let data = TensorData::new(values, shape);
            Tensor::<D>::from_data(data, &tensor.device()).require_grad()
        })
    }
}

/// The three largest gradients of each sample and parameter, and the first, against central
/// differences of `losses` of the model.
///
/// # Panics
/// Where they differ.
pub fn agree_with_differences<M: Module>(
    model: &M,
    rows: &BTreeMap<String, Vec<Vec<f64>>>,
    losses: impl Fn(&M) -> Vec<f64>,
) {
    let step = 1e-2f32;
    for parameter in Catalogue::of(model).expect("parameters").parameters() {
        for (sample, row) in rows[parameter.path()].iter().enumerate() {
            let mut indices: Vec<usize> = (0..row.len()).collect();
            indices.sort_by(|&a, &b| row[b].abs().total_cmp(&row[a].abs()));
            indices.truncate(3);
            indices.push(0);
            let largest = row[indices[0]].abs();
            for index in indices {
                let at = |step| {
                    let mut nudge = Nudge {
                        id: parameter.id().expect("an id"),
                        index,
                        step,
                        seen: 0,
                    };
                    let moved = model.clone().map(&mut nudge);
                    assert_eq!(nudge.seen, 1 + parameter.tied().len());
                    losses(&moved)[sample]
                };
                let found = (at(step) - at(-step)) / (2.0 * f64::from(step));
                let error = (found - row[index]).abs();
                assert!(
                    error <= FINITE_DIFFERENCE * (largest + 0.05),
                    "{} sample {sample} [{index}]: {} by the loop, {found} by differences",
                    parameter.path(),
                    row[index]
                );
            }
        }
    }
}
