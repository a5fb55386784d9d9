//! What samples do to the losses of others.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::report::GradientSource;

/// Version of [`InfluenceReport`]'s form.
const SCHEMA: u64 = 1;

/// Queries in print, and rows of each.
const QUERIES: usize = 20;
const SHOWN: usize = 5;

/// Scores `τ(i → j)`: see [the room](super).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InfluenceReport {
    /// Version of this form.
    pub schema: u64,
    /// The gradients.
    pub gradients: GradientSource,
    /// The hash of the model's weights.
    pub model: String,
    /// What was inverted: `exact`, `ekfac`, `kfac`, `diagonal`, or `identity` for none.
    pub inverse: String,
    /// The task of the training samples.
    pub train: String,
    /// The task of the queries.
    pub queries: String,
    /// Ids of the training samples, in their order.
    pub train_ids: Vec<String>,
    /// Ids of the queries.
    pub query_ids: Vec<String>,
    /// λ by parameter, or of the whole model.
    pub lambda: BTreeMap<String, f64>,
    /// `[queries, training]`, row-major.
    pub scores: Vec<f64>,
}

/// A training sample and what it does to a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Influential<'a> {
    /// Its number among the training samples.
    pub index: usize,
    /// Its id.
    pub id: &'a str,
    /// `τ`: above 0 it helps.
    pub score: f64,
}

impl InfluenceReport {
    pub(super) fn new(
        gradients: GradientSource,
        model: String,
        inverse: &str,
        [train, queries]: [String; 2],
        [train_ids, query_ids]: [Vec<String>; 2],
        lambda: BTreeMap<String, f64>,
        scores: Vec<f64>,
    ) -> Self {
        Self {
            schema: SCHEMA,
            gradients,
            model,
            inverse: inverse.into(),
            train,
            queries,
            train_ids,
            query_ids,
            lambda,
            scores,
        }
    }

    /// The scores of all training samples for one query.
    ///
    /// # Panics
    /// When there is no such query.
    pub fn of_query(&self, query: usize) -> &[f64] {
        let n = self.train_ids.len();
        &self.scores[query * n..(query + 1) * n]
    }

    /// The `count` samples that help a query most, the most helpful first; samples that do not help are left out.
    ///
    /// # Panics
    /// When there is no such query.
    pub fn helpful(&self, query: usize, count: usize) -> Vec<Influential<'_>> {
        self.ordered(query, count, 1.0)
    }

    /// The `count` samples that harm a query most, the most harmful first; samples that do not harm are left out.
    ///
    /// # Panics
    /// When there is no such query.
    pub fn harmful(&self, query: usize, count: usize) -> Vec<Influential<'_>> {
        self.ordered(query, count, -1.0)
    }

    fn ordered(&self, query: usize, count: usize, sign: f64) -> Vec<Influential<'_>> {
        let scores = self.of_query(query).iter().zip(&self.train_ids).enumerate();
        let found = scores.map(|(index, (&score, id))| Influential { index, id, score });
        let mut found: Vec<_> = found.filter(|of| sign * of.score > 0.0).collect();
        // Stable: ties keep the order of the samples.
        found.sort_by(|a, b| (sign * b.score).total_cmp(&(sign * a.score)));
        found.truncate(count);
        found
    }
}

impl fmt::Display for InfluenceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match &*self.inverse {
            "identity" => "no matrix inverted".to_owned(),
            name => format!("{name} inverse of the Fisher"),
        };
        writeln!(
            f,
            "influence of {} samples of {} on {} of {} ({of}; near these weights, not what retraining does)",
            self.train_ids.len(),
            self.train,
            self.query_ids.len(),
            self.queries,
        )?;
        for (query, id) in self.query_ids.iter().enumerate().take(QUERIES) {
            writeln!(f, "{id}")?;
            for (what, found) in [
                ("helps", self.helpful(query, SHOWN)),
                ("harms", self.harmful(query, SHOWN)),
            ] {
                for Influential { id, score, .. } in found {
                    writeln!(f, "  {what}  {score:>11.3e}  {id}")?;
                }
            }
        }
        match self.query_ids.len().saturating_sub(QUERIES) {
            0 => Ok(()),
            more => writeln!(f, ".. and {more} more"),
        }
    }
}
