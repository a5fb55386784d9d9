//! Any Burn optimizer on gradients that are scaled by the Fisher.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use fisher_core::{Catalogue, ContributionUnit, Statistics};
use fisher_metrics::Scaling;

use crate::fisher::elementwise;
use crate::{Error, Result};

/// Wraps a Burn optimizer: each gradient becomes `g ⊘ (F + λ)^α` before the step.
///
/// In a hand-written loop call [`FisherOptimizer::step`]. Burn's `Learner` owns its optimizer: there
/// override `TrainStep::optimize` and pass it the gradients of [`FisherOptimizer::scale`].
#[derive(Clone)]
pub struct FisherOptimizer {
    optimizer: ModuleOptimizer,
    scaling: Scaling,
    fisher: BTreeMap<String, Tensor<1>>,
}

impl FisherOptimizer {
    /// Wrap `optimizer`, with the Fisher of `task` for every trainable parameter of `model`.
    ///
    /// # Errors
    /// [`Error::NoFisher`] naming a trainable parameter without
    /// elementwise statistics: nothing is left unscaled in silence.
    pub fn new<M: Module, C: ContributionUnit>(
        optimizer: ModuleOptimizer,
        scaling: Scaling,
        statistics: &Statistics<C>,
        task: &str,
        model: &M,
    ) -> Result<Self> {
        Ok(Self {
            optimizer,
            scaling,
            fisher: elementwise(statistics, task, &Catalogue::of(model)?)?,
        })
    }

    /// Take the Fisher anew from statistics that have moved on.
    ///
    /// # Errors
    /// As [`FisherOptimizer::new`].
    pub fn refresh<M: Module, C: ContributionUnit>(
        &mut self,
        statistics: &Statistics<C>,
        task: &str,
        model: &M,
    ) -> Result<()> {
        self.fisher = elementwise(statistics, task, &Catalogue::of(model)?)?;
        Ok(())
    }

    /// Scale the gradients of a module.
    ///
    /// # Errors
    /// [`Error::NoFisher`] naming a parameter that has a gradient but no Fisher, such as one that
    /// was frozen before.
    pub fn scale<M: Module>(
        &self,
        module: &M,
        gradients: GradientsParams,
    ) -> Result<GradientsParams> {
        let mut visitor = Scale {
            names: Vec::new(),
            scaling: &self.scaling,
            fisher: &self.fisher,
            gradients,
            scaled: GradientsParams::new(),
            missing: None,
        };
        module.visit(&mut visitor);
        match visitor.missing {
            Some(parameter) => Err(Error::NoFisher { parameter }),
            None => Ok(visitor.scaled),
        }
    }

    /// One step of the wrapped optimizer on scaled gradients.
    ///
    /// # Errors
    /// As [`FisherOptimizer::scale`]; the module is lost then.
    pub fn step<M: Module>(
        &mut self,
        rate: impl Into<ModuleLearningRate>,
        module: M,
        gradients: GradientsParams,
    ) -> Result<M> {
        let gradients = self.scale(&module, gradients)?;
        Ok(self.optimizer.step(rate, module, gradients))
    }
}

struct Scale<'a> {
    names: Vec<String>,
    scaling: &'a Scaling,
    fisher: &'a BTreeMap<String, Tensor<1>>,
    gradients: GradientsParams,
    scaled: GradientsParams,
    missing: Option<String>,
}

impl ModuleVisitor for Scale<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.names.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.names.join(".");
        let Some(gradient) = self.gradients.remove::<D>(param.id) else {
            return; // frozen, not reached, or another use of a parameter that is done
        };
        match self.fisher.get(&path) {
            Some(fisher) => {
                let fisher = fisher.clone().reshape(gradient.dims());
                let scaled = self.scaling.forward(gradient, fisher);
                self.scaled.register(param.id, scaled);
            }
            None => self.missing = Some(path),
        }
    }
}
