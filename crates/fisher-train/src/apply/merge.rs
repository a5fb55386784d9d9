//! Joining models of one architecture by their Fisher.

use std::collections::BTreeMap;
use std::fmt;

use burn::config::Config;
use burn::module::Module;
use fisher_core::gradient::{ContributionUnit, PerToken};
use fisher_core::grouping::Grouping;
use fisher_core::model::{Catalogue, Parameter};
use fisher_core::provenance::Provenance;
use fisher_core::statistics::Statistics;
use fisher_metrics::damping::{Health, Ridge};
use fisher_metrics::report::{same_fisher, same_reduction};
use fisher_metrics::weights::Weights;
use fisher_metrics::{Error as MetricsError, check_argument};
use serde::{Deserialize, Serialize};

use super::diagonal::measured;
use crate::destination::check_model;
use crate::error::{Error, Result};

/// Version of the form of [`MergeReport`].
const SCHEMA: u64 = 2;
/// The share of weights averaged plainly, or of F below ε, from which on it is worth a warning.
const MANY: f64 = 0.05;

/// What one weight of the average is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Granularity {
    /// F of every element.
    Element,
    /// F of the element's group: channel, row or head.
    Group,
}

/// The scale that the models' F are brought to before they are weighed against each other.
///
/// F grows with the square of the loss's gradient: of two models the one that is less sure of its
/// task counts for more everywhere, and the one that has learnt it well for nothing. The factors are such
/// that F is of size 1, whatever the number of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FisherScale {
    /// As it is.
    None,
    /// The mean of F over all weights is 1, `F · N / tr F`: models count for as much as each other.
    Trace,
    /// The root mean square of F over every tensor is 1, `F · √N / ‖F‖`: models count for as much in every
    /// tensor.
    Norm,
}

/// Configuration of [`Merging`].
#[derive(Config, Debug)]
pub struct MergeConfig {
    /// What one weight of the average is made of.
    #[config(default = "Granularity::Element")]
    pub granularity: Granularity,
    /// The scale that the models' F are brought to.
    #[config(default = "FisherScale::None")]
    pub scale: FisherScale,
    /// ε, added to every F, scaled: where no model cares, they are averaged plainly. F's scale is the
    /// model's, so an ε that is small for one averages all of another plainly: see
    /// [`MergeReport`].
    #[config(default = 1e-12)]
    pub epsilon: f64,
}

