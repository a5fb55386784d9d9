//! The weights of a model without a group of them.

use std::collections::BTreeMap;

use fisher_core::gates::GateSet;
use fisher_core::grouping::Grouping;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_metrics::weights::Weights;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::error::{Error, Result};

/// The weights of a model, from which groups are taken.
pub(super) struct Whole {
    weights: Weights,
    catalogue: Catalogue,
}

impl Whole {
    pub(super) fn new(weights: Weights, catalogue: Catalogue) -> Self {
        Self { weights, catalogue }
    }

    fn of(&self, path: &str, grouping: &Grouping) -> Result<Vec<f64>> {
        let elements = grouping.shape().iter().product();
        Ok(self.weights.get(path, elements)?.to_vec())
    }

    /// With 0 in the place of a gate's weights.
    pub(super) fn zero(&self, set: &GateSet, gate: usize) -> Result<Weights> {
        let mut without = BTreeMap::new();
        for part in set.parts() {
            let mut theta = self.of(&part.path, &part.grouping)?;
            for range in part.grouping.ranges(gate) {
                theta[range].fill(0.0);
            }
            without.insert(part.path.clone(), theta);
        }
        Ok(without.into())
    }

    /// With weights from elsewhere in their tensors in their place.
    pub(super) fn resample(&self, set: &GateSet, gate: usize, seed: [u64; 3]) -> Result<Weights> {
        let mut bytes = [0; 32];
        for (bytes, number) in bytes.chunks_mut(8).zip(seed) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        let rng = &mut ChaCha8Rng::from_seed(bytes);
        let mut without = BTreeMap::new();
        for part in set.parts() {
            let mut theta = self.of(&part.path, &part.grouping)?;
            let inside: Vec<usize> = part.grouping.ranges(gate).into_iter().flatten().collect();
            let mut outside = vec![true; theta.len()];
            inside.iter().for_each(|&at| outside[at] = false);
            let mut pool: Vec<f64> = (0..theta.len())
                .filter(|&at| outside[at])
                .map(|at| theta[at])
                .collect();
            if pool.is_empty() {
                pool = inside.iter().map(|&at| theta[at]).collect();
            }
            let enough = pool.len() >= inside.len();
            for (drawn, at) in inside.into_iter().enumerate() {
                if enough {
                    // Fisher and Yates, begun and not finished.
                    let other = rng.random_range(drawn..pool.len());
                    pool.swap(drawn, other);
                    theta[at] = pool[drawn];
                } else {
                    theta[at] = pool[rng.random_range(0..pool.len())];
                }
            }
            without.insert(part.path.clone(), theta);
        }
        Ok(without.into())
    }

    /// The matrices of the sets whose inputs mean ablation needs, and which of their sides is the input.
    pub(super) fn matrices(&self, sets: &[GateSet]) -> Result<BTreeMap<String, Orientation>> {
        let mut matrices = BTreeMap::new();
        for set in sets {
            for part in set.parts() {
                let parameter = self.catalogue.require(&part.path)?;
                if is_bias_of(set, &part.path) {
                    continue;
                }
                let forward = match (parameter.role(), parameter.orientation()) {
                    (Role::Matrix, _) => parameter.shape().len() == 2,
                    (Role::Convolution, orientation) => orientation == Orientation::OutputInput,
                    _ => false,
                };
                if !forward {
                    return Err(no_mean(parameter, "it is no matrix or kernel"));
                }
                let bias = bias_of(parameter.path());
                if self
                    .weights
                    .iter()
                    .all(|(path, _)| Some(path) != bias.as_deref())
                {
                    return Err(no_mean(
                        parameter,
                        "no bias lies beside it that could take the mean",
                    ));
                }
                matrices.insert(part.path.clone(), parameter.orientation());
            }
        }
        Ok(matrices)
    }

    /// With the mean of what the gate's weights add to the outputs in the biases beside them.
    pub(super) fn mean(
        &self,
        set: &GateSet,
        gate: usize,
        inputs: &BTreeMap<String, Vec<f64>>,
    ) -> Result<Weights> {
        let mut without: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for part in set.parts() {
            let Some(input) = inputs.get(&part.path) else {
                continue; // the bias beside another part
            };
            let parameter = self.catalogue.require(&part.path)?;
            let path = bias_of(&part.path).unwrap_or_default();
            let outputs = parameter.elements() / input.len();
            let mut bias = self.weights.get(&path, outputs)?.to_vec();
            let mut theta = self.of(&part.path, &part.grouping)?;
            for at in part.grouping.ranges(gate).into_iter().flatten() {
                let (from, to) = match parameter.orientation() {
                    Orientation::InputOutput => (at / outputs, at % outputs),
                    Orientation::OutputInput => (at % input.len(), at / input.len()),
                };
                bias[to] += input[from] * theta[at];
                theta[at] = 0.0;
            }
            without.insert(part.path.clone(), theta);
            without.insert(path, bias);
        }
        Ok(without.into())
    }
}

fn bias_of(weight: &str) -> Option<String> {
    Some(format!("{}bias", weight.strip_suffix("weight")?))
}

/// Whether `path` is the bias beside another part of the set.
fn is_bias_of(set: &GateSet, path: &str) -> bool {
    set.parts()
        .iter()
        .any(|part| bias_of(&part.path).as_deref() == Some(path))
}

fn no_mean(parameter: &Parameter, reason: &str) -> Error {
    Error::NoMean {
        parameter: parameter.path().into(),
        reason: reason.into(),
    }
}
