//! Elastic weight consolidation.

use std::collections::{BTreeMap, BTreeSet};

use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use fisher_core::gradient::{ContributionUnit, at_least_single};
use fisher_core::model::{Catalogue, Place, PlaceVisitor, hash_weights, visit_places};
use fisher_core::moments::accumulation_dtype;
use fisher_core::provenance::Provenance;
use fisher_core::read;
use fisher_core::statistics::Statistics;
use fisher_metrics::curvature::kronecker::{Kronecker, Rotation};
use fisher_metrics::growth::{Growth, old_elements, old_part};
use fisher_metrics::report::same_fisher;
use fisher_metrics::weights::Weights;
use fisher_metrics::{Error as MetricsError, check_argument};

use super::diagonal::{check_finite, elementwise, move_to};
use crate::destination::check_model;
use crate::error::{Error, Result};

/// Configuration of [`Ewc`].
#[derive(Config, Debug)]
pub struct EwcConfig {
    /// The strength λ.
    pub strength: f64,
    /// What to do with parameters that grow after they were protected, such as the head of a classifier
    /// that learns new classes: refuse them, or hold the old rows and columns and leave the new ones
    /// free.
    #[config(default = "Growth::Refuse")]
    pub growth: Growth,
}

impl EwcConfig {
    /// A penalty that protects nothing yet.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Argument`] unless λ is finite and not negative.
    pub fn init(&self) -> Result<Ewc> {
        let strength = self.strength;
        let fits = strength >= 0.0 && strength.is_finite();
        check_argument(fits, "strength", "finite and at least 0", strength)?;
        Ok(Ewc {
            strength,
            growth: self.growth,
            provenance: None,
            tasks: BTreeSet::new(),
            apart: None,
            anchors: Vec::new(),
        })
    }
}

/// A penalty that keeps the weights that earlier tasks depend on:
/// `½ λ Σ_t Σ_k F_tk (θ_k − θ*_tk)²` (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting
/// in neural networks", equation 3). Its gradient is `λ Σ_t F_t ⊙ (θ − θ*_t)`.
///
/// Add [`Ewc::penalty`] to the loss in a `TrainStep`. All tasks' F must be of one kind and unit, and
/// a task can be protected once.
#[derive(Debug, Clone)]
pub struct Ewc {
    strength: f64,
    growth: Growth,
    /// Of the first statistics; the others agree with it.
    provenance: Option<Provenance>,
    tasks: BTreeSet<String>,
    /// The first task that was protected at weights of its own.
    apart: Option<String>,
    anchors: Vec<BTreeMap<String, Anchor>>,
}

/// What a parameter is held to.
#[derive(Debug, Clone)]
struct Anchor {
    shape: Vec<usize>,
    fisher: Tensor<1>,
    /// The bases that it is the diagonal in; the weights' own where absent.
    rotation: Option<Rotation>,
    weights: Tensor<1>,
}

impl Ewc {
    /// Protect what `model` knows of `task`, beside what is protected already.
    ///
    /// # Errors
    /// [`Error::OtherModel`] when the statistics are not of `model`; [`Error::NoFisher`] naming a
    /// trainable parameter without elementwise statistics; [`Error::Protected`] when the task is
    /// protected already; [`fisher_metrics::Error::OtherFisher`] when F is of another kind or unit
    /// than that of the tasks before, [`fisher_metrics::Error::NotFinite`] when it or a weight is NaN
    /// or infinite. Nothing is changed then.
    pub fn protect<M: Module, C: ContributionUnit>(
        &mut self,
        statistics: &Statistics<C>,
        task: &str,
        model: &M,
    ) -> Result<()> {
        self.check(statistics.provenance(), task)?;
        let anchors = anchors(statistics, task, model)?;
        self.anchors.push(anchors);
        self.apart.get_or_insert_with(|| task.into());
        self.note(statistics.provenance(), task);
        Ok(())
    }