impl MergeConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Argument`] unless ε is finite and above 0.
    pub fn init(&self) -> Result<Merging> {
        let fits = self.epsilon > 0.0 && self.epsilon.is_finite();
        check_argument(fits, "epsilon", "finite and above 0", self.epsilon)?;
        Ok(Merging {
            config: self.clone(),
        })
    }
}

/// `θ* = Σ_t w_t (F_t + ε) θ_t / Σ_t w_t (F_t + ε)` (Matena & Raffel 2022, "Merging models with
/// Fisher-weighted averaging", equation 4), F brought to one scale first if asked for
/// ([`FisherScale`]).
///
/// Frozen parameters are those of the first model, and so are copies of the model in it, such as a
/// teacher.
#[derive(Debug, Clone)]
pub struct Merging {
    config: MergeConfig,
}

/// One of the models to merge.
#[derive(Debug)]
pub struct MergeSource<'a, M, C: ContributionUnit = PerToken> {
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
impl<M, C: ContributionUnit> Copy for MergeSource<'_, M, C> {}

impl<M, C: ContributionUnit> Clone for MergeSource<'_, M, C> {
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

/// A merged model.
#[derive(Debug, Clone)]
pub struct Merged<M> {
    /// With the ids and the device of the first.
    pub model: M,
    /// What F and ε decided.
    pub report: MergeReport,
}

/// One parameter of a merged model, flattened.
#[derive(Debug, Clone)]
pub struct Average {
    /// θ*.
    pub weights: Vec<f64>,
    /// What F and ε decided.
    pub decided: Decided,
}

/// What decided a merged parameter: F, or ε where F is below it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// F of each model beside ε, which stands as the λ applied. Models of weight 0 are left out.
    pub health: Vec<Health>,
    /// The number of weights.
    pub elements: usize,
    /// How many were averaged plainly, no model's F being as large as ε.
    pub plain: usize,
}

/// What F and ε decided in a merge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// Version of this form.
    pub schema: u64,
    /// The tasks, and where their statistics come from.
    pub sources: Vec<(String, Provenance)>,
    /// What one weight of the average was made of.
    pub granularity: Granularity,
    /// The scale that F were brought to.
    pub scale: FisherScale,
    /// ε.
    pub epsilon: f64,
    /// Share of the weights that were averaged plainly, no model's F being as large as ε.
    pub plain: f64,
    /// By path.
    pub parameters: BTreeMap<String, Decided>,
    /// What to look at before the merged model is used.
    pub warnings: Vec<String>,
}

impl Merging {
    /// Merge models of one architecture.
    ///
    /// # Errors
    /// [`Error::NothingToMerge`] without models, or when weights are not finite, negative or all 0;
    /// [`Error::OtherModel`] when a model's statistics are not its own;
    /// [`Error::NoFisher`] naming a trainable parameter without the statistics wanted;
    /// [`Error::Untied`] when one model uses a parameter twice that is two in another;
    /// [`fisher_metrics::Error::OtherFisher`] when the models' F are of another kind, or groups' of
    /// another reduction, and `Groups` when they are of other groups (another scheme or head
    /// layout); [`fisher_metrics::Error::Keys`] or `Shape` when the architectures differ, `NotFinite`
    /// naming a parameter whose F or weights are not.
    pub fn forward<M: Module, C: ContributionUnit>(
        &self,
        sources: &[MergeSource<'_, M, C>],
    ) -> Result<Merged<M>> {
        let Some(first) = sources.first() else {
            return Err(Error::NothingToMerge);
        };
        for source in sources {
            check_model(source.model, source.statistics)?;
            self.check(first.statistics, source.statistics)?;
        }
        let weights = sources.iter().map(|source| Weights::of(source.model));
        let weights = weights.collect::<fisher_metrics::Result<Vec<_>>>()?;
        let (mut merged, mut parameters) = (BTreeMap::new(), BTreeMap::new());
        let catalogue = Catalogue::of(first.model)?;
        let mut traces = Vec::with_capacity(sources.len());
        for source in sources {
            traces.push(match self.config.scale {
                FisherScale::Trace => self.trace(source, &catalogue)?,
                _ => 1.0,
            });
        }
        for parameter in catalogue.parameters() {
            let (path, elements) = (parameter.path(), parameter.elements());
            let mut fishers = Vec::with_capacity(sources.len());
            for ((source, weights), mean) in sources.iter().zip(&weights).zip(&traces) {
                check_ties(parameter, weights, source.task)?;
                let mut fisher = self.fisher(source, parameter)?;
                let size = match self.config.scale {
                    FisherScale::Norm => root_mean_square(&fisher),
                    _ => *mean,
                };
                // F that is 0 everywhere stays it.
                if size > 0.0 {
                    fisher.iter_mut().for_each(|f| *f /= size);
                }
                fishers.push(fisher);
                if self.config.granularity == Granularity::Group {
                    check_groups(path, first, source)?;
                }
            }
            let terms = sources.iter().zip(&weights).zip(&fishers);
            let terms = terms.map(|((source, weights), fisher)| {
                Ok(Term {
                    weights: weights.get(path, elements)?,
                    fisher,
                    weight: source.weight,
                })
            });
            let average = self.average(path, &terms.collect::<Result<Vec<_>>>()?)?;
            for tied in parameter.tied() {
                merged.insert(tied.clone(), average.weights.clone());
            }
            merged.insert(path.to_owned(), average.weights);
            parameters.insert(path.to_owned(), average.decided);
        }
        let named = |source: &MergeSource<'_, M, C>| {
            (source.task.into(), source.statistics.provenance().clone())
        };
        Ok(Merged {
            model: Weights::from(merged).write(first.model.clone())?,
            report: self.report(sources.iter().map(named).collect(), parameters),
        })
    }

    /// Whether the F of `other` may be weighed against that of `first`.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::OtherFisher`], naming the first difference.
    pub fn check<C: ContributionUnit>(
        &self,
        first: &Statistics<C>,
        other: &Statistics<C>,
    ) -> Result<()> {
        let [first, other] = [first.provenance(), other.provenance()];
        same_fisher(first, other)?;
        if self.config.granularity == Granularity::Group {
            same_reduction(first, other)?;
        }
        Ok(())
    }

    /// Merge the parameter at `path`: `Σ_t w_t (F_t + ε) θ_t / Σ_t w_t (F_t + ε)`, element by element, F as
    /// it is given: [`MergeConfig::scale`] is the caller's, who alone knows the other parameters.
    ///
    /// # Errors
    /// [`Error::NothingToMerge`] without terms, or when weights are not finite, negative or all 0;
    /// [`fisher_metrics::Error::NotFinite`] when F or θ is not, or both are too large to be
    /// multiplied.
    ///
    /// # Panics
    /// When terms differ in their number of elements.
    pub fn average(&self, path: &str, terms: &[Term<'_>]) -> Result<Average> {
        let epsilon = self.config.epsilon;
        let proper = |term: &Term<'_>| term.weight.is_finite() && term.weight >= 0.0;
        let largest = terms
            .iter()
            .fold(0.0, |max: f64, term| max.max(term.weight));
        let (Some(first), true) = (terms.first(), terms.iter().all(proper) && largest > 0.0) else {
            return Err(Error::NothingToMerge);
        };
        let elements = first.weights.len();
        let (mut above, mut below) = (vec![0.0; elements], vec![0.0; elements]);
        let mut decides = vec![false; elements];
        let mut health = Vec::new();
        for term in terms {
            let sizes = [term.weights.len(), term.fisher.len()];
            assert_eq!(sizes, [elements; 2], "weights and F of one parameter");
            if term.weight == 0.0 {
                continue;
            }
            for k in 0..elements {
                let factor = term.weight / largest * (term.fisher[k] + epsilon);
                above[k] += factor * term.weights[k];
                below[k] += factor;
                decides[k] |= term.fisher[k] >= epsilon;
            }
            let ridge = Ridge::new()
                .with_epsilon(epsilon)
                .with_ridge(epsilon)
                .with_ridge_rel(0.0);
            health.push(ridge.health(&mut term.fisher.to_vec()));
        }
        let weights = above.iter().zip(below).map(|(above, below)| above / below);
        let weights: Vec<f64> = weights.collect();
        if !weights.iter().all(|weight| weight.is_finite()) {
            let what = "F or a weight, or the product of both,";
            return Err(MetricsError::not_finite(what, path).into());
        }
        Ok(Average {
            weights,
            decided: Decided {
                health,
                elements,
                plain: decides.iter().filter(|decides| !**decides).count(),
            },
        })
    }

    /// What F and ε decided, over all parameters.
    pub fn report(
        &self,
        sources: Vec<(String, Provenance)>,
        parameters: BTreeMap<String, Decided>,
    ) -> MergeReport {
        let epsilon = self.config.epsilon;
        let sum = |of: fn(&Decided) -> usize| parameters.values().map(of).sum::<usize>();
        let (elements, plain) = (sum(|d| d.elements), sum(|d| d.plain));
        let plain = plain as f64 / elements.max(1) as f64;
        let mut warnings = Vec::new();
        let mut warn = |what: String, found: Vec<&String>| {
            if let Some(name) = found.first() {
                let (count, all) = (found.len(), parameters.len());
                let warning = format!("{what} in {count} of {all} parameters, such as {name}");
                tracing::warn!("{warning}");
                warnings.push(warning);
            }
        };
        let named = |is: &dyn Fn(&Decided) -> bool| -> Vec<&String> {
            let found = parameters.iter().filter(|(_, decided)| is(decided));
            found.map(|(path, _)| path).collect()
        };
        let many = |d: &Decided| d.plain as f64 > MANY * d.elements as f64;
        warn(
            format!(
                "{:.1} % of the weights are averaged plainly, no model's F being as large as \
                 ε = {epsilon:e} (choose ε far below the F that matters): more than 5 %",
                100.0 * plain
            ),
            named(&many),
        );
        let swamped = |d: &Decided| {
            let ill = |h: &Health| h.swamped() || h.fraction_below_epsilon > MANY;
            d.health.iter().any(ill) && !many(d)
        };
        warn(
            format!(
                "ε = {epsilon:e} is more than 1 % of a model's median F, or above more than 5 % of its \
                 F,"
            ),
            named(&swamped),
        );
        MergeReport {
            schema: SCHEMA,
            sources,
            granularity: self.config.granularity,
            scale: self.config.scale,
            epsilon,
            plain,
            parameters,
            warnings,
        }
    }

    /// The mean of F over all weights.
    fn trace<M, C: ContributionUnit>(
        &self,
        source: &MergeSource<'_, M, C>,
        catalogue: &Catalogue,
    ) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0);
        for parameter in catalogue.parameters() {
            sum += self.fisher(source, parameter)?.iter().sum::<f64>();
            count += parameter.elements();
        }
        Ok(sum / count.max(1) as f64)
    }

    /// F of every element, or that of its group.
    fn fisher<M, C: ContributionUnit>(
        &self,
        source: &MergeSource<'_, M, C>,
        parameter: &Parameter,
    ) -> Result<Vec<f64>> {
        let path = parameter.path();
        let missing = || Error::no_fisher(path);
        let (found, shape) = measured(source.statistics, source.task, path)?;
        if shape != parameter.shape() {
            return Err(MetricsError::shape(path, parameter.shape(), shape).into());
        }
        match self.config.granularity {
            Granularity::Element => {
                let welford = found.elementwise().ok_or_else(missing)?;
                welford.read()?.mean.ok_or_else(missing)
            }
            Granularity::Group => {
                if found.groups().is_empty() {
                    return Err(missing());
                }
                let mut fisher = vec![0.0; parameter.elements()];
                for (grouping, welford) in found.groups() {
                    let mean = welford.read()?.mean.ok_or_else(missing)?;
                    let groups = grouping.group_of_elements();
                    for (fisher, group) in fisher.iter_mut().zip(groups) {
                        *fisher += group.map_or(0.0, |group| mean[group]);
                    }
                }
                Ok(fisher)
            }
        }
    }
}

