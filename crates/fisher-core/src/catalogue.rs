//! The trainable float parameters of a module.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::list;
use crate::heads::natural;
use crate::ties::Ties;
use crate::{Error, Result};

/// What a parameter is for; it decides the default [`Scheme`](crate::Scheme).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A matrix that maps inputs to outputs.
    Matrix,
    /// A convolution kernel.
    Convolution,
    /// A table with one row per token or position.
    Embedding,
    /// A bias, a norm's scale, or any other vector.
    Vector,
}

/// Which axis of a matrix or kernel is its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Orientation {
    /// `[.., in, out]`: Burn's `Linear`, GPT-2's Conv1D, transposed convolutions `[in, out, ..]`.
    InputOutput,
    /// `[out, in, ..]`: PyTorch's `Linear`, convolutions.
    OutputInput,
}

/// One trainable float parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    path: String,
    shape: Vec<usize>,
    role: Role,
    orientation: Orientation,
    id: Option<ParamId>,
    tied: Vec<String>,
}

impl Parameter {
    /// A parameter described by hand, for gradients that come from elsewhere.
    pub fn new(
        path: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        role: Role,
        orientation: Orientation,
    ) -> Self {
        Self {
            path: path.into(),
            shape: shape.into(),
            role,
            orientation,
            id: None,
            tied: Vec::new(),
        }
    }

    /// The path in the module, such as `layers.0.attention.query.weight`: what models are joined
    /// by, since a [`ParamId`] is new at every init and the same in every `clone()`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// What the parameter is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Which axis is the output.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The id inside this very module, where there is one.
    pub fn id(&self) -> Option<ParamId> {
        self.id
    }

    /// Other paths under which the same parameter is used.
    pub fn tied(&self) -> &[String] {
        &self.tied
    }

    /// The output axis; `None` for vectors and embeddings.
    pub fn output_axis(&self) -> Option<usize> {
        self.axes().map(|(_, output)| output)
    }

    /// The input axis; `None` for vectors and embeddings.
    pub fn input_axis(&self) -> Option<usize> {
        self.axes().map(|(input, _)| input)
    }

    /// Whether one of Burn's parameter groups names it, by path or id.
    pub fn matches(&self, group: &ParamGroup) -> bool {
        // Made by hand it has no id, and a new one matches no group.
        group.matches(&self.id.unwrap_or_default(), Some(&self.path))
    }

    fn axes(&self) -> Option<(usize, usize)> {
        let rank = self.shape.len();
        match (self.role, self.orientation) {
            _ if rank < 2 => None,
            (Role::Embedding | Role::Vector, _) => None,
            (_, Orientation::OutputInput) => Some((1, 0)),
            (Role::Convolution, Orientation::InputOutput) => Some((0, 1)),
            (Role::Matrix, Orientation::InputOutput) => Some((rank - 2, rank - 1)),
        }
    }
}

/// The trainable float parameters of a module, in the module's own order.
///
/// Left out are frozen parameters and those that never train, such as the running statistics of a
/// batch norm. A parameter that is used in several places (an embedding that is also the output
/// head) appears once, under its first path, and lists the others in [`Parameter::tied`]; a copy of
/// it is a parameter of its own, whatever its id (see [`Ties`]).
///
/// Roles come from the layer a parameter lies in. A bare matrix outside Burn's layers is taken
/// to map inputs to outputs as Burn's do, `[in, out]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    parameters: Vec<Parameter>,
    /// Frozen or filtered out: not measured, but head layouts read their shapes.
    others: Vec<Parameter>,
}

impl Catalogue {
    /// The parameters of `module` that require gradients.
    ///
    /// # Errors
    /// [`Error::NoParameters`] when there are none, [`Error::Copies`] when a trainable module and its
    /// copy cannot be told from one that is used twice, [`Error::Device`] when the device does not
    /// compare the values of parameters that share an id.
    pub fn of<M: Module>(module: &M) -> Result<Self> {
        let mut visitor = Visitor {
            ties: Ties::of(module)?,
            ..Visitor::default()
        };
        module.visit(&mut visitor);
        if let Some(error) = visitor.error {
            return Err(error);
        }
        if visitor.parameters.is_empty() {
            return Err(Error::NoParameters {
                context: "in the module (is it on an autodiff device? A model that comes from \
                          training or `valid()` needs `.train()`)"
                    .into(),
                found: format!(
                    "{} without gradients",
                    list(visitor.others.iter().map(|p| &p.path))
                ),
            });
        }
        Ok(Self {
            parameters: visitor.parameters,
            others: visitor.others,
        })
    }

