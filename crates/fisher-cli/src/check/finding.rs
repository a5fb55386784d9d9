//! What a test found, and how it is judged.

use std::fmt;

use serde::Serialize;

use super::task_loss::TaskLoss;
use crate::models::Outcomes;
use crate::words::figures;

/// How a finding is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judged {
    /// Within its bound.
    Fine,
    /// It could not be tested; the finding says why.
    Untested,
    /// Numbers are right, but may not mean what is wanted.
    Warning,
    /// Numbers would be wrong, or none.
    Wrong,
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fine => "fine",
            Self::Untested => "untested",
            Self::Warning => "WARNING",
            Self::Wrong => "WRONG",
        })
    }
}

/// What one test found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What was tested.
    pub test: &'static str,
    /// How it is judged.
    pub judged: Judged,
    /// The largest value found, where it is a number; `null` also where that is not finite.
    pub found: Option<f64>,
    /// Up to where it is fine.
    pub bound: Option<f64>,
    /// What was looked at, and what was seen.
    pub said: String,
}

impl Finding {
    /// Of something that is no number.
    pub fn new(test: &'static str, judged: Judged, said: impl Into<String>) -> Self {
        Self {
            test,
            judged,
            found: None,
            bound: None,
            said: said.into(),
        }
    }

    /// Of a number: fine up to its bound, beyond it `else_judged`.
    pub fn bounded(
        test: &'static str,
        [found, bound]: [f64; 2],
        else_judged: Judged,
        said: impl Into<String>,
    ) -> Self {
        let fine = found <= bound;
        Self {
            test,
            judged: if fine { Judged::Fine } else { else_judged },
            found: Some(found).filter(|found| found.is_finite()),
            bound: Some(bound),
            said: said.into(),
        }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// The model's folder.
    pub model: String,
    /// The worst of all.
    pub verdict: Judged,
    /// What the model chooses among.
    pub outcomes: Outcomes,
    /// The loss of one that gives all of them the same probability, in nats.
    pub uniform_loss: f64,
    /// Losses of the tasks.
    pub tasks: Vec<TaskLoss>,
    /// What the tests found.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// How many are judged so.
    pub fn count(&self, judged: Judged) -> usize {
        self.findings.iter().filter(|f| f.judged == judged).count()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [of, each] = self.outcomes.words();
        let nats = format!("nats/{each}");
        writeln!(
            f,
            "{:<16} {:>7} {:>8} {:>8} {nats:>11} {:>11}  least and most of a sample",
            "task", "samples", "tokens", "active", "perplexity"
        )?;
        for task in &self.tasks {
            writeln!(
                f,
                "{:<16} {:>7} {:>8} {:>8} {:>11.4} {:>11.2}  {:.4} to {:.4}",
                task.task,
                task.samples,
                task.tokens,
                task.active,
                task.loss,
                task.perplexity,
                task.least,
                task.most
            )?;
        }
        writeln!(
            f,
            "(equal probabilities for all have ln({of}) = {:.4})\n",
            self.uniform_loss
        )?;
        for finding in &self.findings {
            let bound = match (finding.found, finding.bound) {
                (found, Some(bound)) => {
                    let found = found.map_or("not finite".into(), figures);
                    format!(" ({found}, bound {})", figures(bound))
                }
                _ => String::new(),
            };
            writeln!(
                f,
                "{:<8}  {}: {}{bound}",
                finding.judged, finding.test, finding.said
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_numbers() {
        let finding = Finding::bounded("loss", [2.526, 10.82], Judged::Warning, "told");
        let findings = Findings {
            model: "model".into(),
            verdict: Judged::Fine,
            outcomes: Outcomes::Tokens(9),
            uniform_loss: 2.0,
            tasks: Vec::new(),
            findings: vec![finding],
        };
        let text = findings.to_string();
        assert!(
            text.ends_with("fine      loss: told (2.53, bound 10.8)\n"),
            "{text}"
        );
    }
}
