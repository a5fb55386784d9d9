//! Heads and channels taken out: measured, predicted, and pruned.

use std::error::Error;

use burn::module::ParamGroup;
use fisher_core::gates::{GateKind, GateSet};
use fisher_metrics::candidates::{brain_damage_of, magnitude_of};
use fisher_metrics::pruning::{PruningConfig, Scores};
use fisher_metrics::truth::TruthReport;
use fisher_metrics::weights::Weights;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::chapters::{Setting, accuracies, heading};
use crate::model::CausalTransformer;
use crate::tasks::{Item, Task, TaskBatch};
use crate::training::{Mark, loader};
use crate::truth::{Seen, table};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Held-out samples that channels are taken out on: they are many.
const FEW: usize = 256;

/// What taking out a head does, by task.
#[derive(Debug, Clone)]
pub struct Ablated {
    /// Attention layer and head.
    pub name: String,
    /// The number of the attention layer.
    pub layer: usize,
    /// The head.
    pub head: usize,
    /// `−m_G + ½ F_ξG`.
    pub predicted: [f64; 2],
    /// What the loss rises by.
    pub increase: [f64; 2],
}

impl Setting<'_> {
    fn batches(&self, items: &[Item]) -> Result<Vec<TaskBatch>> {
        let batches = loader(items, &self.device.clone().autodiff());
        let batches = batches.iter().collect::<std::result::Result<_, _>>();
        Ok(batches.map_err(|e| e.to_string())?)
    }

    /// Scores of heads against ablation on held-out samples of each task, and what ablation found.
    ///
    /// # Errors
    /// What a step refused.
    pub fn truth_of_heads(
        &self,
        model: &CausalTransformer,
        seen: &Seen,
    ) -> Result<(Vec<Ablated>, Vec<TruthReport>)> {
        let (mut rows, mut reports): (Vec<Ablated>, _) = (Vec::new(), Vec::new());
        let attention = self.heads.attention().iter().enumerate();
        for (layer, attention) in attention {
            rows.extend((0..attention.heads()).map(|head| Ablated {
                name: format!("{} head {head}", attention.name()),
                layer,
                head,
                predicted: [0.0; 2],
                increase: [0.0; 2],
            }));
        }
        let weights = Weights::of(model)?;
        let catalogue = fisher_core::model::Catalogue::of(model)?;
        for (at, task) in Task::ALL.into_iter().enumerate() {
            let batches = self.batches(self.data.held_out(task))?;
            let (of, kind) = ((task.name(), &*batches), (GateKind::Head, "heads"));
            let (measured, report) = table(model, self.heads, seen, of, kind)?;
            let scores = seen.scores(
                &weights,
                &catalogue,
                self.heads,
                task.name(),
                GateKind::Head,
            )?;
            let increases = measured.gates.iter().map(|gate| gate.increase);
            for (row, (increase, predicted)) in rows.iter_mut().zip(increases.zip(&scores[0].1)) {
                row.increase[at] = increase;
                row.predicted[at] = *predicted;
            }
            reports.push(report);
        }
        Ok((rows, reports))
    }

    /// The same of channels, on fewer samples.
    ///
    /// # Errors
    /// What a step refused.
    pub fn truth_of_channels(
        &self,
        model: &CausalTransformer,
        seen: &Seen,
    ) -> Result<Vec<TruthReport>> {
        let of_task = |task: Task| {
            let items = self.data.held_out(task);
            let batches = self.batches(&items[..items.len().min(FEW)])?;
            let (of, kind) = ((task.name(), &*batches), (GateKind::Channel, "channels"));
            Ok(table(model, self.heads, seen, of, kind)?.1)
        };
        Task::ALL.into_iter().map(of_task).collect()
    }
}

/// Take each head out, and hold what gates, `½ Σ F θ²` and others say of heads and channels against what is measured.
///
/// # Errors
/// What an analysis refused.
pub fn ablate(setting: &Setting, model: &CausalTransformer, seen: &Seen) -> Result<Vec<Ablated>> {
    heading("Ablation: what each head is worth, measured and by its gate");
    let (rows, reports) = setting.truth_of_heads(model, seen)?;
    println!("{:<32}  {:>22}  {:>22}", "", "induction", "maximum");
    println!(
        "{:<32}  {:>10}  {:>10}  {:>10}  {:>10}",
        "", "gate", "loss +", "gate", "loss +"
    );
    for row in &rows {
        let ([p, q], [x, y]) = (row.predicted, row.increase);
        println!(
            "{:<32}  {p:>10.4}  {x:>10.4}  {q:>10.4}  {y:>10.4}",
            row.name
        );
    }
    for report in reports
        .into_iter()
        .chain(setting.truth_of_channels(model, seen)?)
    {
        println!("\n{report}");
    }
    Ok(rows)
}

