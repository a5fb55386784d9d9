//! Gates as a sink of gradients.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor};

use super::scores::GateScores;
use super::sums::gate_sums;
use super::task::TaskGates;
use crate::error::{Error, Result, list};
use crate::gradient::{GradientSink, SampleGradient};
use crate::grouping::Grouping;
use crate::kind::FisherKind;
use crate::read::read;
use crate::sample::{Sample, SampleRecord, check_new};

/// Gates on the weights of a model: a [`GradientSink`] that takes `(g_i · θ)_G` of each sample and gate.
///
/// Holds the model's weights as handles, which copies nothing; the gradients have to be of these very weights. Sums over
/// a gate's elements are taken in the type of gradients, float32 at least, and everything after them in float64 on the
/// host. A parameter that is used in several places has one gradient, and its gate shuts all its uses.
#[derive(Debug, Clone)]
pub struct Gates {
    pub(super) scores: GateScores,
    pub(super) parameters: BTreeMap<String, Gated>,
    pub(super) device: Device,
    pub(super) pending: Option<Pending>,
}

/// A parameter with gates.
#[derive(Debug, Clone)]
pub(super) struct Gated {
    pub(super) shape: Vec<usize>,
    /// `[first axis, all others]`
    pub(super) weights: Tensor<2>,
    pub(super) groupings: Vec<Grouping>,
    /// Of each grouping, where its gates lie among all; a grouping may serve several sets.
    pub(super) firsts: Vec<Vec<usize>>,
}

/// A batch that was begun.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    task: String,
    samples: Vec<Sample>,
    /// By parameter, of each of its groupings: `[samples, groups]`.
    sums: BTreeMap<String, Vec<Tensor<2>>>,
    /// `(g_i · θ)_G`, `[samples, gates]`.
    products: Option<Vec<f64>>,
}

impl Gates {
    /// What has been seen.
    pub fn scores(&self) -> &GateScores {
        &self.scores
    }

    /// What has been seen, without the weights.
    pub fn into_scores(self) -> GateScores {
        self.scores
    }

    /// The parameters whose gradients are needed.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.parameters.keys().map(String::as_str)
    }

    /// Go on from what was seen before, of the same gates at the same weights.
    ///
    /// # Errors
    /// Those of [`GateScores::merge`].
    pub fn resume(&mut self, before: GateScores) -> Result<()> {
        self.scores.merge(before)
    }

    fn check_new(&self, task: &str, samples: &[Sample]) -> Result<()> {
        let seen = self.scores.tasks.get(task).map(|of_task| &of_task.samples);
        check_new(task, samples, |id| {
            seen.is_some_and(|seen| seen.contains(None, id))
        })
    }

    fn of_task(&mut self, task: String) -> &mut TaskGates {
        let (gates, limit) = (self.scores.gates(), self.scores.limit);
        let tasks = self.scores.tasks.entry(task);
        tasks.or_insert_with(|| TaskGates::new(gates, limit))
    }

    /// The products of all gates, in one transfer a type.
    fn products(&self, pending: &Pending) -> Result<Vec<f64>> {
        let (samples, gates) = (pending.samples.len(), self.scores.gates());
        let mut products = vec![0.0; samples * gates];
        for dtype in [DType::F32, DType::F64] {
            let mut columns = Vec::new();
            let mut places = Vec::new();
            for (path, sums) in &pending.sums {
                let firsts = &self.parameters[path].firsts;
                for (sums, firsts) in sums.iter().zip(firsts) {
                    if sums.dtype() == dtype {
                        places.push((path, sums.dims()[1], firsts));
                        columns.push(sums.clone());
                    }
                }
            }
            if columns.is_empty() {
                continue;
            }
            let width: usize = places.iter().map(|(_, groups, _)| groups).sum();
            let values = read(Tensor::cat(columns, 1))?;
            for (at, row) in values.chunks(width).enumerate() {
                let mut start = 0;
                for (path, groups, firsts) in &places {
                    let sums = &row[start..start + groups];
                    start += groups;
                    if sums.iter().any(|sum| !sum.is_finite()) {
                        return Err(Error::NonFinite {
                            sample: pending.samples[at].id().into(),
                            parameter: (*path).clone(),
                        });
                    }
                    for first in *firsts {
                        let into = &mut products[at * gates + first..][..*groups];
                        into.iter_mut()
                            .zip(sums)
                            .for_each(|(into, sum)| *into += sum);
                    }
                }
            }
        }
        Ok(products)
    }
}