    /// Protect what `model` knows of the task of a Kronecker approximation, KFAC or EKFAC, beside what is protected already:
    /// `½ λ (θ − θ*)ᵀ F (θ − θ*)` with the terms between elements of a parameter (Ritter, Botev & Barber 2018, "Online structured
    /// Laplace approximations for overcoming catastrophic forgetting").
    ///
    /// # Errors
    /// As [`Ewc::protect`]. Parameters that have grown since are refused by [`Ewc::penalty`], whatever
    /// [`EwcConfig::growth`] says: new rows have no place in old bases.
    pub fn protect_kronecker<M: Module>(&mut self, fisher: &Kronecker, model: &M) -> Result<()> {
        let (provenance, task) = (fisher.provenance(), fisher.task());
        self.check(provenance, task)?;
        let anchors = rotated_anchors(fisher, model)?;
        self.anchors.push(anchors);
        self.apart.get_or_insert_with(|| task.into());
        self.note(provenance, task);
        Ok(())
    }

    /// Protect what `model` knows of `task` in one running penalty, online: `F ← γF + F_task`, and
    /// `θ*`, of all that is protected, is the model as it is now (Schwarz et al. 2018, "Progress &
    /// compress"). The first task is protected online too: what [`Ewc::protect`] holds to weights of its
    /// own is not moved to others unasked. A task that is learned again needs another name: its samples
    /// would count twice.
    ///
    /// # Errors
    /// As [`Ewc::protect`]; [`Error::ProtectedApart`] when a task was protected by it;
    /// [`Error::NoFisher`] also when a protected parameter is gone,
    /// [`fisher_metrics::Error::Shape`] when it has another shape (see [`EwcConfig::growth`]),
    /// [`fisher_metrics::Error::Argument`] unless the decay γ is between 0 and 1.
    pub fn protect_online<M: Module, C: ContributionUnit>(
        &mut self,
        decay: f64,
        statistics: &Statistics<C>,
        task: &str,
        model: &M,
    ) -> Result<()> {
        let fits = (0.0..=1.0).contains(&decay);
        check_argument(fits, "decay", "between 0 and 1", decay)?;
        self.check(statistics.provenance(), task)?;
        if let Some(task) = &self.apart {
            return Err(Error::ProtectedApart { task: task.clone() });
        }
        let mut all = anchors(statistics, task, model)?;
        for (path, old) in self.anchors.iter().flatten() {
            let new = all.get_mut(path);
            let new = new.ok_or_else(|| Error::no_fisher(path))?;
            self.growth.check(path, &old.shape, &new.shape)?;
            let kept = move_to(grown(old, &new.shape)?, &new.fisher.device());
            let kept = kept.cast(new.fisher.dtype()).mul_scalar(decay);
            new.fisher.inplace(|fisher| fisher + kept);
            check_finite("the sum of F", path, new.fisher.clone())?;
        }
        self.anchors = vec![all];
        self.note(statistics.provenance(), task);
        Ok(())
    }

    /// `½ λ Σ F (θ − θ*)²` of `model`, `[1]`, tracked for gradients; `None` while nothing is
    /// protected.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Keys`] naming a protected parameter that the model lacks,
    /// [`fisher_metrics::Error::Shape`] one that has another shape there (see
    /// [`EwcConfig::growth`]).
    pub fn penalty<M: Module>(&self, model: &M) -> Result<Option<Tensor<1>>> {
        let mut sum = None;
        for anchors in &self.anchors {
            let mut visitor = Penalty {
                growth: self.growth,
                anchors,
                missing: anchors.keys().collect(),
                sum,
            };
            visit_places(model, &mut visitor)?;
            if let Some(path) = visitor.missing.first() {
                let error = MetricsError::keys(*path, "the protected parameters", "the model");
                return Err(error.into());
            }
            sum = visitor.sum;
        }
        Ok(sum.map(|sum| sum.mul_scalar(0.5 * self.strength)))
    }

    fn check(&self, provenance: &Provenance, task: &str) -> Result<()> {
        if self.tasks.contains(task) {
            return Err(Error::Protected { task: task.into() });
        }
        if let Some(first) = &self.provenance {
            same_fisher(first, provenance)?;
        }
        Ok(())
    }

    fn note(&mut self, provenance: &Provenance, task: &str) {
        self.tasks.insert(task.into());
        self.provenance.get_or_insert_with(|| provenance.clone());
    }
}

