//! How two tasks may be merged.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an overlap suggests for merging two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// They need the same weights: gradient surgery or adapters.
    Surgery,
    /// They share some: task arithmetic with chosen weights.
    WeightedArithmetic,
    /// They share little: plain task arithmetic.
    Arithmetic,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Surgery => "gradient surgery or adapters",
            Self::WeightedArithmetic => "task arithmetic with chosen weights",
            Self::Arithmetic => "plain task arithmetic",
        })
    }
}
