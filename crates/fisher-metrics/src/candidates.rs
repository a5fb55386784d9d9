//! Sums of elements' scores over layers, heads and channels: what rankings by F, `½ Σ F θ²` and magnitude say of them.

use fisher_core::gates::{GateQuantity, GateScores, GateSet};
use fisher_core::gradient::ContributionUnit;
use fisher_core::statistics::Statistics;

use crate::error::{Error, Result};
use crate::pruning::Scores;
use crate::weights::Weights;

/// `Σ F` over each gate's elements, in the order of the sets.
///
/// # Errors
/// Those of [`Scores::elementwise`]; [`Error::NotCollected`] when a gate is on a parameter that was not collected by
/// element.
pub fn fisher_of<C: ContributionUnit>(
    statistics: &Statistics<C>,
    task: &str,
    sets: &[GateSet],
) -> Result<Vec<f64>> {
    over_elements(&Scores::elementwise(statistics, task)?, sets)
}

/// `½ Σ F θ²` over each gate's elements: Optimal Brain Damage, which has neither the first order nor cross terms.
///
/// # Errors
/// As [`fisher_of`], and those of [`Scores::brain_damage`].
pub fn brain_damage_of<C: ContributionUnit>(
    statistics: &Statistics<C>,
    task: &str,
    weights: &Weights,
    sets: &[GateSet],
) -> Result<Vec<f64>> {
    over_elements(&Scores::brain_damage(statistics, task, weights)?, sets)
}

/// `Σ |θ|` over each gate's elements (Li et al. 2017, "Pruning filters for efficient convnets"): not of the Fisher at all.
///
/// # Errors
/// [`Error::Keys`] or [`Error::Sizes`] when the weights are not those of the gates.
pub fn magnitude_of(weights: &Weights, sets: &[GateSet]) -> Result<Vec<f64>> {
    sums(sets, |path, elements| {
        let weights = weights.get(path, elements)?.iter();
        Ok(weights.map(|weight| weight.abs()).collect())
    })
}

/// A quantity of the gates of some of the sets that gates were collected for, in the order of `sets`.
///
/// # Errors
/// [`Error::Keys`] for a set that was not collected, [`Error::NoSamples`].
pub fn gates_of(
    scores: &GateScores,
    task: &str,
    of: GateQuantity,
    sets: &[GateSet],
) -> Result<Vec<f64>> {
    let mean = scores.task(task)?.mean(of);
    let mean = mean.ok_or_else(|| Error::no_samples(task))?;
    let mut values = Vec::new();
    for set in sets {
        let place = scores.places().find(|(known, _)| *known == set);
        let (_, range) =
            place.ok_or_else(|| Error::keys(set.name(), "the sets asked for", "the gates"))?;
        values.extend(&mean[range]);
    }
    Ok(values)
}

fn over_elements(scores: &Scores, sets: &[GateSet]) -> Result<Vec<f64>> {
    sums(sets, |path, _| {
        let of_path = scores.of_path(path).next().ok_or(Error::not_collected(
            "elements of every parameter with a gate",
            "collect them with `elementwise`",
        ))?;
        Ok(of_path.values().to_vec())
    })
}

/// Sums over the elements of every gate.
fn sums(sets: &[GateSet], values: impl Fn(&str, usize) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for set in sets {
        let first = all.len();
        all.resize(first + set.gates(), 0.0);
        for part in set.parts() {
            let groups = part.grouping.group_of_elements();
            let values = values(&part.path, groups.len())?;
            if values.len() != groups.len() {
                return Err(Error::sizes(&*part.path, groups.len(), values.len()));
            }
            for (group, value) in groups.into_iter().zip(values) {
                if let Some(group) = group {
                    all[first + group] += value;
                }
            }
        }
    }
    Ok(all)
}