fn anchors<M: Module, C: ContributionUnit>(
    statistics: &Statistics<C>,
    task: &str,
    model: &M,
) -> Result<BTreeMap<String, Anchor>> {
    check_model(model, statistics)?;
    let fisher = elementwise(statistics, task, &Catalogue::of(model)?, Growth::Refuse)?;
    let weights = Weights::of(model)?;
    let anchors = fisher.into_iter().map(|(path, diagonal)| {
        let fisher = diagonal.fisher;
        let options = (&fisher.device(), fisher.dtype());
        let weights = weights.get(&path, fisher.dims()[0])?;
        let weights = Tensor::from_data(weights, options);
        check_finite("a weight", &path, weights.clone())?;
        let anchor = Anchor {
            shape: diagonal.shape,
            fisher,
            rotation: None,
            weights,
        };
        Ok((path, anchor))
    });
    anchors.collect()
}

fn rotated_anchors<M: Module>(fisher: &Kronecker, model: &M) -> Result<BTreeMap<String, Anchor>> {
    let hash = hash_weights(model)?;
    if hash != fisher.provenance().model {
        return Err(Error::OtherModel {
            expected: fisher.provenance().model.clone(),
            found: hash,
        });
    }
    let device = model.devices().first().cloned().unwrap_or_default();
    let device = device.without_autodiff();
    let weights = Weights::of(model)?;
    let catalogue = Catalogue::of(model)?;
    let anchors = catalogue.parameters().iter().map(|parameter| {
        let (path, elements) = (parameter.path(), parameter.elements());
        let block = fisher.block(path).map_err(|_| Error::no_fisher(path))?;
        if block.shape() != parameter.shape() {
            return Err(MetricsError::shape(path, parameter.shape(), block.shape()).into());
        }
        let tensor = |values: &[f64]| {
            let options = (&device, accumulation_dtype(&device));
            Tensor::<1>::from_data(TensorData::new(values.to_vec(), [elements]), options)
        };
        let anchor = Anchor {
            shape: parameter.shape().to_vec(),
            fisher: tensor(block.eigenvalues()),
            rotation: Some(Rotation::new(block, &device)),
            weights: tensor(weights.get(path, elements)?),
        };
        check_finite("F", path, anchor.fisher.clone())?;
        check_finite("a weight", path, anchor.weights.clone())?;
        Ok((path.to_owned(), anchor))
    });
    anchors.collect()
}

/// F of a parameter at a shape that it has grown to: 0 where it is new.
fn grown(anchor: &Anchor, shape: &[usize]) -> Result<Tensor<1>> {
    let fisher = anchor.fisher.clone();
    if anchor.shape == shape {
        return Ok(fisher);
    }
    let options = (fisher.device(), fisher.dtype());
    let old = read(fisher)?;
    let mut new = vec![0.0; shape.iter().product()];
    for (place, value) in old_elements(&anchor.shape, shape).into_iter().zip(old) {
        new[place] = value;
    }
    let elements = [new.len()];
    Ok(Tensor::from_data(
        TensorData::new(new, elements),
        (&options.0, options.1),
    ))
}

struct Penalty<'a> {
    growth: Growth,
    anchors: &'a BTreeMap<String, Anchor>,
    /// Protected parameters that the model has not shown yet.
    missing: BTreeSet<&'a String>,
    sum: Option<Tensor<1>>,
}

impl PlaceVisitor for Penalty<'_> {
    type Error = Error;

    fn visit<const D: usize>(&mut self, place: Place, param: &Param<Tensor<D>>) -> Result<()> {
        let path = place.path;
        let Some(anchor) = self.anchors.get(&path) else {
            return Ok(());
        };
        self.missing.remove(&path);
        let theta = param.val();
        let growth = match &anchor.rotation {
            Some(_) => Growth::Refuse,
            None => self.growth,
        };
        growth.check(&path, &anchor.shape, &theta.dims())?;
        let mut old = theta.dims();
        old.copy_from_slice(&anchor.shape);
        // In half precision small F would be 0.
        let elements = anchor.weights.dims();
        let theta = at_least_single(theta.slice(old_part(old))).reshape(elements);
        let at = |held: &Tensor<1>| move_to(held.clone().cast(theta.dtype()), &theta.device());
        let away = theta.clone() - at(&anchor.weights);
        let away = match &anchor.rotation {
            Some(rotation) => rotation.there_flat(away),
            None => away,
        };
        let term = (at(&anchor.fisher) * away.square()).sum();
        self.sum = Some(match self.sum.take() {
            Some(sum) => {
                let term = term.to_device(&sum.device());
                sum + term
            }
            None => term,
        });
        Ok(())
    }
}
