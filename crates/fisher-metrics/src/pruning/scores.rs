//! Scores of groups or elements: what rankings and masks put in order.

use fisher_core::gates::{GateKind, GateQuantity, GateScores};
use fisher_core::gradient::ContributionUnit;
use fisher_core::grouping::{Grouping, Scheme};
use fisher_core::model::{Orientation, Parameter, Role};
use fisher_core::moments::Welford;
use fisher_core::provenance::Provenance;
use fisher_core::statistics::Statistics;

use crate::error::{Error, Result, ScoreKind};
use crate::report::{same_fisher, same_reduction};
use crate::weights::Weights;

/// The scores of one parameter under one grouping.
#[derive(Debug, Clone)]
pub struct Score {
    pub(crate) path: String,
    pub(crate) layer: String,
    pub(crate) role: Role,
    pub(crate) grouping: Grouping,
    pub(crate) values: Vec<f64>,
    /// Groups of other parameters that go with them: the biases of channels.
    pub(crate) beside: Vec<(String, Grouping)>,
}

impl Score {
    /// `{path}|{label}`.
    pub fn key(&self) -> String {
        format!("{}|{}", self.path, self.grouping.label())
    }

    /// Path of the parameter.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// One score per group, or per element.
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

/// The scores of a task, by (path, label).
#[derive(Debug, Clone)]
pub struct Scores {
    pub(crate) kind: ScoreKind,
    pub(crate) task: String,
    pub(crate) provenance: Provenance,
    pub(crate) sets: Vec<Score>,
}

impl Scores {
    /// F of every group of `task`.
    ///
    /// # Errors
    /// [`Error::NotCollected`] without grouped statistics, [`Error::NoSamples`] for a task
    /// without samples.
    pub fn grouped<C: ContributionUnit>(statistics: &Statistics<C>, task: &str) -> Result<Self> {
        let mut sets = Vec::new();
        for (path, parameter) in statistics.task(task)?.parameters() {
            let mut groups: Vec<_> = parameter.groups().iter().collect();
            groups.sort_by_key(|(grouping, _)| grouping.label());
            for (grouping, welford) in groups {
                let mean = welford.read_mean()?;
                sets.push(Score {
                    values: mean.ok_or_else(|| Error::no_samples(task))?,
                    ..set(statistics, path, grouping.clone())
                });
            }
        }
        Self::of(statistics, task, sets, "groups", "collect with `grouped`")
    }

    /// F of every element of `task`, for the parameters that were collected by element.
    ///
    /// # Errors
    /// [`Error::NotCollected`] without elementwise statistics, [`Error::NoSamples`] for a task
    /// without samples.
    pub fn elementwise<C: ContributionUnit>(
        statistics: &Statistics<C>,
        task: &str,
    ) -> Result<Self> {
        let mut scores = Self::without_values(statistics, task)?;
        for set in &mut scores.sets {
            set.values = fisher_of(statistics, task, &set.path)?;
        }
        Ok(scores)
    }

    /// Those of every element of `task`, of which no values are read.
    pub(super) fn without_values<C: ContributionUnit>(
        statistics: &Statistics<C>,
        task: &str,
    ) -> Result<Self> {
        let mut sets = Vec::new();
        for (path, parameter) in statistics.task(task)?.parameters() {
            if parameter.elementwise().is_some() {
                sets.push(set(statistics, path, by_element(statistics, path)?));
            }
        }
        Self::of(
            statistics,
            task,
            sets,
            "elements",
            "collect with `elementwise`",
        )
    }

    /// `½ F θ²` of every element of `task`, at the weights given.
    ///
    /// The prediction is of the loss whose Fisher this is, in its unit: for per-token
    /// contributions of token-sum losses, about nats per token.
    ///
    /// # Errors
    /// As [`Scores::elementwise`]; [`Error::Keys`] or [`Error::Sizes`] when the weights are
    /// not those of the statistics' parameters.
    pub fn brain_damage<C: ContributionUnit>(
        statistics: &Statistics<C>,
        task: &str,
        weights: &Weights,
    ) -> Result<Self> {
        let mut scores = Self::elementwise(statistics, task)?;
        scores.kind = ScoreKind::BrainDamage;
        scores.with_weights(weights, half_f_weight_squared)
    }

