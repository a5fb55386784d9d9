//! Per-sample gradients of a whole batch from one backward pass, by taps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Gradients, Tensor};
use fisher_core::{Catalogue, FisherKind, Sample, Ties};

use crate::capture::read;
use crate::captured::Captured;
use crate::factors::Factors;
use crate::per_sample::deterministic;
use crate::precision::at_least_single;
use crate::rounding::Rounding;
use crate::sample::{SampleBatch, SampleLoss};
use crate::tap::{Tap, Use, record};
use crate::{Error, Result};

/// A model made ready for taps: as for the loop, but one backward pass serves a batch.
///
/// A tapped layer uses its parameters without their gradients, so they are not computed. A
/// gradient that arrives at a parameter all the same betrays a use that no tap covers.
#[derive(Debug, Clone)]
pub(crate) struct Batched<M> {
    model: M,
    parameters: HashMap<ParamId, Shape>,
    rounding: Rounding,
}

#[derive(Debug, Clone)]
struct Shape {
    path: String,
    /// The first axis and the product of all others.
    sides: [usize; 2],
}

/// The gradients of one output of a layer.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Of a parameter of the layer.
    path: String,
    /// `[rows, outputs]`, as many rows for each sample.
    delta: Tensor<2>,
    /// Whether samples and positions are one axis, where only equal numbers of positions can be told
    /// apart.
    flattened: bool,
}

/// A forward and a backward pass.
struct Pass {
    samples: Vec<Sample>,
    /// `L_i`, whatever they were weighted with.
    losses: Tensor<1>,
    kind: FisherKind,
    taps: Vec<Tap>,
    untapped: BTreeSet<String>,
}

/// What losses are weighted with: products with these are exact in any type.
const WEIGHTS: [f32; 8] = [1.0, -1.0, 0.5, -0.5, 0.25, -0.25, 0.125, -0.125];

/// The weight of a sample's loss. It differs from its neighbors', and from that of the sample as many
/// places on as a batch may be cut into: 2, 4, .. 128.
fn weight(sample: usize) -> f32 {
    WEIGHTS[(5 * sample + 2 * (sample / 8) + 3 * (sample / 32)) % WEIGHTS.len()]
}