/// Of numbers of any size: squares of F may be out of range.
fn root_mean_square(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 || !largest.is_finite() {
        return 0.0;
    }
    let squares: f64 = values.iter().map(|x| (x / largest).powi(2)).sum();
    largest * (squares / values.len() as f64).sqrt()
}

/// Whether two models' F are of the same groups.
fn check_groups<M, C: ContributionUnit>(
    path: &str,
    first: &MergeSource<'_, M, C>,
    other: &MergeSource<'_, M, C>,
) -> Result<()> {
    let groupings = |source: &MergeSource<'_, M, C>| -> Result<Vec<Grouping>> {
        let parameter = source.statistics.task(source.task)?.parameter(path)?;
        let groups = parameter.groups().iter();
        Ok(groups.map(|(grouping, _)| grouping.clone()).collect())
    };
    if groupings(first)? == groupings(other)? {
        return Ok(());
    }
    let key = path.into();
    Err(MetricsError::Groups { key }.into())
}

/// Whether a model has one parameter where the first has one at several paths.
pub(super) fn check_ties(parameter: &Parameter, weights: &Weights, task: &str) -> Result<()> {
    let at = |path: &str| weights.get(path, parameter.elements());
    let here = at(parameter.path())?;
    for tied in parameter.tied() {
        let mut pairs = at(tied)?.iter().zip(here);
        if pairs.any(|(there, here)| there.to_bits() != here.to_bits()) {
            return Err(Error::Untied {
                first: parameter.path().into(),
                second: tied.clone(),
                task: task.into(),
            });
        }
    }
    Ok(())
}

impl fmt::Display for MergeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks: Vec<&str> = self.sources.iter().map(|(task, _)| &**task).collect();
        write!(
            f,
            "Merged {} with ε = {:e}: {:.1} % of the weights averaged plainly.",
            tasks.join(", "),
            self.epsilon,
            100.0 * self.plain
        )?;
        for warning in &self.warnings {
            write!(f, "\n  Note: {warning}.")?;
        }
        Ok(())
    }
}