    /// `Σ ½ F θ²` over every group of `task`: what removing a whole channel, row or head is
    /// predicted to cost. Needs groups and elements.
    ///
    /// # Errors
    /// As [`Scores::grouped`] and [`Scores::brain_damage`].
    pub fn brain_damage_of_groups<C: ContributionUnit>(
        statistics: &Statistics<C>,
        task: &str,
        weights: &Weights,
    ) -> Result<Self> {
        let mut scores = Self::grouped(statistics, task)?;
        let elements = Self::brain_damage(statistics, task, weights)?;
        scores.kind = ScoreKind::BrainDamage;
        for set in &mut scores.sets {
            let elements = elements.sets.iter().find(|e| e.path == set.path);
            let elements = elements.ok_or(Error::not_collected(
                "elements of every grouped parameter",
                "collect them with `elementwise`",
            ))?;
            set.values.fill(0.0);
            let groups = set.grouping.group_of_elements();
            for (group, value) in groups.into_iter().zip(&elements.values) {
                if let Some(group) = group {
                    set.values[group] += value;
                }
            }
        }
        Ok(scores)
    }

    /// `−m_G + ½ F_ξG` of every head, key/value head or channel: what shutting its gate is predicted to cost per token.
    /// Below 0 where the loss is predicted to fall. A channel's bias goes with it.
    ///
    /// What several gates cost together is not the sum of what each costs.
    ///
    /// # Errors
    /// [`Error::Settings`] for gates of another kind, [`Error::NotCollected`] when there are none of the kind,
    /// [`Error::NoSamples`] for a task without samples.
    pub fn gates(scores: &GateScores, task: &str, kind: GateKind) -> Result<Self> {
        if !matches!(kind, GateKind::Head | GateKind::KvHead | GateKind::Channel) {
            return Err(Error::Settings {
                what: "gates on layers and on groups of one's own are in no one parameter whose mask they could be; \
                       prune by heads, key/value heads or channels",
            });
        }
        let mean = scores.task(task)?.mean(GateQuantity::Predicted);
        let mean = mean.ok_or_else(|| Error::no_samples(task))?;
        let layer = |path: &str| {
            let mut layers = scores
                .sets()
                .iter()
                .filter(|set| set.kind() == GateKind::Layer);
            layers.find(|set| set.parts().iter().any(|part| part.path == path))
        };
        let mut sets = Vec::new();
        for (set, range) in scores.places().filter(|(set, _)| set.kind() == kind) {
            let mut parts = set.parts().iter().cloned();
            let Some(first) = parts.next() else { continue };
            sets.push(Score {
                layer: layer(&first.path)
                    .map_or(&*first.path, |set| set.name())
                    .into(),
                path: first.path,
                // Or a kernel: what counts is that it is no vector or table.
                role: Role::Matrix,
                grouping: first.grouping,
                values: mean[range].to_vec(),
                beside: parts.map(|part| (part.path, part.grouping)).collect(),
            });
        }
        if sets.is_empty() {
            return Err(Error::not_collected(
                "gates of this kind",
                "collect with heads or channels in `GatesConfig`",
            ));
        }
        sets.sort_by(|a, b| (&a.path, a.grouping.label()).cmp(&(&b.path, b.grouping.label())));
        Ok(Self {
            kind: ScoreKind::Gate,
            task: task.into(),
            provenance: scores.provenance().clone(),
            sets,
        })
    }

    /// `|θ|` of the same elements as `self`: magnitude pruning, to compare with.
    ///
    /// # Errors
    /// [`Error::Keys`] or [`Error::Sizes`] when the weights are not of them.
    pub fn magnitude(&self, weights: &Weights) -> Result<Self> {
        let mut scores = self.clone();
        scores.kind = ScoreKind::Magnitude;
        scores.with_weights(weights, |_, weight| weight.abs())
    }

    fn with_weights(mut self, weights: &Weights, f: fn(f64, f64) -> f64) -> Result<Self> {
        for set in &mut self.sets {
            let weights = weights.get(&set.path, set.values.len())?;
            let pairs = set.values.iter_mut().zip(weights);
            pairs.for_each(|(value, &weight)| *value = f(*value, weight));
        }
        Ok(self)
    }

    fn of<C: ContributionUnit>(
        statistics: &Statistics<C>,
        task: &str,
        sets: Vec<Score>,
        what: &'static str,
        advice: &'static str,
    ) -> Result<Self> {
        if sets.is_empty() {
            return Err(Error::not_collected(what, advice));
        }
        Ok(Self {
            kind: ScoreKind::Fisher,
            task: task.into(),
            provenance: statistics.provenance().clone(),
            sets,
        })
    }

    /// The scores of parameters of some roles alone.
    #[must_use]
    pub fn of_roles(mut self, roles: &[Role]) -> Self {
        self.sets.retain(|set| roles.contains(&set.role));
        self
    }

    /// Other values in the same places: to compare with a baseline of one's own.
    #[must_use]
    pub fn map(mut self, mut value: impl FnMut(f64) -> f64) -> Self {
        self.kind = ScoreKind::Other;
        let values = self.sets.iter_mut().flat_map(|set| &mut set.values);
        values.for_each(|v| *v = value(*v));
        self
    }