    /// A catalogue made by hand.
    ///
    /// # Errors
    /// [`Error::NoParameters`] when the list is empty, [`Error::Argument`] when a path is twice
    /// in it.
    pub fn new(parameters: Vec<Parameter>) -> Result<Self> {
        if parameters.is_empty() {
            return Err(Error::NoParameters {
                context: "in the catalogue".into(),
                found: list::<&str>([]),
            });
        }
        let mut paths: Vec<&str> = parameters.iter().map(Parameter::path).collect();
        paths.sort_unstable();
        if let Some(twice) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Argument {
                name: "parameters",
                expected: "of different paths",
                found: twice[0].into(),
            });
        }
        Ok(Self {
            parameters,
            others: Vec::new(),
        })
    }

    /// Only the parameters that `group` matches, by Burn's own patterns.
    ///
    /// ```
    /// use burn::module::ParamGroup;
    /// use fisher_core::{Catalogue, Orientation::InputOutput, Parameter, Role::Matrix};
    ///
    /// let of = |path| Parameter::new(path, [4, 4], Matrix, InputOutput);
    /// let all = Catalogue::new(vec![of("layers.0.query.weight"), of("layers.0.mlp.weight")])?;
    /// let some = all.filter(&ParamGroup::from_regex(r"query|key").expect("a pattern"))?;
    /// assert_eq!(some.parameters()[0].path(), "layers.0.query.weight");
    /// # Ok::<(), fisher_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoParameters`] when nothing matches.
    pub fn filter(&self, group: &ParamGroup) -> Result<Self> {
        let (parameters, rest): (Vec<Parameter>, Vec<Parameter>) = self
            .parameters
            .iter()
            .cloned()
            .partition(|p| p.matches(group));
        if parameters.is_empty() {
            return Err(Error::NoParameters {
                context: "matches the filter".into(),
                found: self.describe(),
            });
        }
        let others = self.others.iter().cloned().chain(rest).collect();
        Ok(Self { parameters, others })
    }

    /// The parameters, in the module's order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The parameter at `path`, if it is trainable.
    pub fn get(&self, path: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|p| p.path == path)
    }

    /// The parameter at `path`.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when there is none that is trainable.
    pub fn require(&self, path: &str) -> Result<&Parameter> {
        self.get(path).ok_or_else(|| Error::UnknownParameter {
            parameter: path.into(),
            known: self.describe(),
        })
    }

    /// The layers, in the order of their numbers, and their parameters. A layer is everything
    /// under one numbered path, such as `decoder.layers.3`; outside of those it is the module that
    /// holds the parameters, such as `embedding`.
    pub fn layers(&self) -> Vec<(String, Vec<&Parameter>)> {
        let mut layers: Vec<(String, Vec<&Parameter>)> = Vec::new();
        for parameter in &self.parameters {
            let name = layer_name(parameter.path());
            match layers.iter_mut().find(|(layer, _)| *layer == name) {
                Some((_, parameters)) => parameters.push(parameter),
                None => layers.push((name, vec![parameter])),
            }
        }
        layers.sort_by_key(|(name, _)| natural(name));
        layers
    }

    /// All parameters known, measured or not: for what only reads shapes.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().chain(&self.others)
    }

    /// Paths and shapes in one line, for errors.
    pub(crate) fn describe(&self) -> String {
        list(
            self.parameters
                .iter()
                .map(|p| format!("{} {:?}", p.path, p.shape)),
        )
    }
}

#[derive(Default)]
struct Visitor {
    names: Vec<String>,
    /// The struct that the current field lies in: `Linear`, `Embedding`, ..
    containers: Vec<String>,
    parameters: Vec<Parameter>,
    ties: Ties,
    by_path: HashMap<String, usize>,
    others: Vec<Parameter>,
    error: Option<Error>,
}

impl ModuleVisitor for Visitor {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.push(name.into());
        self.containers.push(container_type.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (role, orientation) = classify(&self.containers, D);
        let parameter = Parameter {
            path: self.names.join("."),
            shape: param.lazy_shape().to_vec(),
            role,
            orientation,
            id: Some(param.id),
            tied: Vec::new(),
        };
        if !param.is_require_grad() {
            self.others.push(parameter);
            return;
        }
        let tied = match self.ties.tied_with(&parameter.path) {
            Ok(tied) => tied,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        let Some(&first) = tied.iter().find_map(|path| self.by_path.get(*path)) else {
            let path = parameter.path.clone();
            self.by_path.insert(path, self.parameters.len());
            self.parameters.push(parameter);
            return;
        };
        let first = &mut self.parameters[first];
        // A table is a table, also where it is a matrix elsewhere.
        if role == Role::Embedding {
            first.role = role;
        }
        first.tied.push(parameter.path);
    }
}

/// Role and orientation from the layer that holds the parameter, by Burn's conventions.
fn classify(containers: &[String], rank: usize) -> (Role, Orientation) {
    let layer = containers
        .iter()
        .rev()
        .find_map(|c| c.strip_prefix("Struct:"))
        .unwrap_or_default();
    match layer {
        _ if rank < 2 => (Role::Vector, Orientation::InputOutput),
        "Embedding" => (Role::Embedding, Orientation::InputOutput),
        "ConvTranspose1d" | "ConvTranspose2d" | "ConvTranspose3d" => {
            (Role::Convolution, Orientation::InputOutput)
        }
        "Conv1d" | "Conv2d" | "Conv3d" | "DeformConv2d" => {
            (Role::Convolution, Orientation::OutputInput)
        }
        _ => (Role::Matrix, Orientation::InputOutput),
    }
}

/// Everything up to the first number of a path; without one, all but the parameter's own name.
fn layer_name(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let number = parts.iter().position(|part| part.parse::<u64>().is_ok());
    let end = number.map_or(parts.len() - 1, |number| number + 1);
    parts[..end.max(1)].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("model.layers.11.self_attn.q_proj.weight", "model.layers.11")]
    #[case("transformer.h.0.mlp.c_fc.bias", "transformer.h.0")]
    #[case("embedding.weight", "embedding")]
    #[case("model.embed_tokens.weight", "model.embed_tokens")]
    #[case("head", "head")]
    #[case("0.weight", "0")]
    fn layers_are_named_by_their_number(#[case] path: &str, #[case] layer: &str) {
        assert_eq!(layer_name(path), layer);
    }
}
