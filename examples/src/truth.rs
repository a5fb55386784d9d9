//! Scores of heads and channels held against ablation, for any model.

use std::error::Error;

use fisher_core::gates::{GateKind, GateQuantity, GateScores, GateSet, GatesConfig};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::Catalogue;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::candidates::{brain_damage_of, fisher_of, gates_of, magnitude_of};
use fisher_metrics::truth::{TruthReport, TruthTableConfig};
use fisher_metrics::weights::Weights;
use fisher_train::ablation::{AblationConfig, AblationReport};
use fisher_train::batch::SampleLoss;
use fisher_train::collect::CollectorConfig;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Statistics and gates of a model on the same samples, in one pass.
pub struct Seen {
    /// By element and by group.
    pub statistics: Statistics,
    /// Layers, heads and channels.
    pub gates: GateScores,
}

/// Collect statistics and gates of a task in one pass.
///
/// # Errors
/// What kept them from being collected.
pub fn see<M: SampleLoss>(
    model: &M,
    heads: &HeadLayout,
    tasks: Vec<(&str, Vec<M::Batch>)>,
) -> Result<Seen> {
    let mut statistics = StatisticsConfig::new().init_with_heads(model, heads)?;
    let mut gates = GatesConfig::new().init_with_heads(model, heads)?;
    let collector = CollectorConfig::new().init()?;
    for (task, batches) in tasks {
        collector.collect_batches(model, task, batches, (&mut statistics, &mut gates))?;
    }
    Ok(Seen {
        statistics,
        gates: gates.into_scores(),
    })
}

impl Seen {
    /// The gates of one kind.
    pub fn sets(&self, kind: GateKind) -> Vec<GateSet> {
        let sets = self.gates.sets().iter();
        sets.filter(|set| set.kind() == kind).cloned().collect()
    }

    /// Every score of the gates of one kind, by name: the gate's prediction and its parts, `½ Σ F θ²` (of heads also
    /// over all of Q, K, V and O, of which the heads are to be found in `heads`), `Σ F`, `Σ |θ|`.
    ///
    /// # Errors
    /// What a score refused.
    pub fn scores(
        &self,
        weights: &Weights,
        catalogue: &Catalogue,
        heads: &HeadLayout,
        task: &str,
        kind: GateKind,
    ) -> Result<Vec<(&'static str, Vec<f64>)>> {
        let sets = self.sets(kind);
        let gate = |of| gates_of(&self.gates, task, of, &sets);
        let predicted = gate(GateQuantity::Predicted)?;
        let first: Vec<f64> = gate(GateQuantity::FirstOrder)?
            .iter()
            .map(|m| m.abs())
            .collect();
        let mut scores = vec![
            ("gate −m + ½F_ξ", predicted),
            ("gate |m|", first),
            ("gate F_ξ", gate(GateQuantity::Fisher)?),
            (
                "½ΣFθ²",
                brain_damage_of(&self.statistics, task, weights, &sets)?,
            ),
            ("ΣF", fisher_of(&self.statistics, task, &sets)?),
            ("Σ|θ|", magnitude_of(weights, &sets)?),
        ];
        if kind == GateKind::Head {
            let whole = whole_heads(catalogue, heads)?;
            let damage = brain_damage_of(&self.statistics, task, weights, &whole)?;
            scores.insert(4, ("½ΣFθ² of Q, K, V, O", damage));
        }
        Ok(scores)
    }
}

/// All slices of each head, with as many heads in K and V as in Q.
fn whole_heads(catalogue: &Catalogue, heads: &HeadLayout) -> Result<Vec<GateSet>> {
    let mut sets = Vec::new();
    for attention in heads.attention() {
        let mut parts = Vec::new();
        for path in attention.paths() {
            let parameter = catalogue.require(path)?;
            let scheme = fisher_core::grouping::Scheme::Head;
            for grouping in fisher_core::grouping::Grouping::of(parameter, &scheme, heads)? {
                let path = path.to_owned();
                parts.push(fisher_core::gates::GatePart { path, grouping });
            }
        }
        sets.push(GateSet::new(GateKind::Custom, attention.name(), parts)?);
    }
    Ok(sets)
}

/// Take out each gate of one kind on held-out samples, and hold every score against that.
///
/// # Errors
/// What a step refused.
pub fn table<M: SampleLoss>(
    model: &M,
    heads: &HeadLayout,
    seen: &Seen,
    (task, held_out): (&str, &[M::Batch]),
    (kind, what): (GateKind, &str),
) -> Result<(AblationReport, TruthReport)> {
    let ablation = AblationConfig::new().init()?;
    let measured = ablation.forward(model, task, held_out, &seen.sets(kind))?;
    let (weights, catalogue) = (Weights::of(model)?, Catalogue::of(model)?);
    let scores = seen.scores(&weights, &catalogue, heads, task, kind)?;
    let scores: Vec<(&str, &[f64])> = scores.iter().map(|(name, of)| (*name, &**of)).collect();
    let truth = TruthTableConfig::new().init()?;
    let report = truth.forward(&measured.measured(kind, what)?, &scores)?;
    Ok((measured, report))
}

/// The median of some numbers and their range, such as `0.90 (0.71 to 0.96)`.
pub fn median_and_range(values: &[f64], digits: usize) -> String {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else {
        return "–".into();
    };
    let middle = 0.5 * (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]);
    format!("{middle:.digits$} ({first:.digits$} to {last:.digits$})")
}
