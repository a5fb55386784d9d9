//! Pruning masks: what is kept and what goes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use burn::config::Config;
use burn::module::{Module, ParamGroup, ParamId};
use fisher_core::gradient::ContributionUnit;
use fisher_core::grouping::Grouping;
use fisher_core::model::Role;
use fisher_core::provenance::Provenance;
use fisher_core::statistics::Statistics;
use fixedbitset::FixedBitSet;
use serde::{Deserialize, Serialize};

use super::scores::{Score, Scores, fisher_of, half_f_weight_squared};
use super::select::{Lowest, lowest};
use crate::error::{Error, Result, ScoreKind, check_argument};
use crate::weights::{Operation, Weights, combine, shapes, with_ties};

/// Version of the form of [`Masks`].
const SCHEMA: u64 = 1;

/// Within what the lowest scores are sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scope {
    /// All scores together.
    Global,
    /// Each layer by itself.
    Layer,
    /// Each tensor (and label) by itself.
    Tensor,
}

/// Configuration of [`Pruning`].
#[derive(Config, Debug)]
pub struct PruningConfig {
    /// The share `s` to prune: exactly `⌊s·N⌋` of the `N` entries that are not protected, in each
    /// unit of the scope.
    pub sparsity: f64,
    /// Within what the lowest scores are sought.
    #[config(default = "Scope::Global")]
    pub scope: Scope,
    /// Roles that are never pruned and do not count: norms and biases, and embeddings.
    #[config(default = "vec![Role::Vector, Role::Embedding]")]
    pub protected_roles: Vec<Role>,
    /// Parameters that are never pruned and do not count, by Burn's patterns.
    #[config(default = "Vec::new()")]
    pub protected: Vec<ParamGroup>,
}

impl PruningConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `0 ≤ sparsity ≤ 1`.
    pub fn init(&self) -> Result<Pruning> {
        let sparsity = self.sparsity;
        let fits = (0.0..=1.0).contains(&sparsity);
        check_argument(fits, "sparsity", "between 0 and 1", sparsity)?;
        Ok(Pruning {
            config: self.clone(),
        })
    }
}

/// Prunes the lowest scores.
///
/// Ties are resolved against the later (path, index), so the count is exact whatever the scores
/// are, and masks nest: what is pruned at one sparsity is pruned at every higher one. Structured
/// scores (groups) give structured masks.
#[derive(Debug, Clone)]
pub struct Pruning {
    config: PruningConfig,
}

/// What of one parameter is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mask {
    /// Path of the parameter.
    pub path: String,
    /// Its layer.
    pub layer: String,
    /// Which elements each bit stands for.
    pub grouping: Grouping,
    /// 1 for what is kept.
    #[serde(with = "super::bits")]
    pub keep: FixedBitSet,
    /// Whether these groups go with those of another mask, as a channel's bias does: they are not counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows: bool,
}

impl Mask {
    /// `{path}|{label}`.
    pub fn key(&self) -> String {
        format!("{}|{}", self.path, self.grouping.label())
    }
}

/// The masks of a task. Saved with serde, applied to a module and taken off it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Masks {
    /// Version of this form.
    pub schema: u64,
    /// The task whose scores these are.
    pub task: String,
    /// Where the scores' statistics come from: model, kind, units, seeds.
    pub provenance: Provenance,
    /// What the scores were.
    pub kind: ScoreKind,
    /// Wanted share to prune.
    pub sparsity: f64,
    /// Within what the lowest scores were sought.
    pub scope: Scope,
    /// `Σ ½Fθ²` of what is pruned for [`ScoreKind::BrainDamage`], the sum of the gates' predictions for
    /// [`ScoreKind::Gate`].
    pub predicted_increase: Option<f64>,
    /// The masks, by (path, label). Protected parameters are not among them.
    pub masks: Vec<Mask>,
}

impl Pruning {
    /// Prune the lowest of `scores`.
    ///
    /// # Errors
    /// [`Error::Empty`] when everything is protected, [`Error::Pattern`] when a pattern of
    /// `protected` matches nothing, [`Error::NotFinite`] when a score is NaN, which has no place in an
    /// order, or what the pruned ones add up to is too large a number.
    pub fn forward(&self, scores: &Scores) -> Result<Masks> {
        self.mask(scores, |set| Ok(Cow::Borrowed(&set.values)))
    }

