//! A plan in words, and as JSON for quantizers and PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::{Value, json};

use super::resolve::By;
use super::verify::Comparison;

/// A plan, made.
#[derive(Debug)]
pub(super) struct Made {
    /// `bits` or `rank`.
    pub(super) kind: &'static str,
    /// What was asked for, and what is spent on average.
    pub(super) budget: [f64; 2],
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
        let unit = self.kind;
        let ties: BTreeSet<usize> = self.rows.iter().map(|row| row.tie).collect();
        let [asked, spent] = self.budget;
        let _ = writeln!(
            text,
            "{} matrices, {unit} {asked} on average asked for, {spent:.3} planned; by the loss of {}.",
            self.rows.len(),
            self.tasks.join(" and ")
        );
        let _ = writeln!(text, "{}", self.resolution(ties.len()));
        let _ = writeln!(
            text,
            "\n{:>5}  {:<11}  {:>4}  {:<9} tensor",
            unit, "score", "tie", "ranks"
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

    fn resolution(&self, ties: usize) -> String {
        let how = match self.by {
            By::Samples => {
                "told apart by their scores at single samples (rank sets, 95 % for all at once)"
            }
            By::Bounds => {
                "told apart by bounds of their errors alone, since the run kept no gradients of all of them (--compare)"
            }
            By::Nothing => "not told apart: nothing is known of the errors of their scores",
        };
        match ties {
            1 => format!("Tensors are {how}. All of them tie: no difference is resolved."),
            n => format!("Tensors are {how}: {n} groups."),
        }
    }

    fn predicted(&self) -> String {
        let costs = &self.costs;
        let less = match costs.less {
            Some([0.0, 0.0]) => ", which is this plan".into(),
            Some([lower, upper]) if upper < 0.0 => {
                format!(", less by [{:.2e}, {:.2e}] over samples", -upper, -lower)
            }
            Some([lower, upper]) if lower > 0.0 => {
                format!(", MORE by [{lower:.2e}, {upper:.2e}] over samples")
            }
            Some([lower, upper]) => {
                format!(", the difference not resolved over samples ([{lower:.2e}, {upper:.2e}])")
            }
            None => ", with no interval".into(),
        };
        if self.kind == "bits" {
            return format!(
                "Predicted rise of the loss: {:.3e} nats a token; {:.3e} with the same bits for all{less}. With every \
                 difference taken for real {:.3e}, and at best {:.3e}.",
                costs.plan, costs.uniform, costs.all, costs.bound
            );
        }
        let share = |cost: f64| 100.0 * (1.0 - cost / costs.whole);
        format!(
            "Of the squared gradient adapters capture at least {:.1} % at their start; {:.1} % with the same rank for all (in what is left \
             out{less}). With every difference taken for real {:.1} %, and at best {:.1} %. Not measured: how much better training ends.",
            share(costs.plan),
            share(costs.uniform),
            share(costs.all),
            share(costs.bound)
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

fn measured(comparison: &Comparison) -> String {
    let mut text = format!(
        "\nMeasured on {} samples of {} (loss {:.4} nats a token before), rise in nats a token:\n",
        comparison.samples, comparison.task, comparison.loss
    );
    for rise in &comparison.rises {
        let interval = match rise.interval {
            Some([lower, upper]) => format!("[{lower:+.3e}, {upper:+.3e}]"),
            None => "no interval".into(),
        };
        let _ = writeln!(text, "  {:+.3e}  {interval}  {}", rise.mean, rise.of);
    }
    text
}
