//! Which Fisher.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which Fisher the gradients are of: only those that can be collected. A file of another one is not
/// read ([`Error::Format`](crate::Error::Format)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FisherKind {
    /// Labels from the data: the empirical Fisher.
    #[default]
    Empirical,
    /// Labels drawn from the model's own predictions: a Monte-Carlo estimate of the true Fisher.
    MonteCarlo,
}

impl fmt::Display for FisherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empirical => "empirical",
            Self::MonteCarlo => "monte_carlo",
        })
    }
}