/// What is left of a model without some of its groups.
#[derive(Debug, Clone)]
pub struct Pruned {
    /// What was taken out: `heads`, `channels`.
    pub what: &'static str,
    /// The share of it.
    pub share: f64,
    /// The score of which the lowest went.
    pub score: &'static str,
    /// How well both tasks are done without.
    pub marks: [Mark; 2],
    /// What the mean loss of both tasks rose by.
    pub increase: f64,
    /// What the gates said it would, each by itself.
    pub predicted: Option<f64>,
}

/// Take heads and channels out by several scores, of both tasks together.
///
/// # Errors
/// What an analysis refused.
pub fn pruned(setting: &Setting, model: &CausalTransformer, seen: &Seen) -> Result<Vec<Pruned>> {
    let weights = Weights::of(model)?;
    let before = setting.marks(model)?;
    let mean_loss = |marks: [Mark; 2]| 0.5 * (marks[0].loss + marks[1].loss);
    let mut rows = Vec::new();
    for (kind, what) in [(GateKind::Head, "heads"), (GateKind::Channel, "channels")] {
        let [a, b] = Task::ALL.map(|task| Scores::gates(&seen.gates, task.name(), kind));
        let gate = a?.mean_with(&b?)?;
        // In the order of the scores.
        let mut sets: Vec<GateSet> = seen.sets(kind);
        sets.sort_by(|a, b| a.parts()[0].path.cmp(&b.parts()[0].path));
        let damage =
            Task::ALL.map(|task| brain_damage_of(&seen.statistics, task.name(), &weights, &sets));
        let [a, b] = damage;
        let damage: Vec<f64> = a?.iter().zip(b?).map(|(a, b)| 0.5 * (a + b)).collect();
        let magnitude = magnitude_of(&weights, &sets)?;
        let rng = &mut StdRng::seed_from_u64(setting.seed);
        let random: Vec<f64> = damage.iter().map(|_| rng.random()).collect();
        let other = |values: Vec<f64>| {
            let mut values = values.into_iter();
            gate.clone().map(|_| values.next().unwrap_or_default())
        };
        let scores = [
            ("gate", gate.clone()),
            ("½ΣFθ²", other(damage)),
            ("Σ|θ|", other(magnitude)),
            ("random", other(random)),
        ];
        for share in [0.25, 0.5] {
            let mut pruning = PruningConfig::new(share);
            if kind == GateKind::Channel {
                // The logits of tokens.
                let output = ParamGroup::from_paths(["output.weight"].into());
                pruning = pruning.with_protected(vec![output]);
            }
            let pruning = pruning.init()?;
            for (score, scores) in &scores {
                let masks = pruning.forward(scores)?;
                let marks = setting.marks(&masks.apply(model.clone())?.0)?;
                rows.push(Pruned {
                    what,
                    share,
                    score,
                    marks,
                    increase: mean_loss(marks) - mean_loss(before),
                    predicted: masks.predicted_increase,
                });
            }
        }
    }
    Ok(rows)
}

/// Show what [`pruned`] finds.
///
/// # Errors
/// What an analysis refused.
pub fn prune(setting: &Setting, model: &CausalTransformer, seen: &Seen) -> Result<()> {
    heading("Structured pruning: accuracy and loss of both tasks without whole heads and channels");
    println!(
        "{:>8} {:<9} {:<8}  {:>11}  {:>11}  {:>13}  {:>14}",
        "without", "", "lowest", "induction", "maximum", "loss increase", "gates predict"
    );
    for row in pruned(setting, model, seen)? {
        println!(
            "{:>6.0} % {:<9} {:<8}  {}  {:>13.4}  {:>14}",
            100.0 * row.share,
            row.what,
            row.score,
            accuracies(row.marks),
            row.increase,
            row.predicted.map_or("–".into(), |p| format!("{p:.4}"))
        );
    }
    Ok(())
}
