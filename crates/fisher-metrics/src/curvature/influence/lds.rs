//! How well scores predict what retraining does.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
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
    /// 95 % of bootstrap draws of subsets lie in it. Queries are those that were asked, not drawn.
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
    seed: u64,
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
    let of_draw = |draw: &[usize]| -> Vec<Option<f64>> {
        let pick = |values: &Vec<f64>| draw.iter().map(|&at| values[at]).collect::<Vec<f64>>();
        let pairs = predicted.iter().zip(&measured);
        pairs.map(|(a, b)| spearman(&pick(a), &pick(b))).collect()
    };
    let all: Vec<usize> = (0..m).collect();
    let of_queries = of_draw(&all);
    let mut random = StdRng::seed_from_u64(seed);
    let draws = (0..DRAWS).filter_map(|_| {
        let draw: Vec<usize> = (0..m).map(|_| random.random_range(0..m)).collect();
        mean(&of_draw(&draw))
    });
    let mut draws: Vec<f64> = draws.collect();
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| draws.get((share * (draws.len().max(1) - 1) as f64).round() as usize);
    let interval = at(0.025)
        .zip(at(0.975))
        .map(|(lower, upper)| [*lower, *upper]);
    Ok(DatamodelingScore {
        mean: mean(&of_queries),
        interval: interval.filter(|_| mean(&of_queries).is_some()),
        of_queries,
    })
}

const DRAWS: usize = 1000;

fn mean(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}
