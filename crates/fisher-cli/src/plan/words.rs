//! A plan in words, and as JSON for quantizers and PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use serde_json::{Value, json};

use super::args::Distinctions;
use super::resolve::By;
use super::verify::Comparison;
use crate::words::{count, figures};

/// A plan, made.
#[derive(Debug)]
pub(super) struct Made {
    /// `bits` or `rank`.
    pub(super) kind: &'static str,
    /// What was asked for, and what is spent on average.
    pub(super) budget: [f64; 2],
    /// The level that scores are of.
    pub(super) reference: f64,
    pub(super) distinctions: Distinctions,
    pub(super) group_size: Option<usize>,
    pub(super) tasks: Vec<String>,
    pub(super) by: By,
    pub(super) rows: Vec<Row>,
    /// Costs: of the plan, of the same level for all, of each tensor by its own estimate, and the bound of that.
    pub(super) costs: Costs,
    pub(super) measured: Vec<Comparison>,
}

#[derive(Debug)]
pub(super) struct Costs {
    pub(super) plan: f64,
    pub(super) uniform: f64,
    pub(super) all: f64,
    pub(super) bound: f64,
    /// tr F of the matrices, for ranks.
    pub(super) whole: f64,
    /// The interval of the plan's cost less that of the uniform one, where samples are known.
    pub(super) less: Option<[f64; 2]>,
}

/// A tensor.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) level: u32,
    pub(super) alone: u32,
    pub(super) score: f64,
    pub(super) interval: Option<[f64; 2]>,
    pub(super) ranks: [usize; 2],
    pub(super) tie: usize,
    pub(super) split: bool,
    pub(super) cost: f64,
}

/// Rows that are printed.
const SHOWN: usize = 40;

