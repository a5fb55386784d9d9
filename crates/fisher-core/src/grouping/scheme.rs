//! The ways to put a parameter's elements in groups, and what a group's number stands for.

use serde::{Deserialize, Serialize};

use super::heads::HeadLayout;
use crate::model::{Parameter, Role};

/// What one number of a group stands for: `r_iG`, the mean or the sum of `C_i` over its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupReduction {
    /// The mean over the group's elements: comparable between groups of different size.
    #[default]
    Mean,
    /// The sum over the group's elements: adds up to the trace.
    Sum,
}

/// How a parameter's elements are put in groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scheme {
    /// Every element by itself.
    Element,
    /// The whole tensor.
    Tensor,
    /// One group per output of a matrix or kernel. In a transposed convolution of several groups of
    /// channels an output is a group's, told by the input as well as by the kernel's second axis.
    OutputChannel,
    /// One group per input of a matrix or kernel; in a convolution of several groups of channels,
    /// told by the output as well.
    InputChannel,
    /// One group per attention head, for each block (Q, K, V, O) that lies in the parameter.
    Head,
    /// One group per row of a table.
    Row,
    /// Runs of `size` consecutive elements of the flattened parameter; the last may be shorter.
    Buckets {
        /// Elements per bucket.
        size: usize,
    },
    /// The group of every element of the flattened parameter, from 0 without gaps.
    Custom {
        /// One id per element.
        ids: Vec<u32>,
    },
}

impl Scheme {
    /// Heads for attention projections, channel for other matrices and convolutions, row for
    /// embeddings, element for vectors. Channels are outputs, but inputs for a transposed convolution
    /// of which nothing tells the number of groups: see [`Parameter::channel_groups`].
    pub fn default_of(parameter: &Parameter, heads: &HeadLayout) -> Self {
        if heads.has(parameter.path()) {
            return Self::Head;
        }
        match parameter.role() {
            Role::Embedding => Self::Row,
            Role::Vector => Self::Element,
            Role::Convolution
                if parameter.channel_groups().is_none() && parameter.output_axis() == Some(1) =>
            {
                Self::InputChannel
            }
            Role::Matrix | Role::Convolution if parameter.shape().len() > 1 => Self::OutputChannel,
            Role::Matrix | Role::Convolution => Self::Element,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Element => "element",
            Self::Tensor => "tensor",
            Self::OutputChannel => "channel",
            Self::InputChannel => "input_channel",
            Self::Head => "head",
            Self::Row => "row",
            Self::Buckets { .. } => "bucket",
            Self::Custom { .. } => "custom",
        }
    }
}
