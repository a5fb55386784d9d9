//! Where statistics come from: what must agree before two of them may be merged.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::grouping::GroupReduction;
use crate::kind::FisherKind;

/// Where statistics come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Which Fisher.
    pub kind: FisherKind,
    /// Unit of the losses whose gradients were taken: always `token_sum`.
    pub loss: String,
    /// Unit of the contributions: `per_token` or `raw`.
    pub unit: String,
    /// What a group's number stands for.
    pub reduction: GroupReduction,
    /// [`hash_weights`](crate::model::hash_weights) of the model; or, of statistics whose weights moved while they were
    /// accumulated, `training from` and the hash of the weights that training began with.
    pub model: String,
    /// The steps of training at whose weights samples were seen, where weights moved meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
    /// The seeds of the runs that went in.
    pub seeds: BTreeSet<u64>,
}

/// The first and the last step of training that went into statistics. A step's number is that of
/// the batches its weights were trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl Provenance {
    /// Take in what may differ in statistics that are merged.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.seeds.extend(other.seeds);
        self.steps = match (self.steps, other.steps) {
            (Some(ours), Some(theirs)) => Some(Steps {
                first: ours.first.min(theirs.first),
                last: ours.last.max(theirs.last),
            }),
            (ours, theirs) => ours.or(theirs),
        };
    }

    /// Whether statistics of the two may be merged. Seeds may differ.
    pub(crate) fn compatible(&self, other: &Self) -> Result<()> {
        let differs = |what: &str, ours: String, theirs: String| {
            if ours == theirs {
                return Ok(());
            }
            Err(Error::Incompatible {
                what: what.into(),
                ours,
                theirs,
            })
        };
        differs(
            "the Fisher kind",
            self.kind.to_string(),
            other.kind.to_string(),
        )?;
        differs(
            "the contribution unit",
            self.unit.clone(),
            other.unit.clone(),
        )?;
        differs(
            "the group reduction",
            format!("{:?}", self.reduction),
            format!("{:?}", other.reduction),
        )?;
        differs(
            "the model (hash of its weights)",
            self.model.clone(),
            other.model.clone(),
        )
    }
}
