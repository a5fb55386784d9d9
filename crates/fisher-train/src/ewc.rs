//! Elastic weight consolidation.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};
use fisher_core::{Catalogue, ContributionUnit, Statistics};
use fisher_metrics::Weights;

use crate::destination::check_model;
use crate::fisher::elementwise;
use crate::{Error, Result};

/// A penalty that keeps the weights that earlier tasks depend on:
/// `½ λ Σ_t Σ_k F_tk (θ_k − θ*_tk)²` (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting
/// in neural networks", equation 3). Its gradient is `λ Σ_t F_t ⊙ (θ − θ*_t)`.
///
/// Add [`Ewc::penalty`] to the loss in a `TrainStep`.
#[derive(Debug, Clone)]
pub struct Ewc {
    strength: f64,
    anchors: Vec<BTreeMap<String, Anchor>>,
}

#[derive(Debug, Clone)]
struct Anchor {
    fisher: Tensor<1>,
    weights: Tensor<1>,
}

impl Ewc {
    /// A penalty of strength λ that protects nothing yet.
    pub fn new(strength: f64) -> Self {
        Self {
            strength,
            anchors: Vec::new(),
        }
    }

    /// Protect what `model` knows of `task`, beside what is protected already.
    ///
    /// # Errors
    /// [`Error::OtherModel`] when the statistics are not of `model`; [`Error::NoFisher`] naming a
    /// trainable parameter without elementwise statistics.
    pub fn protect<M: Module, C: ContributionUnit>(
        &mut self,
        statistics: &Statistics<C>,
        task: &str,
        model: &M,
    ) -> Result<()> {
        self.anchors.push(anchor(statistics, task, model)?);
        Ok(())
    }

    /// Protect what `model` knows of `task` in one running penalty, online: `F ← γF + F_task`, and
    /// `θ*`, of all that is protected, is the model as it is now (Schwarz et al. 2018, "Progress &
    /// compress").
    ///
    /// # Errors
    /// As [`Ewc::protect`]; [`Error::NoFisher`] also when the parameters have changed.
    pub fn protect_online<M: Module, C: ContributionUnit>(
        &mut self,
        decay: f64,
        statistics: &Statistics<C>,
        task: &str,
        model: &M,
    ) -> Result<()> {
        let mut new = anchor(statistics, task, model)?;
        for (path, old) in self.anchors.iter().flatten() {
            let new = new.get_mut(path).ok_or_else(|| Error::NoFisher {
                parameter: path.clone(),
            })?;
            let kept = old.fisher.clone().mul_scalar(decay);
            new.fisher.inplace(|fisher| fisher + kept);
        }
        self.anchors = vec![new];
        Ok(())
    }

    /// `½ λ Σ F (θ − θ*)²` of `model`, `[1]`, tracked for gradients; `None` while nothing is
    /// protected.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Keys`] naming a protected parameter that the model lacks.
    pub fn penalty<M: Module>(&self, model: &M) -> Result<Option<Tensor<1>>> {
        let mut sum = None;
        for anchors in &self.anchors {
            let mut visitor = Penalty {
                names: Vec::new(),
                anchors,
                missing: anchors.keys().collect(),
                sum,
            };
            model.visit(&mut visitor);
            if let Some(path) = visitor.missing.first() {
                return Err(Error::Metrics(fisher_metrics::Error::Keys {
                    key: path.to_string(),
                    present: "the protected parameters",
                    absent: "the model, or is of another size there",
                }));
            }
            sum = visitor.sum;
        }
        Ok(sum.map(|sum| sum.mul_scalar(0.5 * self.strength)))
    }
}

fn anchor<M: Module, C: ContributionUnit>(
    statistics: &Statistics<C>,
    task: &str,
    model: &M,
) -> Result<BTreeMap<String, Anchor>> {
    check_model(model, statistics)?;
    let fisher = elementwise(statistics, task, &Catalogue::of(model)?)?;
    let weights = Weights::of(model)?;
    let anchors = fisher.into_iter().map(|(path, fisher)| {
        let options = (&fisher.device(), fisher.dtype());
        let weights = weights.get(&path, fisher.dims()[0])?;
        let weights = Tensor::from_data(weights, options);
        Ok((path, Anchor { fisher, weights }))
    });
    anchors.collect()
}

struct Penalty<'a> {
    names: Vec<String>,
    anchors: &'a BTreeMap<String, Anchor>,
    /// Protected parameters that the model has not shown yet.
    missing: BTreeSet<&'a String>,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for Penalty<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.names.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.names.join(".");
        let Some(Anchor { fisher, weights }) = self.anchors.get(&path) else {
            return;
        };
        let theta = param.val();
        if theta.shape().num_elements() != weights.dims()[0] {
            return; // another parameter of the same path: it stays missing
        }
        self.missing.remove(&path);
        // In half precision small F would be 0.
        let dtype = match theta.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let theta = theta.cast(dtype).reshape(weights.dims());
        let away = theta - weights.clone().cast(dtype);
        let term = (fisher.clone().cast(dtype) * away.square()).sum();
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + term,
            None => term,
        });
    }
}
