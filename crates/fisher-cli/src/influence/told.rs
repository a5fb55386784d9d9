//! What is said of each query, with the texts of samples.

use std::collections::HashMap;
use std::fmt;

use fisher_metrics::curvature::influence::{InfluenceReport, Influential};
use serde_json::{Value, json};

use crate::models::Sequence;
use crate::samples::{TaskData, Text};

/// Letters of a text in print.
const LETTERS: usize = 72;
/// Tokens of a sample that are turned into text.
const TOKENS: usize = 256;

/// Scores with the samples that they are of.
pub(super) struct Told<'a> {
    pub(super) report: &'a InfluenceReport,
    pub(super) train: &'a TaskData,
    pub(super) queries: &'a TaskData,
    /// The model's tokenizer, where it has one.
    pub(super) text: Option<Text>,
    pub(super) top: usize,
}

impl Told<'_> {
    fn text(&self, sample: &Sequence) -> String {
        let tokens = &sample.tokens[..sample.tokens.len().min(TOKENS)];
        match &self.text {
            Some(text) => text.pieces(tokens).concat(),
            None => {
                let tokens = tokens.iter().map(i64::to_string);
                tokens.collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// On one line, shortened.
    fn line(&self, sample: &Sequence) -> String {
        let text = self.text(sample);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match words.char_indices().nth(LETTERS) {
            Some((end, _)) => format!("{} ..", &words[..end]),
            None => words,
        }
    }

    fn of_training(&self) -> HashMap<&str, usize> {
        let samples = self.train.samples.iter().enumerate();
        samples.map(|(at, sample)| (&*sample.id, at)).collect()
    }

    /// Everything, with the ids as they were written and texts of the samples that are named.
    pub(super) fn json(&self) -> Value {
        let of_training = self.of_training();
        let named = |found: Vec<Influential>| -> Vec<Value> {
            let named = found.into_iter().map(|of| {
                let at = of_training[of.id];
                json!({
                    "id": self.train.ids[at],
                    "score": of.score,
                    "text": self.text(&self.train.samples[at]),
                })
            });
            named.collect()
        };
        let queries = self.report.query_ids.iter().enumerate().map(|(query, id)| {
            let at = self
                .queries
                .samples
                .iter()
                .position(|sample| sample.id == *id);
            let at = at.unwrap_or(query);
            json!({
                "id": self.queries.ids[at],
                "text": self.text(&self.queries.samples[at]),
                "helps": named(self.report.helpful(query, self.top)),
                "harms": named(self.report.harmful(query, self.top)),
            })
        });
        json!({"queries": queries.collect::<Vec<_>>(), "report": self.report})
    }
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_training = self.of_training();
        writeln!(
            f,
            "What a step on a training sample does to the loss of a query, near these weights and to first order ({}): \
             τ above 0 helps.",
            match &*self.report.inverse {
                "identity" => "inner products of gradients".to_owned(),
                name => format!("{name} inverse of the Fisher"),
            }
        )?;
        for (query, id) in self.report.query_ids.iter().enumerate() {
            let sample = self.queries.samples.iter().find(|sample| sample.id == *id);
            let line = sample.map_or(String::new(), |sample| self.line(sample));
            writeln!(f, "\n{id}: {line}")?;
            for (what, found) in [
                ("helps", self.report.helpful(query, self.top)),
                ("harms", self.report.harmful(query, self.top)),
            ] {
                for Influential { id, score, .. } in found {
                    let line = self.line(&self.train.samples[of_training[id]]);
                    writeln!(f, "  {what} {score:>11.3e}  {id}: {line}")?;
                }
            }
        }
        Ok(())
    }
}
