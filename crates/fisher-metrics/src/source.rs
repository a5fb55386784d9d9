//! What numbers of a report are numbers of.

use fisher_core::{
    ContributionUnit, FisherKind, GradientStore, GradientUnit, PerToken, Precision, TokenSum,
};
use serde::{Deserialize, Serialize};

/// The gradients that a report compares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Which Fisher they are of.
    pub kind: FisherKind,
    /// Unit of the losses: always `token_sum`.
    pub loss: String,
    /// Unit of the contributions that F is of: always `per_token`.
    pub unit: String,
    /// The type they were stored in.
    pub precision: Precision,
}

impl Source {
    pub(crate) fn of(store: &GradientStore) -> Self {
        Self {
            kind: store.kind(),
            loss: TokenSum::NAME.into(),
            unit: PerToken::NAME.into(),
            precision: store.precision(),
        }
    }
}