    /// The mean with the scores of another task: what both need.
    ///
    /// # Errors
    /// [`Error::Keys`], [`Error::Sizes`] or [`Error::Groups`] when they are not of the same groups,
    /// [`Error::Kinds`] when not of the same kind, [`Error::OtherFisher`] when their Fishers are of
    /// another kind, unit or reduction.
    pub fn mean_with(mut self, other: &Self) -> Result<Self> {
        if self.kind != other.kind {
            return Err(Error::Kinds {
                ours: self.kind,
                theirs: other.kind,
            });
        }
        same_fisher(&self.provenance, &other.provenance)?;
        join(&self, other)?;
        for (ours, theirs) in self.sets.iter_mut().zip(&other.sets) {
            let pairs = ours.values.iter_mut().zip(&theirs.values);
            pairs.for_each(|(ours, theirs)| *ours = 0.5 * (*ours + theirs));
        }
        self.task = format!("{} and {}", self.task, other.task);
        Ok(self)
    }

    /// What the scores are.
    pub fn kind(&self) -> ScoreKind {
        self.kind
    }

    /// The scores, by (path, label).
    pub fn sets(&self) -> &[Score] {
        &self.sets
    }

    /// The scores of one parameter: one, or for fused projections one per block.
    pub fn of_path(&self, path: &str) -> impl Iterator<Item = &Score> {
        self.sets.iter().filter(move |set| set.path == path)
    }

    /// Whether some scores stand for more than one element.
    pub(crate) fn reduced(&self) -> bool {
        let elements = |set: &Score| set.grouping.shape().iter().product::<usize>();
        self.sets
            .iter()
            .any(|set| elements(set) != set.values.len())
    }

    /// The number of groups or elements.
    pub fn count(&self) -> usize {
        self.sets.iter().map(|set| set.values.len()).sum()
    }
}

/// F of every element of the parameter at `path`.
pub(super) fn fisher_of<C: ContributionUnit>(
    statistics: &Statistics<C>,
    task: &str,
    path: &str,
) -> Result<Vec<f64>> {
    let parameter = statistics.task(task)?.parameter(path)?;
    let mean = parameter.elementwise().map(Welford::read_mean);
    let mean = mean.transpose()?.flatten();
    mean.ok_or_else(|| Error::no_samples(task))
}

/// The second-order cost of a weight.
pub(super) fn half_f_weight_squared(f: f64, weight: f64) -> f64 {
    0.5 * f * weight * weight
}

fn set<C: ContributionUnit>(statistics: &Statistics<C>, path: &str, grouping: Grouping) -> Score {
    Score {
        path: path.into(),
        layer: statistics.totals().layer_of(path).unwrap_or(path).into(),
        role: statistics.role(path).unwrap_or(Role::Vector),
        grouping,
        values: Vec::new(),
        beside: Vec::new(),
    }
}

fn by_element<C: ContributionUnit>(statistics: &Statistics<C>, path: &str) -> Result<Grouping> {
    let shape = statistics.shape(path).unwrap_or_default();
    let parameter = Parameter::new(path, shape, Role::Vector, Orientation::InputOutput);
    let heads = fisher_core::grouping::HeadLayout::none();
    let mut groupings = Grouping::of(&parameter, &Scheme::Element, &heads)?;
    Ok(groupings.swap_remove(0))
}

/// Whether two scores are of the same groups in the same order, as all of one model are.
pub(super) fn join(a: &Scores, b: &Scores) -> Result<()> {
    if [a, b]
        .iter()
        .all(|scores| scores.kind == ScoreKind::Fisher && scores.reduced())
    {
        same_reduction(&a.provenance, &b.provenance)?;
    }
    for i in 0..a.sets.len().max(b.sets.len()) {
        let (ours, theirs) = match (a.sets.get(i), b.sets.get(i)) {
            (Some(ours), Some(theirs)) if ours.key() == theirs.key() => (ours, theirs),
            (Some(ours), _) => {
                return Err(Error::keys(ours.key(), "the first scores", "the second"));
            }
            (None, Some(theirs)) => {
                return Err(Error::keys(theirs.key(), "the second scores", "the first"));
            }
            (None, None) => break,
        };
        if ours.values.len() != theirs.values.len() {
            return Err(Error::sizes(
                ours.key(),
                ours.values.len(),
                theirs.values.len(),
            ));
        }
        if ours.grouping != theirs.grouping {
            return Err(Error::Groups { key: ours.key() });
        }
    }
    Ok(())
}
