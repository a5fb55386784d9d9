//! The loss of a task's active tokens.

use std::collections::HashMap;

use fisher_core::clusters::{cluster_numbers, clustered_mean};
use fisher_core::moments::IntervalMethod;
use fisher_core::statistics::Statistics;
use serde::Serialize;

use super::measured::{Measured, key};
use super::outcome::Result;

/// Loss per active token, in nats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLoss {
    /// `Σ L_i / Σ T_i`: of all tokens alike.
    pub mean: f64,
    /// Its 95 % interval over samples, or over clusters where samples name them, to first order in the
    /// residuals `L_i − mean · T_i`; `None` for fewer than two.
    pub interval: Option<[f64; 2]>,
    /// The median over samples of `L_i / T_i`.
    pub median: f64,
    /// The lowest and the highest `L_i / T_i`, with the sample's id.
    pub range: [(f64, String); 2],
}

impl TokenLoss {
    /// Of a task with a sample.
    ///
    /// # Errors
    /// When the statistics do not have the task, or it has no sample.
    pub fn of(task: &Measured, statistics: &Statistics) -> Result<Self> {
        let samples = statistics.task(&task.name)?.samples().iter();
        let clusters: HashMap<&str, Option<&str>> =
            samples.map(|s| (&*s.id, s.cluster.as_deref())).collect();
        let ids: Vec<String> = task.ids.iter().map(key).collect();
        let clusters = ids.iter().map(|id| clusters.get(&**id).copied().flatten());
        let tokens: f64 = task.tokens.iter().map(|t| *t as f64).sum();
        let mean = task.losses.iter().sum::<f64>() / tokens;
        let both = || {
            task.losses
                .iter()
                .zip(&task.tokens)
                .map(|(l, t)| (*l, *t as f64))
        };
        let residuals: Vec<f64> = both().map(|(loss, tokens)| loss - mean * tokens).collect();
        let mut estimate = clustered_mean(&residuals, &cluster_numbers(clusters));
        let samples = residuals.len() as f64;
        estimate.mean = mean;
        estimate.standard_error = estimate.standard_error.map(|e| e * samples / tokens);
        let interval = estimate.interval(0.95, IntervalMethod::StudentT)?;
        let mut rates: Vec<(f64, String)> = both().map(|(l, t)| l / t).zip(ids).collect();
        rates.sort_by(|(x, _), (y, _)| x.total_cmp(y));
        let (Some(lowest), Some(highest)) = (rates.first(), rates.last()) else {
            return Err(format!("task `{}` has no sample", task.name).into());
        };
        let middle = [(rates.len() - 1) / 2, rates.len() / 2].map(|at| rates[at].0);
        Ok(Self {
            mean,
            interval: interval.map(|of| [of.lower, of.upper]),
            median: (middle[0] + middle[1]) / 2.0,
            range: [lowest.clone(), highest.clone()],
        })
    }
}