impl Made {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let kind = self.kind;
        let ties: BTreeSet<usize> = self.rows.iter().map(|row| row.tie).collect();
        let [asked, spent] = self.budget;
        let _ = writeln!(
            text,
            "{} matrices, {kind} {asked} on average asked for, {spent:.3} planned; by the loss of {}.",
            self.rows.len(),
            self.tasks.join(" and ")
        );
        let _ = writeln!(text, "{}", self.resolution(ties.len()));
        let levels: BTreeSet<u32> = self.rows.iter().map(|row| row.level).collect();
        match (ties.len(), levels.first()) {
            (1, Some(level)) if levels.len() == 1 => {
                let _ = writeln!(text, "All get {}.", self.level(*level));
            }
            _ => self.table(&mut text),
        }
        let _ = writeln!(text, "\n{}", self.predicted());
        if self.rows.iter().any(|row| row.split) {
            let _ = writeln!(
                text,
                "The budget ended inside of a tie: which of its tensors (split) get more is their estimates' choice, not resolved."
            );
        }
        for comparison in &self.measured {
            text.push_str(&measured(comparison));
        }
        text
    }

    /// A line for each tensor, the largest score first.
    fn table(&self, text: &mut String) {
        let of = match self.kind {
            "bits" => "the predicted rise of the loss for each weight, in nats a token, at",
            _ => {
                "the squared gradient, a token, that an adapter captures for each of its parameters, at"
            }
        };
        let _ = writeln!(
            text,
            "\nScores are {of} {}; ranks are those that the samples leave open.",
            self.level(self.reference)
        );
        let _ = writeln!(
            text,
            "{:>5}  {:<11}  {:>4}  {:<9} tensor",
            self.kind, "score", "tie", "ranks"
        );
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| b.score.total_cmp(&a.score));
        for row in rows.iter().take(SHOWN) {
            let _ = writeln!(
                text,
                "{:>5}  {:<11.3e}  {:>4}  {:<9} {}{}",
                row.level,
                row.score,
                row.tie + 1,
                format!("{}-{}", row.ranks[0], row.ranks[1]),
                row.name,
                if row.split { " (split)" } else { "" }
            );
        }
        if rows.len() > SHOWN {
            let _ = writeln!(text, "  and {} more, in the file", rows.len() - SHOWN);
        }
    }

    /// `4 bits`, `rank 16`.
    fn level(&self, level: impl fmt::Display) -> String {
        match self.kind {
            "bits" => format!("{level} bits"),
            _ => format!("rank {level}"),
        }
    }

    fn resolution(&self, ties: usize) -> String {
        if self.distinctions == Distinctions::All {
            return "Every difference between tensors is taken for real, resolved by the samples or not (--distinctions all)."
                .into();
        }
        let by = match self.by {
            By::Samples => "their scores at single samples (rank sets, 95 % for all at once)",
            By::Bounds => {
                "bounds of their errors alone, since the run kept no gradients of all of them (--compare)"
            }
            By::Nothing => {
                return "Tensors are not told apart: nothing is known of the errors of their scores.".into();
            }
        };
        match ties {
            1 => format!("No difference between tensors is resolved by {by}: all of them tie."),
            n => format!("Tensors are told apart by {by}: {n} groups."),
        }
    }

    fn predicted(&self) -> String {
        let costs = &self.costs;
        let all = self.distinctions == Distinctions::All;
        if self.kind == "bits" {
            let [plan, uniform, alone, bound] =
                [costs.plan, costs.uniform, costs.all, costs.bound].map(figures);
            let gains = gains(costs.uniform - costs.plan, costs.less, "nats a token");
            let alone = if all {
                String::new()
            } else {
                format!(" With --distinctions all it is {alone}.")
            };
            return format!(
                "Predicted rise of the loss: {plan} nats a token; {uniform} with the same bits for all. {gains}{alone} No choice \
                 within the budget is predicted to cost less than {bound}."
            );
        }
        let percent = 100.0 / costs.whole;
        let [plan, uniform, alone, bound] = [costs.plan, costs.uniform, costs.all, costs.bound]
            .map(|cost| figures(100.0 - percent * cost));
        let less = costs.less.map(|ends| ends.map(|end| percent * end));
        let gains = gains(
            percent * (costs.uniform - costs.plan),
            less,
            "percentage points",
        );
        let alone = if all {
            String::new()
        } else {
            format!(" With --distinctions all it is {alone} %.")
        };
        format!(
            "Of the squared gradient adapters capture at least {plan} % at their start; {uniform} % with the same rank for all. \
             {gains}{alone} By the same bound no choice within the budget captures more than {bound} %. Not measured: how much better training ends."
        )
    }

    pub(super) fn json(&self) -> Value {
        let module = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
        let mut json = json!({
            "schema": 1,
            "program": concat!("fisher ", env!("CARGO_PKG_VERSION")),
            "kind": self.kind,
            "budget": self.budget[0],
            "average": self.budget[1],
            "tasks": self.tasks,
            "distinctions": self.distinctions,
            "told_apart_by": self.by,
            "predicted": {
                "plan": self.costs.plan,
                "uniform": self.costs.uniform,
                "every_difference": self.costs.all,
                "bound": self.costs.bound,
                "plan_less_uniform": self.costs.less,
            },
            "tensors": self.rows.iter().map(|row| (row.name.clone(), json!({
                "level": row.level,
                "level_by_own_estimate": row.alone,
                "score": row.score,
                "score_interval": row.interval,
                "ranks": row.ranks,
                "tie": row.tie + 1,
                "split": row.split,
                "predicted": row.cost,
            }))).collect::<BTreeMap<_, _>>(),
            "measured": self.measured,
        });
        let levels = self.rows.iter().map(|row| (module(&row.name), row.level));
        match self.group_size {
            Some(group) => {
                // As AutoRound's `layer_config` has it; others take name and bits from here.
                let layers: BTreeMap<_, _> = levels
                    .map(|(name, bits)| {
                        (
                            name,
                            json!({ "bits": bits, "group_size": group, "sym": true }),
                        )
                    })
                    .collect();
                json["group_size"] = group.into();
                json["bits"] = self
                    .rows
                    .iter()
                    .map(|row| (row.name.clone(), row.level))
                    .collect();
                json["layer_config"] = json!(layers);
            }
            None => {
                let ranks: BTreeMap<_, _> = levels.collect();
                json["peft"] = json!({
                    "r": self.budget[0] as u64,
                    "lora_alpha": self.budget[0] as u64,
                    "target_modules": ranks.keys().collect::<Vec<_>>(),
                    "rank_pattern": ranks,
                    // alpha / r stays 1.
                    "alpha_pattern": ranks,
                });
            }
        }
        json
    }
}