    /// Prune by `½ F θ²` of every element of the parameters of `roles`: the masks are those of
    /// [`Scores::brain_damage`], whose scores are read parameter by parameter, several times, and are never
    /// all in memory. `weights` gives those of a parameter, which has so many.
    ///
    /// # Errors
    /// As [`Scores::brain_damage`] and [`Pruning::forward`].
    pub fn by_brain_damage<C: ContributionUnit>(
        &self,
        statistics: &Statistics<C>,
        task: &str,
        roles: &[Role],
        weights: impl Fn(&str, usize) -> Result<Vec<f64>>,
    ) -> Result<Masks> {
        let mut elements = Scores::without_values(statistics, task)?.of_roles(roles);
        elements.kind = ScoreKind::BrainDamage;
        self.mask(&elements, |set| {
            let mut damage = fisher_of(statistics, task, &set.path)?;
            let weights = weights(&set.path, damage.len())?;
            let pairs = damage.iter_mut().zip(weights);
            pairs.for_each(|(f, weight)| *f = half_f_weight_squared(*f, weight));
            Ok(Cow::Owned(damage))
        })
    }

    /// Masks of scores whose values are those that `values` gives, as often as it is asked.
    fn mask<'a>(
        &self,
        scores: &'a Scores,
        values: impl Fn(&'a Score) -> Result<Cow<'a, [f64]>>,
    ) -> Result<Masks> {
        let config = &self.config;
        for set in &scores.sets {
            if values(set)?.iter().any(|score| score.is_nan()) {
                return Err(Error::not_finite("a score", set.key()));
            }
        }
        for group in &config.protected {
            if !scores.sets.iter().any(|set| named(group, &set.path)) {
                let paths: Vec<&str> = scores.sets.iter().map(|set| &*set.path).collect();
                return Err(Error::Pattern {
                    paths: paths.join(", "),
                });
            }
        }
        let free: Vec<&Score> = scores
            .sets
            .iter()
            .filter(|set| !self.protects(set))
            .collect();
        if free.is_empty() {
            let all: Vec<&str> = scores.sets.iter().map(|set| &*set.path).collect();
            return Err(Error::Empty {
                all: all.join(", "),
            });
        }
        let mut units: BTreeMap<String, Vec<&Score>> = BTreeMap::new();
        for set in free {
            let unit = match config.scope {
                Scope::Global => String::new(),
                Scope::Layer => set.layer.clone(),
                Scope::Tensor => set.key(),
            };
            units.entry(unit).or_default().push(set);
        }
        let mut masks = Vec::new();
        let mut pruned_score = 0.0;
        for unit in units.into_values() {
            let kept = keep_highest(&unit, config.sparsity, &values)?;
            for (set, (keep, score)) in unit.iter().zip(kept) {
                pruned_score += score;
                masks.extend(set.beside.iter().map(|(path, grouping)| Mask {
                    path: path.clone(),
                    layer: set.layer.clone(),
                    grouping: grouping.clone(),
                    keep: keep.clone(),
                    follows: true,
                }));
                masks.push(Mask {
                    path: set.path.clone(),
                    layer: set.layer.clone(),
                    grouping: set.grouping.clone(),
                    keep,
                    follows: false,
                });
            }
        }
        let adds_up = matches!(scores.kind, ScoreKind::BrainDamage | ScoreKind::Gate);
        let predicted = adds_up.then_some(pruned_score);
        if predicted.is_some_and(|increase| !increase.is_finite()) {
            return Err(Error::not_finite(
                "the predicted loss increase",
                scores.task.clone(),
            ));
        }
        masks.sort_by(|a, b| (&a.path, a.grouping.label()).cmp(&(&b.path, b.grouping.label())));
        Ok(Masks {
            schema: SCHEMA,
            task: scores.task.clone(),
            provenance: scores.provenance.clone(),
            kind: scores.kind,
            sparsity: config.sparsity,
            scope: config.scope,
            predicted_increase: predicted,
            masks,
        })
    }

    fn protects(&self, set: &Score) -> bool {
        let named = |group: &ParamGroup| named(group, &set.path);
        self.config.protected_roles.contains(&set.role) || self.config.protected.iter().any(named)
    }
}

