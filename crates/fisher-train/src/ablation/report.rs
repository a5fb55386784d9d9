//! What taking parts out did.

use std::fmt;

use fisher_core::gates::GateKind;
use fisher_core::moments::ConfidenceInterval;
use fisher_core::sample::SampleRecord;
use fisher_metrics::ranks::RankSet;
use fisher_metrics::truth::Measured;
use serde::{Deserialize, Serialize};

use super::config::{AblationInterval, AblationKind, AblationUnit};

/// What taking out each gate did to the losses of held-out samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblationReport {
    /// Version of this form.
    pub schema: u64,
    /// The task whose samples these are.
    pub task: String,
    /// [`hash_weights`](fisher_core::model::hash_weights) of the whole model.
    pub model: String,
    /// What became of the weights.
    pub kind: AblationKind,
    /// In what losses are counted.
    pub unit: AblationUnit,
    /// Draws that were averaged, for [`AblationKind::Resample`].
    pub draws: Option<usize>,
    /// Seed of draws.
    pub seed: u64,
    /// Level of the intervals and of the ranks. For [`AblationKind::Resample`] both are over samples alone, for the weights
    /// that were drawn: what other draws would come to is not in them.
    pub level: f64,
    /// How intervals were had.
    pub interval: AblationInterval,
    /// Independent clusters of samples: as many as samples where none names a cluster.
    pub clusters: usize,
    /// The mean loss of the whole model, in the unit.
    pub loss: f64,
    /// The samples.
    pub samples: Vec<SampleRecord>,
    /// The gates, in the order of their sets.
    pub gates: Vec<AblatedGate>,
    /// `Δ_i`, `[samples, gates]`: not in the JSON, whose size would grow with it.
    #[serde(skip)]
    pub(super) rows: Vec<f64>,
}

/// What taking out one gate did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AblatedGate {
    /// What it is on.
    pub kind: GateKind,
    /// Its name.
    pub name: String,
    /// The mean of `Δ_i`: below 0 where the loss falls.
    pub increase: f64,
    /// Its standard error over clusters; `None` for fewer than two.
    pub standard_error: Option<f64>,
    /// Its interval, of this gate alone: over many gates some miss.
    pub interval: Option<ConfidenceInterval>,
    /// Its rank among the gates of its kind, 1 for the largest increase, as far as the samples tell
    /// ([`rank_sets_of_differences`](fisher_metrics::ranks::rank_sets_of_differences)): the sets of all gates of the
    /// kind are to hold at once, at the level of the report. `None` for fewer than two clusters, for a gate that is the only one
    /// of its kind, and for more than 512 of it.
    pub ranks: Option<RankSet>,
}

impl AblationReport {
    /// `Δ_i = L_i(without the gate) − L_i` in the unit, `[samples, gates]`. Empty in a report that was read from JSON.
    pub fn rows(&self) -> &[f64] {
        &self.rows
    }

    /// What was measured of the gates of one kind, to hold scores against. `what` they are is said in words, such as
    /// `heads`.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Argument`] for fewer than two such gates, and for a report without its rows.
    pub fn measured(&self, kind: GateKind, what: &str) -> fisher_metrics::Result<Measured> {
        let of_kind = self.gates.iter().enumerate();
        let of_kind = of_kind.filter(|(_, gate)| gate.kind == kind);
        let (places, names): (Vec<usize>, Vec<String>) =
            of_kind.map(|(at, gate)| (at, gate.name.clone())).unzip();
        let rows = self.rows.chunks(self.gates.len().max(1));
        let rows = rows.flat_map(|row| places.iter().map(|&at| row[at]));
        Measured::new(
            &self.task,
            what,
            names,
            self.samples.clone(),
            rows.collect(),
        )
    }
}

impl fmt::Display for AblationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            AblationUnit::PerToken => "nats per token",
            AblationUnit::TokenSum => "nats per sample",
        };
        let what = match self.kind {
            AblationKind::Zero => "its weights 0".to_owned(),
            AblationKind::Mean => "its outputs at their mean".to_owned(),
            AblationKind::Resample => format!(
                "its weights drawn from the rest of their tensor (the mean of {} draws; what is said of errors is for \
                 these draws, not for others)",
                self.draws.unwrap_or(1)
            ),
        };
        let level = 100.0 * self.level;
        writeln!(
            f,
            "{}: what the loss of {} samples ({} clusters) rises by with {what}; {unit}, {level:.0} % intervals of each \
             gate alone; the whole model has {:.4}",
            self.task,
            self.samples.len(),
            self.clusters,
            self.loss
        )?;
        if self.gates.iter().any(|gate| gate.ranks.is_some()) {
            writeln!(
                f,
                "The order of the lines is that of the means. Ranks are among the gates of a kind, as far as these samples \
                 tell them apart (nominal {level:.0} % for all of a kind at once)"
            )?;
        }
        let mut order: Vec<&AblatedGate> = self.gates.iter().collect();
        order.sort_by(|a, b| {
            b.increase
                .total_cmp(&a.increase)
                .then_with(|| a.name.cmp(&b.name))
        });
        for gate in order {
            write!(f, "\n  {:<40} {:>10.4}", gate.name, gate.increase)?;
            if let Some(ConfidenceInterval { lower, upper }) = gate.interval {
                write!(f, "  {lower:.4} to {upper:.4}")?;
            }
            if let Some(ranks) = gate.ranks {
                write!(f, "  rank {ranks}")?;
            }
        }
        Ok(())
    }
}
