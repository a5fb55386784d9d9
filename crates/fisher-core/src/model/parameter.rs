//! A parameter: its path and shape, what it is for, and which of its axes is the output.

use burn::module::{ParamGroup, ParamId};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a parameter is for; it decides the default [`Scheme`](crate::grouping::Scheme).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
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
    pub(super) path: String,
    pub(super) shape: Vec<usize>,
    pub(super) role: Role,
    pub(super) orientation: Orientation,
    /// Whether layer, bias or caller said so; else it is the convention for bare matrices.
    pub(super) oriented: bool,
    /// Of a convolution's channels; `None` where nothing tells them.
    pub(super) channel_groups: Option<usize>,
    pub(super) id: Option<ParamId>,
    pub(super) tied: Vec<String>,
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
    /// [`Catalogue::with_orientation`](crate::model::Catalogue::with_orientation). For a matrix that lies
    /// bare in a module it is not: its channels are the last axis by convention, and heads are not
    /// looked for in it.
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

impl Parameter {
    /// What a bias of this length says of the weight beside it.
    pub(super) fn ask_bias(&mut self, length: usize) {
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

/// Role, orientation and whether that is known, of what lies in none of Burn's layers.
pub(super) fn by_shape(shape: &[usize]) -> (Role, Orientation, bool) {
    let vector = shape.iter().filter(|&&length| length > 1).count() < 2;
    let role = if vector { Role::Vector } else { Role::Matrix };
    (role, Orientation::InputOutput, false)
}
