//! Per-sample gradients of a whole batch from one backward pass, by taps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Gradients, Tensor};
use fisher_core::{Catalogue, Sample, Ties};

use crate::capture::read;
use crate::factors::Factors;
use crate::per_sample::deterministic;
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
}

#[derive(Debug, Clone)]
struct Shape {
    path: String,
    /// The first axis and the product of all others.
    sides: [usize; 2],
}

/// What a backward pass leaves of a batch.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) samples: Vec<Sample>,
    /// `L_i`
    pub(crate) losses: Vec<f64>,
    /// What gives the gradients of each parameter; `None` when the loss does not reach it.
    pub(crate) factors: BTreeMap<String, Option<Factors>>,
    /// Parameters with a use that no tap covers: the loop has to give their gradients.
    pub(crate) untapped: BTreeSet<String>,
    /// Whether losses, inputs and the gradients of outputs are finite.
    pub(crate) finite: bool,
    /// Whether a layer saw samples and positions as one axis, which only equal numbers of positions
    /// can be told apart in.
    pub(crate) flattened: bool,
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
        let model = deterministic(model, |id| parameters.contains_key(&id));
        Ok(Self { model, parameters })
    }

    /// One forward and one backward pass.
    pub(crate) fn capture(&self, batch: &M::Batch) -> Result<Captured> {
        let ids = batch.ids();
        let wanted: HashSet<ParamId> = self.parameters.keys().copied().collect();
        let (losses, entries) = record(&wanted, || self.model.sample_losses(batch));
        if losses.tokens().len() != ids.len() {
            return Err(Error::BatchLosses {
                samples: ids.len(),
                found: losses.tokens().len(),
            });
        }
        let samples = ids.iter().zip(losses.tokens());
        let samples = samples.map(|(id, &tokens)| Sample::new(id.clone(), tokens));
        let samples = samples.collect::<fisher_core::Result<Vec<Sample>>>()?;
        let loss = losses.sums().clone().sum();
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
        let mut untapped = reached.found;

        let mut probes = vec![losses.sums().clone().inner().cast(DType::F32)];
        let taps = entries.into_iter().map(|entry| entry.take(&mut gradients));
        let mut parts: HashMap<ParamId, Vec<Part>> = HashMap::new();
        let mut flattened = false;
        for Tap { first, delta, uses } in taps {
            // The first axis of each tap must be the samples; a tensor that they share is none.
            let fits = first.is_multiple_of(samples.len());
            flattened |= fits && first != samples.len();
            // Inputs too: what saturates behind an infinite one has losses and deltas that are finite.
            let inputs = uses.iter().filter_map(|(_, part)| part.input());
            let sum = |tensor: &Tensor<2>| tensor.clone().cast(DType::F32).sum();
            probes.extend(delta.iter().chain(inputs).map(sum));
            for (id, part) in uses {
                match (&delta, fits) {
                    (None, _) => {}
                    (Some(delta), true) => parts.entry(id).or_default().push((part, delta.clone())),
                    (Some(_), false) => {
                        untapped.insert(self.parameters[&id].path.clone());
                    }
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
        let probes = read(Tensor::cat(probes, 0))?;
        Ok(Captured {
            finite: probes.iter().all(|probe| probe.is_finite()),
            losses: probes[..samples.len()].to_vec(),
            samples,
            factors,
            untapped,
            flattened,
        })
    }
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