impl GradientSink for Gates {
    fn wants(&self, path: &str) -> bool {
        self.parameters.contains_key(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        Some(self.scores.provenance.kind).filter(|kind| *kind != found)
    }

    fn takes_from(&self) -> Option<&Device> {
        Some(&self.device)
    }

    /// # Errors
    /// [`Error::SampleTwice`] when a sample has been seen before or is twice in the batch.
    fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<()> {
        self.pending = None;
        self.check_new(task, samples)?;
        self.pending = Some(Pending {
            task: task.into(),
            samples: samples.to_vec(),
            sums: BTreeMap::new(),
            products: None,
        });
        Ok(())
    }

    /// # Errors
    /// [`Error::UnknownParameter`] when no gate is on it, [`Error::ParameterTwice`] when it has come before,
    /// [`Error::Shape`] when the gradients are not of its shape or lie elsewhere, [`Error::NoBatch`] when none was begun.
    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        let Some(gated) = self.parameters.get(path) else {
            return Err(Error::UnknownParameter {
                parameter: path.into(),
                known: list(self.parameters.keys()),
            });
        };
        let device = gradient.device();
        if device != self.device {
            return Err(Error::Shape {
                parameter: path.into(),
                expected: format!("gradients on {:?}, where the weights are", self.device),
                found: format!("gradients on {device:?}"),
            });
        }
        let pending = self.pending.as_mut().ok_or(Error::NoBatch)?;
        let samples = pending.samples.len();
        gradient.check(path, samples, &gated.shape)?;
        if pending.sums.contains_key(path) {
            return Err(Error::ParameterTwice {
                parameter: path.into(),
            });
        }
        let sums = if samples == 0 {
            Vec::new()
        } else {
            gate_sums(&gradient, &gated.weights, &gated.groupings)
        };
        pending.sums.insert(path.into(), sums);
        Ok(())
    }

    /// # Errors
    /// [`Error::MissingParameter`] when one has not come, [`Error::NonFinite`] when a sum is NaN or infinite,
    /// [`Error::Device`] when the device does not give values, [`Error::NoBatch`] when no batch was begun.
    fn prepare(&mut self) -> Result<()> {
        let mut pending = self.pending.take().ok_or(Error::NoBatch)?;
        if pending.products.is_none() {
            let mut paths = self.parameters.keys();
            if let Some(path) = paths.find(|path| !pending.sums.contains_key(*path)) {
                return Err(Error::MissingParameter {
                    parameter: path.clone(),
                });
            }
            pending.products = Some(self.products(&pending)?);
            pending.sums.clear();
        }
        self.pending = Some(pending);
        Ok(())
    }

    /// # Errors
    /// Those of [`prepare`](GradientSink::prepare).
    fn commit(&mut self) -> Result<()> {
        self.prepare()?;
        let pending = self.pending.take().ok_or(Error::NoBatch)?;
        let products = pending.products.ok_or(Error::NoBatch)?;
        if !pending.samples.is_empty() {
            let limit = self.scores.limit;
            let of_task = self.of_task(pending.task);
            of_task.push(&pending.samples, &products, limit);
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.pending = None;
    }

    /// # Errors
    /// [`Error::SampleTwice`] when the sample has been seen before.
    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> Result<()> {
        self.check_new(task, std::slice::from_ref(sample))?;
        let record = SampleRecord {
            skipped: Some(parameter.into()),
            ..sample.into()
        };
        self.of_task(task.into()).samples.push(record);
        Ok(())
    }
}
