//! The float parameters of a module as a visitor finds them: what they are for is told by the layers
//! around them, the biases beside them and their shapes.

use std::collections::HashMap;

use burn::module::Param;
use burn::tensor::Tensor;

use super::parameter::{Orientation, Parameter, Role, by_shape};
use super::ties::Ties;
use super::walk::{Place, PlaceVisitor};
use crate::error::{Error, Result};

#[derive(Default)]
pub(super) struct Visitor {
    pub(super) parameters: Vec<Parameter>,
    ties: Ties,
    by_path: HashMap<String, usize>,
    pub(super) others: Vec<Parameter>,
    /// Paths of the factors of Burn's low-rank adapters.
    adapters: Vec<String>,
}

impl Visitor {
    pub(super) fn new(ties: Ties) -> Self {
        Self {
            ties,
            ..Self::default()
        }
    }

    /// Hold weights against the biases beside them, which are as long as the output.
    pub(super) fn ask_biases(&mut self) {
        let biases = self.parameters.iter().chain(&self.others).filter_map(|p| {
            let layer = p.path.strip_suffix("bias")?;
            let &[length] = &*p.shape else { return None };
            Some((format!("{layer}weight"), length))
        });
        let biases: HashMap<String, usize> = biases.collect();
        for parameter in self.parameters.iter_mut().chain(&mut self.others) {
            if let Some(&length) = biases.get(&parameter.path) {
                parameter.ask_bias(length);
            }
        }
    }

    /// A low-rank adapter lies as the weight it adapts: `W + scale · A B`, A `[W's first, rank]` and
    /// B `[rank, W's second]`.
    pub(super) fn ask_adapted(&mut self) {
        for path in &self.adapters {
            let Some((adapted, factor)) = path
                .rsplit_once('.')
                .and_then(|(lora, factor)| Some((lora.rsplit_once('.')?.0, factor)))
            else {
                continue;
            };
            let mut all = self.parameters.iter().chain(&self.others);
            let Some(adapted) = all.find(|p| p.path == adapted).cloned() else {
                continue;
            };
            let mut all = self.parameters.iter_mut().chain(&mut self.others);
            let Some(adapter) = all.find(|p| p.path == *path) else {
                continue;
            };
            match adapted.role {
                // A row of A for each row of the table.
                Role::Embedding if factor == "a" => adapter.role = Role::Embedding,
                Role::Embedding => adapter.oriented = true,
                _ => {
                    adapter.orientation = adapted.orientation;
                    adapter.oriented = adapted.oriented;
                }
            }
        }
    }
}

impl PlaceVisitor for Visitor {
    type Error = Error;

    fn visit<const D: usize>(&mut self, place: Place, param: &Param<Tensor<D>>) -> Result<()> {
        let Place {
            path,
            containers,
            id,
            shape,
        } = place;
        // The struct that the parameter lies in: `Linear`, `Embedding`, ..
        let layer = containers
            .iter()
            .rev()
            .find_map(|c| c.strip_prefix("Struct:"))
            .unwrap_or_default();
        if layer == "LoraAdapter" {
            self.adapters.push(path.clone());
        }
        let name = path.rsplit('.').next().unwrap_or_default();
        let (role, orientation, oriented) = classify(layer, name, &shape);
        let parameter = Parameter {
            path,
            shape,
            role,
            orientation,
            oriented,
            channel_groups: None,
            id: Some(id),
            tied: Vec::new(),
        };
        if !param.is_require_grad() {
            self.others.push(parameter);
            return Ok(());
        }
        let tied = self.ties.tied_with(&parameter.path)?;
        let Some(&first) = tied.iter().find_map(|path| self.by_path.get(*path)) else {
            let path = parameter.path.clone();
            self.by_path.insert(path, self.parameters.len());
            self.parameters.push(parameter);
            return Ok(());
        };
        let first = &mut self.parameters[first];
        // A table is a table, also where it is a matrix elsewhere.
        if role == Role::Embedding {
            first.role = role;
        }
        first.tied.push(parameter.path);
        Ok(())
    }
}

/// Role, orientation and whether that is known, of the parameter `name` in a `layer`.
fn classify(layer: &str, name: &str, shape: &[usize]) -> (Role, Orientation, bool) {
    match (layer, name, shape.len()) {
        ("Linear", "weight", 2) => (Role::Matrix, Orientation::InputOutput, true),
        ("Embedding", "weight", 2) => (Role::Embedding, Orientation::InputOutput, true),
        ("Conv1d", "weight", 3)
        | ("Conv2d" | "DeformConv2d", "weight", 4)
        | ("Conv3d", "weight", 5) => (Role::Convolution, Orientation::OutputInput, true),
        ("ConvTranspose1d", "weight", 3)
        | ("ConvTranspose2d", "weight", 4)
        | ("ConvTranspose3d", "weight", 5) => (Role::Convolution, Orientation::InputOutput, true),
        _ => by_shape(shape),
    }
}
