//! Which Fisher.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which Fisher the gradients are of: only those that can be collected. A file of another one is not
/// read ([`Error::Format`](crate::Error::Format)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FisherKind {
    /// Labels from the data: the empirical Fisher. Where the model is not that of its data it is not the
    /// Fisher information, and near convergence a few samples that the model gets wrong make it
    /// (Kunstner, Balles & Hennig 2019, "Limitations of the empirical Fisher approximation").
    #[default]
    Empirical,
    /// Labels drawn from the model's own predictions: an unbiased Monte-Carlo estimate of the true Fisher
    /// at the inputs of the data. With `K` draws a sample, `C_i = (1/K) Σ_k g_ik ⊙ g_ik / T_i`.
    MonteCarlo,
    /// The expectation over the model's own predictions, class by class:
    /// `C_i = Σ_t Σ_y p_ty g_ty ⊙ g_ty / T_i`, what Monte-Carlo estimates. `g_ty` is the gradient of
    /// `−log p(y | ..)` at position `t` alone: given the inputs, labels of positions are independent, and the score of each
    /// is 0 on average, so cross terms between positions vanish.
    Exact,
    /// Labels from the data, every active token a sample of its own: `C_t = g_t ⊙ g_t`, with `T = 1`. It has no cross
    /// terms between the tokens of a sequence. Not to be confused with the unit `per token`
    /// ([`PerToken`](crate::gradient::PerToken)), which divides the square of a sample's whole gradient by `T_i`.
    TokenLevel,
    /// Labels from the data, the mean gradient taken off: with `u_i = g_i / √T_i`,
    /// `C_i = (u_i − ū) ⊙ (u_i − ū)`, whose mean is `F − ū ⊙ ū`. Where `T_i = 1` it is the diagonal of
    /// the covariance of the gradients, divided by `n`.
    Centred,
}

impl fmt::Display for FisherKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empirical => "empirical",
            Self::MonteCarlo => "monte_carlo",
            Self::Exact => "exact",
            Self::TokenLevel => "token_level",
            Self::Centred => "centred",
        })
    }
}