impl<M: SampleLoss> Batched<M> {
    /// Ready `model` for the gradients of the parameters at `paths`.
    pub(crate) fn new<'a>(model: &M, paths: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        // Ids tell parameters apart here: copies need their own.
        let model = &Ties::of(model)?.separate(model.clone());
        let catalogue = Catalogue::of(model)?;
        let mut parameters = HashMap::new();
        for path in paths {
            let parameter = catalogue.require(path)?;
            let shape = parameter.shape();
            let sides = [shape[0], shape[1..].iter().product()];
            if let Some(id) = parameter.id() {
                let path = path.to_owned();
                parameters.insert(id, Shape { path, sides });
            }
        }
        Ok(Self {
            model: deterministic(model, |id| parameters.contains_key(&id)),
            rounding: Rounding::of_model(model),
            parameters,
        })
    }

    /// The gradients of a batch, from one forward and one backward pass.
    pub(crate) fn capture(&self, batch: &M::Batch) -> Result<Captured> {
        let pass = self.pass(batch, |losses| losses)?;
        let (samples, mut untapped) = (pass.samples, pass.untapped);
        let mut dtypes = vec![pass.losses.dtype()];
        let losses = read(at_least_single(pass.losses))?;
        let mut probes = Vec::new();
        let mut rows = Vec::new();
        let mut parts: HashMap<ParamId, Vec<Part>> = HashMap::new();
        for Tap { first, delta, uses } in pass.taps {
            let Some(delta) = delta else {
                continue; // the loss does not depend on it
            };
            // The first axis of each tap must be the samples; a tensor that they share is none.
            let fits = first.is_multiple_of(samples.len());
            // Inputs too: what saturates behind an infinite one has losses and deltas that are finite.
            let inputs = uses.iter().filter_map(|(_, part)| part.input());
            for tensor in std::iter::once(&delta).chain(inputs) {
                dtypes.push(tensor.dtype());
                probes.push(tensor.clone().cast(DType::F32).sum());
            }
            if let (true, Some((id, _))) = (fits, uses.first()) {
                let path = self.parameters[id].path.clone();
                rows.push(Rows {
                    path,
                    delta: delta.clone(),
                    flattened: first != samples.len(),
                });
            }
            for (id, part) in uses {
                if fits {
                    parts.entry(id).or_default().push((part, delta.clone()));
                } else {
                    untapped.insert(self.parameters[&id].path.clone());
                }
            }
        }
        let factors = self.parameters.iter().map(|(id, shape)| {
            let parts = parts.remove(id).unwrap_or_default();
            (
                shape.path.clone(),
                Factors::of(parts, samples.len(), shape.sides),
            )
        });
        let mut factors: BTreeMap<String, Option<Factors>> = factors.collect();
        factors.retain(|path, _| !untapped.contains(path));
        let mut finite = losses.iter().all(|loss| loss.is_finite());
        if !probes.is_empty() {
            let probes = read(Tensor::cat(probes, 0))?;
            finite &= probes.iter().all(|probe| probe.is_finite());
        }
        Ok(Captured {
            finite,
            losses,
            kind: pass.kind,
            samples,
            factors,
            left: untapped
                .into_iter()
                .map(|path| (path, "no tap covers it".into()))
                .collect(),
            rounding: self.rounding.coarser(Rounding::of(dtypes)),
            rows,
        })
    }

    fn pass(&self, batch: &M::Batch, weight: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Result<Pass> {
        let ids = batch.ids();
        let wanted: HashSet<ParamId> = self.parameters.keys().copied().collect();
        let (losses, entries) = record(&wanted, || self.model.sample_losses(batch));
        let samples = losses.samples(&ids)?;
        let loss = weight(losses.sums().clone()).sum();
        if !loss.is_tracked() {
            return Err(Error::NoGraph {
                sample: ids.into_iter().next().unwrap_or_default(),
            });
        }
        let mut gradients = loss.backward();
        let mut reached = Reached {
            parameters: &self.parameters,
            gradients: &mut gradients,
            found: BTreeSet::new(),
        };
        self.model.visit(&mut reached);
        let untapped = reached.found;
        let taps = entries.into_iter().map(|entry| entry.take(&mut gradients));
        Ok(Pass {
            samples,
            losses: losses.sums().clone().inner(),
            kind: losses.kind(),
            taps: taps.collect(),
            untapped,
        })
    }

    /// Whether every row of every tap belongs to the sample it was taken for, and to no other.
    ///
    /// When the loss of each sample is weighted by a number `w_i`, the gradients of its own rows become
    /// `w_i` times what they were; rows that more than one sample depends on, or that were counted with
    /// another's, do not. A forward and a backward pass more, for all samples.
    pub(crate) fn check_rows(&self, batch: &M::Batch, captured: &Captured) -> Result<()> {
        let samples = captured.samples.len();
        let weights: Vec<f32> = (0..samples).map(weight).collect();
        let pass = self.pass(batch, |losses| {
            let device = losses.device().without_autodiff();
            let weights = Tensor::<1>::from_floats(weights.as_slice(), &device);
            losses.clone() * weights.cast(losses.dtype())
        })?;
        let fits = |tap: &Tap| tap.first.is_multiple_of(samples) && !tap.uses.is_empty();
        let taps = pass.taps.into_iter().filter(fits);
        let weighted: Vec<Tensor<2>> = taps.filter_map(|tap| tap.delta).collect();
        let disagree = |rows: &Rows, sample: usize, distance: f64, norm: f64| Error::Disagree {
            parameter: rows.path.clone(),
            sample: captured.samples[sample].id().into(),
            distance,
            norm,
        };
        // Another number of layers each time: not the same function of the batch.
        let dims = |tensor: &Tensor<2>| tensor.dims();
        let seen: Vec<[usize; 2]> = captured.rows.iter().map(|rows| dims(&rows.delta)).collect();
        if let (true, Some(rows)) = (
            seen != weighted.iter().map(dims).collect::<Vec<_>>(),
            captured.rows.first(),
        ) {
            return Err(disagree(rows, 0, f64::NAN, f64::NAN));
        }
        let mut sizes = Vec::new();
        for (rows, weighted) in captured.rows.iter().zip(weighted) {
            let split = |rows: Tensor<2>| {
                at_least_single(rows)
                    .cast(DType::F32)
                    .reshape([samples as i32, -1])
            };
            let device = rows.delta.device();
            let weights = Tensor::<1>::from_data(weights.as_slice(), (&device, DType::F32));
            let expected = split(rows.delta.clone()) * weights.reshape([samples, 1]);
            let distance = split(weighted) - expected.clone();
            let largest = |tensor: Tensor<2>| tensor.abs().max_dim(1).reshape([samples]);
            sizes.extend([largest(distance), largest(expected)]);
        }
        if sizes.is_empty() {
            return Ok(());
        }
        let sizes = read(Tensor::cat(sizes, 0))?;
        // A backward pass is linear and the weights are exact, so float32's bounds do for all types.
        let rounding = Rounding::SINGLE;
        for (rows, sizes) in captured.rows.iter().zip(sizes.chunks(2 * samples)) {
            let (distances, norms) = sizes.split_at(samples);
            let all = norms.iter().copied().fold(0.0, f64::max);
            for (sample, (&distance, &norm)) in distances.iter().zip(norms).enumerate() {
                let bound = rounding.of_gradient(norm, all) + captured.rounding.least;
                // So that NaN does not agree.
                let agrees = distance <= bound;
                if !agrees {
                    return Err(disagree(rows, sample, distance, norm));
                }
            }
        }
        Ok(())
    }
}

/// Whether a layer saw samples and positions as one axis.
pub(crate) fn flattened(captured: &Captured) -> bool {
    captured.rows.iter().any(|rows| rows.flattened)
}

/// Whether a layer saw them so, and not all positions that others saw: those left out need not be
/// equally many in each sample, which the next batch may show and this one not.
pub(crate) fn packed(captured: &Captured) -> bool {
    let positions = |rows: &Rows| rows.delta.dims()[0] / captured.samples.len();
    let apart = captured.rows.iter().filter(|rows| !rows.flattened);
    let full = apart.map(positions).max();
    let packed = |rows: &Rows| rows.flattened && Some(positions(rows)) != full;
    captured.rows.iter().any(packed)
}

/// A use of a parameter and the gradient of the output it took part in.
pub(crate) type Part = (Use, Tensor<2>);

/// The parameters that a gradient arrived at.
struct Reached<'a> {
    parameters: &'a HashMap<ParamId, Shape>,
    gradients: &'a mut Gradients,
    found: BTreeSet<String>,
}

impl ModuleVisitor for Reached<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(shape) = self.parameters.get(&param.id)
            && param.val().grad_remove(self.gradients).is_some()
        {
            self.found.insert(shape.path.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_that_may_be_confused_have_other_weights() {
        for apart in [1, 2, 3, 4, 8, 16, 32, 64, 128] {
            for sample in 0..512 {
                assert_ne!(weight(sample), weight(sample + apart), "{sample}, {apart}");
            }
        }
    }
}
