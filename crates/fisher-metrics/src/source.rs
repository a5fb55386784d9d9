//! What numbers of a report are numbers of.

use fisher_core::{
    ContributionUnit, FisherKind, GradientStore, GradientUnit, PerToken, Precision, Provenance,
    TokenSum,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Whether the F of two statistics are of one kind and unit, so that they may be added, averaged or
/// weighed against each other. They may be of different models.
///
/// # Errors
/// [`Error::OtherFisher`], naming the first difference.
pub fn same_fisher(ours: &Provenance, theirs: &Provenance) -> Result<()> {
    same("kind", ours.kind.to_string(), theirs.kind.to_string())?;
    same("contribution unit", ours.unit.clone(), theirs.unit.clone())
}

/// Whether groups' numbers stand for the same in two statistics.
///
/// # Errors
/// [`Error::OtherFisher`]
pub fn same_reduction(ours: &Provenance, theirs: &Provenance) -> Result<()> {
    let [ours, theirs] = [ours, theirs].map(|p| format!("{:?}", p.reduction));
    same("group reduction", ours, theirs)
}

fn same(what: &'static str, ours: String, theirs: String) -> Result<()> {
    if ours == theirs {
        return Ok(());
    }
    Err(Error::OtherFisher { what, ours, theirs })
}

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