/// By path alone: scores know no ids.
fn named(group: &ParamGroup, path: &str) -> bool {
    group.matches(&ParamId::new(), Some(path))
}

/// `⌊s·N⌋` of the decimal that `s` was written as: 0.29 of 100 is 29, where the nearest binary
/// fraction gives 28.999999999999996. A few roundings are forgiven (`0.1 · 3`), which is less than
/// an entry up to 10¹⁵ of them.
fn pruned(sparsity: f64, entries: usize) -> usize {
    let forgiven = 1.0 + 4.0 * f64::EPSILON;
    let pruned = (sparsity * entries as f64 * forgiven).floor() as usize;
    pruned.min(entries)
}

/// Which entries of a unit stay when exactly `⌊s·N⌋` of its lowest go, and what those that go add up to.
fn keep_highest<'a>(
    unit: &[&'a Score],
    sparsity: f64,
    values: impl Fn(&'a Score) -> Result<Cow<'a, [f64]>>,
) -> Result<Vec<(FixedBitSet, f64)>> {
    let entries = unit.iter().map(|set| set.grouping.groups()).sum();
    let prune = pruned(sparsity, entries);
    let Lowest {
        threshold,
        mut ties,
    } = lowest(unit.len(), prune, |run| values(unit[run]))?;
    let mut kept = Vec::with_capacity(unit.len());
    // From the last (path, index), against which ties are resolved.
    for set in unit.iter().rev() {
        let values = values(set)?;
        let mut keep = FixedBitSet::with_capacity(values.len());
        for (i, score) in values.iter().enumerate().rev() {
            let stays = match score.total_cmp(&threshold) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Equal if ties > 0 => {
                    ties -= 1;
                    false
                }
                _ => true,
            };
            keep.set(i, stays);
        }
        let gone = keep.zeroes().map(|i| values[i]).sum();
        kept.push((keep, gone));
    }
    kept.reverse();
    Ok(kept)
}