/// What a plan is predicted to gain over the same level for all, where it costs `less`: the interval of its cost less theirs.
fn gains(gain: f64, less: Option<[f64; 2]>, unit: &str) -> String {
    let interval = |[lower, upper]: [f64; 2]| {
        let [lower, upper] = [lower, upper].map(figures);
        format!("95 % interval over samples: {lower} to {upper}")
    };
    match less {
        Some([0.0, 0.0]) => "That is this plan.".into(),
        Some([lower, upper]) if upper < 0.0 => format!(
            "The plan is better by {} {unit} ({}).",
            figures(gain),
            interval([-upper, -lower])
        ),
        Some([lower, upper]) if lower > 0.0 => format!(
            "The plan is WORSE by {} {unit} ({}).",
            figures(-gain),
            interval([lower, upper])
        ),
        Some([lower, upper]) => format!(
            "Which is better is not resolved: the plan by {} {unit} ({}).",
            figures(gain),
            interval([-upper, -lower])
        ),
        None => "The difference has no interval: the run kept no gradients of single samples (--compare), or has one sample.".into(),
    }
}

fn measured(comparison: &Comparison) -> String {
    let mut text = format!(
        "\nMeasured on {} of {} (loss {:.4} nats a token before): rise in nats a token, and its 95 % interval over samples\n",
        count(comparison.samples, "sample"),
        comparison.task,
        comparison.loss
    );
    let signed = |x: f64| {
        let sign = if x > 0.0 { "+" } else { "" };
        format!("{sign}{}", figures(x))
    };
    for rise in &comparison.rises {
        let interval = match rise.interval {
            Some([lower, upper]) => format!("{} to {}", signed(lower), signed(upper)),
            None => "no interval".into(),
        };
        let _ = writeln!(
            text,
            "  {:>9}  {interval:<22}  {}",
            signed(rise.mean),
            rise.of
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plan for two tensors that tie, or do not.
    fn made(kind: &'static str, ties: [usize; 2], levels: [u32; 2], less: [f64; 2]) -> Made {
        let row = |at: usize| Row {
            name: format!("tensor {at}"),
            level: levels[at],
            alone: levels[at],
            score: 1e-6,
            interval: None,
            ranks: [1, 2],
            tie: ties[at],
            split: false,
            cost: 1.0,
        };
        Made {
            kind,
            budget: [4.0, 4.0],
            reference: 4.0,
            distinctions: Distinctions::Resolved,
            group_size: None,
            tasks: vec!["code".into()],
            by: By::Samples,
            rows: vec![row(0), row(1)],
            costs: Costs {
                plan: 2.113,
                uniform: 2.886,
                all: 1.342,
                bound: 1.241,
                whole: 10.0,
                less: Some(less),
            },
            measured: Vec::new(),
        }
    }

    #[test]
    fn what_ties_is_told_once() {
        let text = made("bits", [0, 0], [4, 4], [0.0, 0.0]).text();
        assert!(
            text.contains("all of them tie.\nAll get 4 bits.\n"),
            "{text}"
        );
        assert!(!text.contains("tensor 0"), "{text}");
        let text = made("rank", [0, 1], [4, 5], [-1.36, -0.186]).text();
        assert!(
            text.contains("tensor 0") && text.contains("at rank 4;"),
            "{text}"
        );
    }

    #[test]
    fn gains_are_told_with_their_level() {
        let text = made("bits", [0, 1], [4, 5], [-1.36, -0.186]).text();
        for said in [
            "Predicted rise of the loss: 2.11 nats a token; 2.89 with the same bits for all.",
            "The plan is better by 0.773 nats a token (95 % interval over samples: 0.186 to 1.36).",
            "With --distinctions all it is 1.34. No choice within the budget is predicted to cost less than 1.24.",
            "in nats a token, at 4 bits",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let text = made("rank", [0, 1], [4, 5], [0.2, 0.4]).text();
        for said in [
            "at least 78.9 % at their start; 71.1 % with the same rank for all.",
            "(95 % interval over samples: 2 to 4)",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let text = made("bits", [0, 1], [4, 5], [-0.1, 0.2]).text();
        assert!(text.contains("not resolved"), "{text}");
    }

    #[test]
    fn differences_taken_for_real_are_not_called_resolved() {
        let mut made = made("bits", [0, 1], [4, 5], [-1.0, -0.5]);
        made.distinctions = Distinctions::All;
        let text = made.text();
        assert!(
            text.contains("taken for real, resolved by the samples or not"),
            "{text}"
        );
        assert!(
            !text.contains("told apart") && !text.contains("2 groups"),
            "{text}"
        );
        assert_eq!(made.json()["distinctions"], "all");
    }
}
