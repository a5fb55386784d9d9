//! Joining models of one architecture by their Fisher.

use std::collections::BTreeMap;

use burn::config::Config;
use burn::module::Module;
use fisher_core::{Catalogue, ContributionUnit, PerToken, Statistics};
use fisher_metrics::Weights;
use serde::{Deserialize, Serialize};

use crate::destination::check_model;
use crate::{Error, Result};

/// What one weight of the average is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// F of every element.
    Element,
    /// F of the element's group: channel, row or head.
    Group,
}

/// Configuration of [`Merging`].
#[derive(Config, Debug)]
pub struct MergeConfig {
    /// What one weight of the average is made of.
    #[config(default = "Granularity::Element")]
    pub granularity: Granularity,
    /// Added to every F: where no model cares, they are averaged plainly.
    #[config(default = 1e-12)]
    pub epsilon: f64,
}

impl MergeConfig {
    /// The operator.
    pub fn init(&self) -> Merging {
        Merging {
            config: self.clone(),
        }
    }
}

/// `θ* = Σ_t w_t (F_t + ε) θ_t / Σ_t w_t (F_t + ε)` (Matena & Raffel 2022, "Merging models with
/// Fisher-weighted averaging", equation 4).
///
/// Frozen parameters are those of the first model.
#[derive(Debug, Clone)]
pub struct Merging {
    config: MergeConfig,
}

/// One of the models to merge.
#[derive(Debug)]
pub struct Source<'a, M, C: ContributionUnit = PerToken> {
    /// The model.
    pub model: &'a M,
    /// Its statistics.
    pub statistics: &'a Statistics<C>,
    /// The task whose Fisher counts.
    pub task: &'a str,
    /// The weight `w_t`, not negative.
    pub weight: f64,
}

// By hand: a derive would ask the model to be `Copy`.
impl<M, C: ContributionUnit> Copy for Source<'_, M, C> {}

impl<M, C: ContributionUnit> Clone for Source<'_, M, C> {
    fn clone(&self) -> Self {
        *self
    }
}

/// A parameter of one of the models to merge, flattened.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// θ.
    pub weights: &'a [f64],
    /// F of every element.
    pub fisher: &'a [f64],
    /// The weight `w_t`, not negative.
    pub weight: f64,
}

impl Merging {
    /// Merge models of one architecture; the result has the ids and device of the first.
    ///
    /// # Errors
    /// [`Error::NothingToMerge`] without models, or when weights or epsilon are not finite and
    /// positive; [`Error::OtherModel`] when a model's statistics are not its own;
    /// [`Error::NoFisher`] naming a trainable parameter without the statistics wanted;
    /// [`fisher_metrics::Error::Keys`] or `Sizes` when the architectures differ.
    pub fn forward<M: Module, C: ContributionUnit>(
        &self,
        sources: &[Source<'_, M, C>],
    ) -> Result<M> {
        let Some(first) = sources.first() else {
            return Err(Error::NothingToMerge);
        };
        for source in sources {
            check_model(source.model, source.statistics)?;
        }
        let weights = sources.iter().map(|source| Weights::of(source.model));
        let weights = weights.collect::<fisher_metrics::Result<Vec<_>>>()?;
        let mut merged = BTreeMap::new();
        for parameter in Catalogue::of(first.model)?.parameters() {
            let (path, elements) = (parameter.path(), parameter.elements());
            let mut fishers = Vec::with_capacity(sources.len());
            for source in sources {
                fishers.push(self.fisher(source, path, elements)?);
            }
            let terms = sources.iter().zip(&weights).zip(&fishers);
            let terms = terms.map(|((source, weights), fisher)| {
                Ok(Term {
                    weights: weights.get(path, elements)?,
                    fisher,
                    weight: source.weight,
                })
            });
            let average = self.average(&terms.collect::<Result<Vec<_>>>()?)?;
            merged.insert(path.to_owned(), average);
        }
        Ok(Weights::from(merged).write(first.model.clone()))
    }

    /// Merge one parameter: `Σ_t w_t (F_t + ε) θ_t / Σ_t w_t (F_t + ε)`, element by element.
    ///
    /// # Errors
    /// [`Error::NothingToMerge`] without terms, or when weights or epsilon are not finite and
    /// positive.
    ///
    /// # Panics
    /// When terms differ in their number of elements.
    pub fn average(&self, terms: &[Term<'_>]) -> Result<Vec<f64>> {
        let epsilon = self.config.epsilon;
        let proper = |x: f64| x.is_finite() && x >= 0.0;
        let weight: f64 = terms.iter().map(|term| term.weight).sum();
        let all_proper = terms.iter().all(|term| proper(term.weight));
        let (Some(first), true) = (terms.first(), all_proper && weight > 0.0) else {
            return Err(Error::NothingToMerge);
        };
        if !(epsilon > 0.0 && proper(epsilon)) {
            return Err(Error::NothingToMerge);
        }
        let elements = first.weights.len();
        let (mut above, mut below) = (vec![0.0; elements], vec![0.0; elements]);
        for term in terms {
            let sizes = [term.weights.len(), term.fisher.len()];
            assert_eq!(sizes, [elements; 2], "weights and F of one parameter");
            for k in 0..elements {
                let factor = term.weight * (term.fisher[k] + epsilon);
                above[k] += factor * term.weights[k];
                below[k] += factor;
            }
        }
        let average = above.iter().zip(below).map(|(above, below)| above / below);
        Ok(average.collect())
    }

    /// F of every element, or that of its group.
    fn fisher<M, C: ContributionUnit>(
        &self,
        source: &Source<'_, M, C>,
        path: &str,
        elements: usize,
    ) -> Result<Vec<f64>> {
        let missing = || Error::NoFisher {
            parameter: path.into(),
        };
        let task = source.statistics.task(source.task)?;
        let parameter = task.parameter(path).map_err(|_| missing())?;
        let fisher = match self.config.granularity {
            Granularity::Element => {
                let welford = parameter.elementwise().ok_or_else(missing)?;
                welford.read()?.mean.ok_or_else(missing)?
            }
            Granularity::Group => {
                let mut fisher = vec![0.0; elements];
                if parameter.groups().is_empty() {
                    return Err(missing());
                }
                for (grouping, welford) in parameter.groups() {
                    if grouping.shape().iter().product::<usize>() != elements {
                        return Err(missing());
                    }
                    let mean = welford.read()?.mean.ok_or_else(missing)?;
                    let groups = grouping.group_of_elements();
                    for (fisher, group) in fisher.iter_mut().zip(groups) {
                        *fisher += group.map_or(0.0, |group| mean[group]);
                    }
                }
                fisher
            }
        };
        match fisher.len() == elements {
            true => Ok(fisher),
            false => Err(missing()),
        }
    }
}
