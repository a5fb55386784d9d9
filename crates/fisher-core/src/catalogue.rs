//! The trainable float parameters of a module.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, list};
use crate::heads::natural;
use crate::ties::Ties;

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
    /// A bias, a norm's scale, or anything else with no more than one axis longer than 1, such as
    /// a scale of `[1, channels, 1, 1]`.
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
    /// Whether layer, bias or caller said so; else it is the convention for bare matrices.
    oriented: bool,
    /// Of a convolution's channels; `None` where nothing tells them.
    channel_groups: Option<usize>,
    id: Option<ParamId>,
    tied: Vec<String>,
}

impl Parameter {
    /// A parameter described by hand, for gradients that come from elsewhere. A convolution is one
    /// of a single group; see [`Parameter::with_channel_groups`].
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
            oriented: true,
            channel_groups: (role == Role::Convolution).then_some(1),
            id: None,
            tied: Vec::new(),
        }
    }

    /// The same convolution with its channels in `groups` groups: the kernel's second axis then
    /// holds the channels of one group.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is no convolution, or the groups do not divide its first axis.
    pub fn with_channel_groups(mut self, groups: usize) -> Result<Self> {
        let divided = groups > 0 && self.shape.first().is_some_and(|n| n.is_multiple_of(groups));
        if self.role != Role::Convolution || !divided {
            return Err(Error::Shape {
                parameter: self.path,
                expected: format!("a convolution whose first axis divides into {groups} groups"),
                found: format!("a {:?} of {:?}", self.role, self.shape),
            });
        }
        self.channel_groups = Some(groups);
        Ok(self)
    }

    /// The same parameter under another path, where it has no id.
    #[must_use]
    pub fn renamed(&self, path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            id: None,
            tied: Vec::new(),
            ..self.clone()
        }
    }

    /// The same matrix with its axes swapped; `None` for anything but a matrix.
    #[must_use]
    pub fn transposed(&self) -> Option<Self> {
        let &[rows, columns] = &*self.shape else {
            return None;
        };
        Some(Self {
            shape: vec![columns, rows],
            orientation: match self.orientation {
                Orientation::InputOutput => Orientation::OutputInput,
                Orientation::OutputInput => Orientation::InputOutput,
            },
            ..self.clone()
        })
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

    /// Whether the orientation is known, from the layer, from the length of a bias or by
    /// [`Catalogue::with_orientation`]. For a matrix that lies bare in a module it is not: its
    /// channels are the last axis by convention, and heads are not looked for in it.
    pub fn is_oriented(&self) -> bool {
        self.oriented
    }

    /// The number of groups a convolution's channels are in; `None` where nothing tells, since a
    /// kernel does not say it and Burn's visitors do not see a layer's settings.
    pub fn channel_groups(&self) -> Option<usize> {
        self.channel_groups
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
/// Roles come from name *and* shape. A `weight` in a struct named as one of Burn's layers is that
/// layer's if its rank is (a `Conv1d` of rank 2, as GPT-2 has it, is none of Burn's), and if the
/// length of a `bias` beside it agrees. Everything else is told by shape: no more than one axis
/// longer than 1 is a vector, the rest are matrices `[.., in, out]` by convention, unless the bias is
/// as long as the other axis only. Where just the convention speaks,
/// [`Parameter::is_oriented`] is false and attention heads need [`Catalogue::with_orientation`].
///
/// How many groups a convolution has is told by the bias of a transposed one, and by nothing
/// else: [`Catalogue::with_channel_groups`].
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
        visitor.ask_biases();
        visitor.ask_adapted();
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

    /// Say which axis of the parameter at `path` is its output, trainable or not: for matrices that
    /// lie bare in a module.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when there is none.
    pub fn with_orientation(self, path: &str, orientation: Orientation) -> Result<Self> {
        self.change(path, |parameter| {
            Ok(Parameter {
                orientation,
                oriented: true,
                ..parameter
            })
        })
    }

    /// Say that the channels of the convolution at `path` are in `groups` groups: see
    /// [`Parameter::with_channel_groups`].
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when there is none, [`Error::Shape`] when it is no convolution of
    /// that many groups.
    pub fn with_channel_groups(self, path: &str, groups: usize) -> Result<Self> {
        self.change(path, |parameter| parameter.with_channel_groups(groups))
    }

    fn change(
        mut self,
        path: &str,
        f: impl FnOnce(Parameter) -> Result<Parameter>,
    ) -> Result<Self> {
        let mut all = self.parameters.iter_mut().chain(&mut self.others);
        match all.find(|p| p.path == path) {
            Some(parameter) => {
                *parameter = f(parameter.clone())?;
                Ok(self)
            }
            None => Err(Error::UnknownParameter {
                parameter: path.into(),
                known: self.describe(),
            }),
        }
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
    /// Paths of the factors of Burn's low-rank adapters.
    adapters: Vec<String>,
    error: Option<Error>,
}

impl Visitor {
    /// Hold weights against the biases beside them, which are as long as the output.
    fn ask_biases(&mut self) {
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
    fn ask_adapted(&mut self) {
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

impl Parameter {
    /// What a bias of this length says of the weight beside it.
    fn ask_bias(&mut self, length: usize) {
        match (self.role, self.orientation, &*self.shape) {
            (Role::Matrix, _, &[first, second]) if first != second => {
                self.oriented = first == length || second == length;
                if first == length {
                    self.orientation = Orientation::OutputInput;
                } else {
                    self.orientation = Orientation::InputOutput;
                }
            }
            (Role::Matrix, _, &[first, _]) => self.oriented &= first == length,
            (Role::Convolution, Orientation::OutputInput, &[output, ..]) if output != length => {
                self.be_no_layer();
            }
            (Role::Convolution, Orientation::InputOutput, &[input, output, ..]) => {
                let groups = length / output.max(1);
                if groups > 0 && groups * output == length && input.is_multiple_of(groups) {
                    self.channel_groups = Some(groups);
                } else {
                    self.be_no_layer();
                }
            }
            _ => {}
        }
    }

    /// A layer by its name, but not by its shape.
    fn be_no_layer(&mut self) {
        (self.role, self.orientation, self.oriented) = by_shape(&self.shape);
    }
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
        let shape = param.lazy_shape().to_vec();
        let name = self.names.last().map_or("", String::as_str);
        let layer = self
            .containers
            .iter()
            .rev()
            .find_map(|c| c.strip_prefix("Struct:"))
            .unwrap_or_default();
        let path = self.names.join(".");
        if layer == "LoraAdapter" {
            self.adapters.push(path.clone());
        }
        let (role, orientation, oriented) = classify(layer, name, &shape);
        let parameter = Parameter {
            path,
            shape,
            role,
            orientation,
            oriented,
            channel_groups: None,
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

/// The same for what lies in none of Burn's layers.
fn by_shape(shape: &[usize]) -> (Role, Orientation, bool) {
    let vector = shape.iter().filter(|&&length| length > 1).count() < 2;
    let role = if vector { Role::Vector } else { Role::Matrix };
    (role, Orientation::InputOutput, false)
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
