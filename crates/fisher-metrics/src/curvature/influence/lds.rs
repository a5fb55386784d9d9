//! How well scores predict what retraining does.

use fisher_core::moments::student_quantile;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_argument};
use crate::pruning::spearman;

/// The linear datamodeling score: see [`linear_datamodeling_score`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatamodelingScore {
    /// Of each query: Spearman's correlation over the subsets. `None` where losses or predictions are all alike.
    pub of_queries: Vec<Option<f64>>,
    /// The mean over queries that have one.
    pub mean: Option<f64>,
    /// 95 %: the mean ± *t* standard errors, by leaving out one subset after the other, no further than ±1. Queries are those that were
    /// asked, not drawn.
    pub interval: Option<[f64; 2]>,
}

/// Spearman's correlation, over subsets *S* of the training samples, of `Σ_(i ∈ S) τ(i → j)` with how far the loss of query *j* fell:
/// minus its loss by a model retrained on *S* (Park et al. 2023, "TRAK", section 2). 1 where scores order the retrained models
/// rightly, 0 where they say nothing.
///
/// # Shapes
/// - scores: `[queries, training]`
/// - subsets: `[subsets]` of `[training]`, `true` for the samples in it
/// - losses: `[queries, subsets]`, means over as many retrained models as there are
///
/// # Errors
/// [`Error::Argument`] for fewer than 3 subsets, [`Error::Sizes`] when sizes do not agree, [`Error::NotFinite`] for a number that is
/// not.
pub fn linear_datamodeling_score(
    scores: &[f64],
    subsets: &[Vec<bool>],
    losses: &[f64],
) -> Result<DatamodelingScore> {
    let m = subsets.len();
    check_argument(m >= 3, "subsets", "at least 3", m as f64)?;
    let n = subsets[0].len();
    if let Some(other) = subsets.iter().find(|subset| subset.len() != n) {
        return Err(Error::sizes("a subset", other.len(), n));
    }
    let queries = scores.len() / n.max(1);
    if scores.len() != queries * n {
        return Err(Error::sizes("scores", scores.len(), queries * n));
    }
    if losses.len() != queries * m {
        return Err(Error::sizes("losses", losses.len(), queries * m));
    }
    if scores.iter().chain(losses).any(|x| !x.is_finite()) {
        return Err(Error::not_finite("a number", "scores and losses"));
    }
    let predicted: Vec<Vec<f64>> = scores
        .chunks(n.max(1))
        .map(|scores| {
            let sum = |subset: &Vec<bool>| {
                let chosen = scores.iter().zip(subset).filter(|(_, is_in)| **is_in);
                chosen.map(|(score, _)| score).sum::<f64>()
            };
            subsets.iter().map(sum).collect()
        })
        .collect();
    let measured: Vec<Vec<f64>> = losses
        .chunks(m)
        .map(|losses| losses.iter().map(|loss| -loss).collect())
        .collect();
    let without = |out: Option<usize>| -> Vec<Option<f64>> {
        let kept = |values: &Vec<f64>| {
            let kept = values.iter().enumerate().filter(|(at, _)| Some(*at) != out);
            kept.map(|(_, value)| *value).collect::<Vec<f64>>()
        };
        let pairs = predicted.iter().zip(&measured);
        pairs.map(|(a, b)| spearman(&kept(a), &kept(b))).collect()
    };
    let of_queries = without(None);
    let value = mean(&of_queries);
    // Draws with replacement hold some subsets twice, and correlations of their ranks are too small: bootstrap intervals missed more.
    let deleted: Option<Vec<f64>> = (0..m).map(|out| mean(&without(Some(out)))).collect();
    let interval = value.zip(deleted).map(|(value, deleted)| {
        let m = m as f64;
        let centre = deleted.iter().sum::<f64>() / m;
        let squares: f64 = deleted.iter().map(|x| (x - centre).powi(2)).sum();
        let reach = student_quantile(0.975, m - 1.0) * ((m - 1.0) / m * squares).sqrt();
        [value - reach, value + reach].map(|end| end.clamp(-1.0, 1.0))
    });
    Ok(DatamodelingScore {
        mean: value,
        interval,
        of_queries,
    })
}

fn mean(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}
