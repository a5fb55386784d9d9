//! What a layer's positions are to each other.

use serde::{Deserialize, Serialize};

/// What a layer's positions are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Each is a sample's of its own: the terms of two positions are left out of `g_i g_iᵀ`. Tokens are.
    Expand,
    /// All see the same: inputs are averaged, gradients are summed. Patches of a picture that is pooled are.
    Reduce,
}

impl Positions {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Expand => "expand",
            Self::Reduce => "reduce",
        }
    }
}