/// What a mask took out of a module: puts it back.
#[derive(Debug, Clone, Default)]
pub struct Removed {
    /// Path to shape and what was pruned, 0 elsewhere.
    weights: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Masks {
    /// Set the pruned weights of `model` to 0, and give what they were.
    ///
    /// A mapper writes the zeros into the weights themselves, so the model runs at its usual
    /// speed and saves as usual. To keep them 0 through further training, call
    /// [`Masks::enforce`] after each optimizer step.
    ///
    /// Parameters that are tied to a masked one are masked with it; copies, such as a frozen teacher in
    /// the same module, stay as they are (see [`fisher_core::model::Ties`]).
    ///
    /// # Errors
    /// [`Error::Keys`] or [`Error::Shape`] when the model does not have the masks' parameters,
    /// [`Error::Sizes`] when a mask from a file does not have the bits of its groups,
    /// [`fisher_core::Error::Copies`] when a copy cannot be told from a tie.
    pub fn apply<M: Module>(&self, model: M) -> Result<(M, Removed)> {
        let factors = self.factors(&model)?;
        let factors = with_ties(&model, &factors)?;
        let (weights, mut shapes) = (Weights::of(&model)?, shapes(&model));
        let mut removed = Removed::default();
        for (path, factor) in &factors {
            let pairs = weights.get(path, factor.len())?.iter().zip(*factor);
            let gone = pairs.map(|(&w, &keep)| if keep == 1.0 { 0.0 } else { w });
            let shape = shapes.remove(path).unwrap_or_default();
            removed
                .weights
                .insert(path.clone(), (shape, gone.collect()));
        }
        Ok((combine(model, factors, Operation::Multiply), removed))
    }

    /// Set the pruned weights of `model` to 0 (again).
    ///
    /// # Errors
    /// As [`Masks::apply`].
    pub fn enforce<M: Module>(&self, model: M) -> Result<M> {
        let factors = self.factors(&model)?;
        let factors = with_ties(&model, &factors)?;
        Ok(combine(model, factors, Operation::Multiply))
    }

    /// By path, 1 for what is kept and 0 for what goes, for a model that has these parameters.
    fn factors<M: Module>(&self, model: &M) -> Result<BTreeMap<String, Vec<f64>>> {
        let shapes = shapes(model);
        for mask in &self.masks {
            if mask.keep.len() != mask.grouping.groups() {
                return Err(Error::sizes(
                    mask.key(),
                    mask.keep.len(),
                    mask.grouping.groups(),
                ));
            }
            check_shape(&shapes, &mask.path, mask.grouping.shape())?;
        }
        let masks = self.by_element().into_iter();
        let factors = masks.map(|(path, keep)| {
            let factor = keep.into_iter().map(|keep| f64::from(u8::from(keep)));
            (path, factor.collect())
        });
        Ok(factors.collect())
    }

    /// By path, whether each element is kept: an element is pruned if any of its groups is.
    pub fn by_element(&self) -> BTreeMap<String, Vec<bool>> {
        let mut all: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        for mask in &self.masks {
            let groups = mask.grouping.group_of_elements();
            let keep = all
                .entry(mask.path.clone())
                .or_insert_with(|| vec![true; groups.len()]);
            for (keep, group) in keep.iter_mut().zip(groups) {
                *keep &= group.is_none_or(|group| mask.keep.contains(group));
            }
        }
        all
    }

    /// Groups or elements kept, and all there are.
    pub fn kept(&self) -> (usize, usize) {
        let kept = self.counted().map(|mask| mask.keep.count_ones(..)).sum();
        (kept, self.counted().map(|mask| mask.keep.len()).sum())
    }

    /// The masks whose entries were chosen.
    pub(super) fn counted(&self) -> impl Iterator<Item = &Mask> {
        self.masks.iter().filter(|mask| !mask.follows)
    }

    /// The share pruned of each layer.
    pub fn sparsity_by_layer(&self) -> BTreeMap<&str, f64> {
        let mut layers: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for mask in self.counted() {
            let (pruned, all) = layers.entry(&mask.layer).or_default();
            *pruned += mask.keep.count_zeroes(..);
            *all += mask.keep.len();
        }
        let share = |(pruned, all): (usize, usize)| pruned as f64 / all as f64;
        layers
            .into_iter()
            .map(|(layer, n)| (layer, share(n)))
            .collect()
    }
}

impl Removed {
    /// Put back what was pruned, on top of whatever the weights are now.
    ///
    /// # Errors
    /// [`Error::Keys`] or [`Error::Shape`] when the model does not have the parameters that the mask
    /// was taken off.
    pub fn restore<M: Module>(self, model: M) -> Result<M> {
        let shapes = shapes(&model);
        for (path, (shape, _)) in &self.weights {
            check_shape(&shapes, path, shape)?;
        }
        let weights = self.weights.iter();
        let weights = weights.map(|(path, (_, weights))| (path.clone(), &**weights));
        Ok(combine(model, weights.collect(), Operation::Add))
    }
}

fn check_shape(shapes: &BTreeMap<String, Vec<usize>>, path: &str, ours: &[usize]) -> Result<()> {
    let theirs = shapes
        .get(path)
        .ok_or_else(|| Error::keys(path, "the masks", "the model"))?;
    if theirs != ours {
        return Err(Error::shape(path, ours, theirs));
    }
    Ok(())
}

impl fmt::Display for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kept, all) = self.kept();
        write!(
            f,
            "{}: {} of {all} entries pruned ({:.1} %, {:?} scope)",
            self.task,
            all - kept,
            100.0 * (all - kept) as f64 / all as f64,
            self.scope
        )?;
        if let Some(increase) = self.predicted_increase {
            write!(f, ", predicted loss increase {increase:.3e}")?;
        }
        for (layer, sparsity) in self.sparsity_by_layer() {
            write!(f, "\n  {layer:<40} {:>6.1} % pruned", 100.0 * sparsity)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against integers: `s` in thousandths.
    #[test]
    fn decimal_shares_are_exact() {
        for thousandths in 0..=1000usize {
            for entries in [1, 7, 10, 100, 997, 1000, 123_456_789] {
                let sparsity = thousandths as f64 / 1000.0;
                let expected = thousandths * entries / 1000;
                assert_eq!(
                    pruned(sparsity, entries),
                    expected,
                    "{sparsity} of {entries}"
                );
            }
        }
        assert_eq!(pruned(0.1 + 0.1 + 0.1, 10), 3);
        assert_eq!(pruned(1.0 - 0.9, 10), 1);
        // What is short of an entry by more than rounding stays short of it.
        assert_eq!(pruned(0.289_999_999, 100), 28);
    }
}
