//! Sets of gates: which weights each gate is on.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::grouping::Grouping;

/// What a gate is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GateKind {
    /// All trainable weights of a layer.
    Layer,
    /// What an attention head puts out: its slice of O alone. Without it nothing of the head is left, so a gate on
    /// its slices of Q, K and V as well would count one removal several times.
    Head,
    /// What a key/value head that several query heads share puts out: its slice of V.
    KvHead,
    /// An output channel of a matrix or kernel, with its bias: a neuron.
    Channel,
    /// Groups of the caller's.
    Custom,
}

impl fmt::Display for GateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layer => "layer",
            Self::Head => "head",
            Self::KvHead => "kv head",
            Self::Channel => "channel",
            Self::Custom => "group",
        })
    }
}

/// The part of a set's gates that lies in one parameter: gate `g` is on its group `g`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatePart {
    /// Path of the parameter.
    pub path: String,
    /// Its groups, one a gate.
    pub grouping: Grouping,
}

/// Gates of one kind that lie side by side: the heads of an attention layer, the channels of a matrix, one layer.
///
/// Gate `g` is on group `g` of every [`GatePart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct GateSet {
    kind: GateKind,
    name: String,
    parts: Vec<GatePart>,
}

#[derive(Serialize, Deserialize)]
struct Unchecked {
    kind: GateKind,
    name: String,
    parts: Vec<GatePart>,
}

impl From<GateSet> for Unchecked {
    fn from(GateSet { kind, name, parts }: GateSet) -> Self {
        Self { kind, name, parts }
    }
}

impl TryFrom<Unchecked> for GateSet {
    type Error = Error;

    fn try_from(Unchecked { kind, name, parts }: Unchecked) -> Result<Self> {
        Self::new(kind, name, parts)
    }
}

impl GateSet {
    /// Gates on groups of one's own, in one parameter or several.
    ///
    /// # Errors
    /// [`Error::Argument`] without parts, for parts with different numbers of groups, and for two of one parameter.
    pub fn new(kind: GateKind, name: impl Into<String>, parts: Vec<GatePart>) -> Result<Self> {
        let name = name.into();
        let refuse = |expected, found| {
            Err(Error::Argument {
                name: "parts",
                expected,
                found,
            })
        };
        let Some(first) = parts.first() else {
            return refuse("at least one", format!("none of `{name}`"));
        };
        let gates = first.grouping.groups();
        let odd = parts.iter().find(|p| p.grouping.groups() != gates);
        if let Some(odd) = odd {
            let found = format!("{gates} and {} of `{name}`", odd.grouping.groups());
            return refuse("of as many groups each", found);
        }
        let twice =
            (1..parts.len()).find(|&at| parts[..at].iter().any(|p| p.path == parts[at].path));
        if let Some(at) = twice {
            return refuse(
                "of different parameters",
                format!("`{}` twice", parts[at].path),
            );
        }
        Ok(Self { kind, name, parts })
    }

    /// What the gates are on.
    pub fn kind(&self) -> GateKind {
        self.kind
    }

    /// What they lie in: the path of a layer, of an attention layer, of a parameter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where their weights lie.
    pub fn parts(&self) -> &[GatePart] {
        &self.parts
    }

    /// The number of gates.
    pub fn gates(&self) -> usize {
        self.parts[0].grouping.groups()
    }

    /// The name of a gate, such as `layers.1.mha head 3`.
    pub fn label(&self, gate: usize) -> String {
        match self.kind {
            GateKind::Layer => self.name.clone(),
            GateKind::Custom if self.gates() == 1 => self.name.clone(),
            kind => format!("{} {kind} {gate}", self.name),
        }
    }

    /// The names of all gates.
    pub fn labels(&self) -> impl Iterator<Item = String> {
        (0..self.gates()).map(|gate| self.label(gate))
    }
}
