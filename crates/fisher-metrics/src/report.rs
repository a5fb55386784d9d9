//! What reports share: the samples and gradients that they name, and numbers that JSON can hold.

use std::fmt;

use fisher_core::gradient::{ContributionUnit, GradientUnit, PerToken, TokenSum};
use fisher_core::kind::FisherKind;
use fisher_core::moments::ConfidenceInterval;
use fisher_core::provenance::Provenance;
use fisher_core::store::{GradientStore, Precision};
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
pub struct GradientSource {
    /// Which Fisher they are of.
    pub kind: FisherKind,
    /// Unit of the losses: always `token_sum`.
    pub loss: String,
    /// Unit of the contributions that F is of: always `per_token`.
    pub unit: String,
    /// The type they were stored in.
    pub precision: Precision,
}

impl GradientSource {
    pub(crate) fn of(store: &GradientStore) -> Self {
        Self {
            kind: store.kind(),
            loss: TokenSum::NAME.into(),
            unit: PerToken::NAME.into(),
            precision: store.precision(),
        }
    }
}

/// A sample of a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SampleRef {
    /// The task.
    pub task: String,
    /// The sample's id.
    pub id: String,
}

impl fmt::Display for SampleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sample {} of {}", self.id, self.task)
    }
}

/// A number that a report cannot do without: JSON has no infinite ones, and writes them as `null`.
#[doc(hidden)]
pub fn finite(value: f64, what: &str) -> Result<f64> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::OutOfRange { what: what.into() })
}

/// A number that may be absent.
#[doc(hidden)]
pub fn if_finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// An interval that JSON can hold, or none.
pub(crate) fn bounded(interval: ConfidenceInterval) -> Option<ConfidenceInterval> {
    let ends = [interval.lower, interval.upper];
    ends.iter().all(|end| end.is_finite()).then_some(interval)
}
