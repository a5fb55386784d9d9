//! Any Burn optimizer on gradients that are scaled by the Fisher.

use std::collections::BTreeMap;

use burn::config::Config;
use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use fisher_core::gradient::ContributionUnit;
use fisher_core::model::Catalogue;
use fisher_core::provenance::Provenance;
use fisher_core::statistics::Statistics;
use fisher_metrics::report::same_fisher;
use fisher_metrics::scaling::{Scaling, ScalingConfig};

use super::diagonal::{Diagonal, elementwise};
use super::precondition::{Precondition, preconditioned, step, ties};
use crate::error::{Error, Result};

/// Configuration of [`FisherOptimizer`].
#[derive(Config, Debug)]
pub struct FisherOptimizerConfig {
    /// How gradients are scaled.
    #[config(default = "ScalingConfig::new()")]
    pub scaling: ScalingConfig,
}

impl FisherOptimizerConfig {
    /// Wrap `optimizer`, with the Fisher of `task` for every trainable parameter of `model`.
    ///
    /// # Errors
    /// Those of [`ScalingConfig::init`]; [`Error::NoFisher`] naming a trainable parameter without
    /// elementwise statistics: nothing is left unscaled in silence; [`fisher_metrics::Error::Shape`]
    /// naming one that has another shape in the statistics, where the scaling does not let it grow;
    /// [`fisher_metrics::Error::NotFinite`] naming one whose F is NaN or infinite;
    /// [`Error::SharedId`] when two trainable parameters share an id and are not tied.
    pub fn init<M: Module, C: ContributionUnit>(
        &self,
        optimizer: ModuleOptimizer,
        statistics: &Statistics<C>,
        task: &str,
        model: &M,
    ) -> Result<FisherOptimizer> {
        ties(model)?;
        let scaling = self.scaling.init()?;
        Ok(FisherOptimizer {
            fisher: elementwise(statistics, task, &Catalogue::of(model)?, scaling.growth())?,
            optimizer,
            scaling,
            provenance: statistics.provenance().clone(),
        })
    }
}

/// Wraps a Burn optimizer: each gradient becomes `g ⊘ (F + λ)^α` before the step.
///
/// In a hand-written loop call [`FisherOptimizer::step`]. Burn's `Learner` owns its optimizer: there
/// override `TrainStep::optimize` and pass it the gradients of [`FisherOptimizer::scale`].
///
/// A frozen copy of the model in the same module, such as a teacher, bears the model's ids
/// and would be stepped in its place by Burn's optimizers where it comes first:
/// [`FisherOptimizer::step`] leaves it as it is, the `Learner` does not; give a copy ids of its
/// own with [`fisher_core::model::new_ids`].
#[derive(Clone)]
pub struct FisherOptimizer {
    optimizer: ModuleOptimizer,
    scaling: Scaling,
    provenance: Provenance,
    fisher: BTreeMap<String, Diagonal>,
}

impl FisherOptimizer {
    /// Take the Fisher anew from statistics that have moved on.
    ///
    /// # Errors
    /// As [`FisherOptimizerConfig::init`]; [`fisher_metrics::Error::OtherFisher`] when F is of another kind or
    /// unit than before: steps would be of another size. Nothing is changed then.
    pub fn refresh<M: Module, C: ContributionUnit>(
        &mut self,
        statistics: &Statistics<C>,
        task: &str,
        model: &M,
    ) -> Result<()> {
        same_fisher(&self.provenance, statistics.provenance())?;
        let growth = self.scaling.growth();
        self.fisher = elementwise(statistics, task, &Catalogue::of(model)?, growth)?;
        Ok(())
    }

    /// Scale the gradients of a module.
    ///
    /// # Errors
    /// [`Error::NoFisher`] naming a parameter that has a gradient but no Fisher, such as one that
    /// was frozen before; [`fisher_metrics::Error::Shape`] naming one that has grown since, where the
    /// scaling does not let it; [`Error::SharedId`] as for [`FisherOptimizerConfig::init`].
    pub fn scale<M: Module>(
        &self,
        module: &M,
        gradients: GradientsParams,
    ) -> Result<GradientsParams> {
        let mut scale = Scale {
            scaling: &self.scaling,
            fisher: &self.fisher,
        };
        preconditioned(module, gradients, &mut scale)
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
        let mut scale = Scale {
            scaling: &self.scaling,
            fisher: &self.fisher,
        };
        step(&mut self.optimizer, rate, module, gradients, &mut scale)
    }
}

struct Scale<'a> {
    scaling: &'a Scaling,
    fisher: &'a BTreeMap<String, Diagonal>,
}

impl Precondition for Scale<'_> {
    fn forward<const D: usize>(&mut self, path: &str, gradient: Tensor<D>) -> Result<Tensor<D>> {
        let diagonal = self.fisher.get(path);
        let diagonal = diagonal.ok_or_else(|| Error::no_fisher(path))?;
        let mut old = gradient.dims();
        let growth = self.scaling.growth();
        growth.check(path, &diagonal.shape, &old)?;
        old.copy_from_slice(&diagonal.shape);
        let fisher = diagonal.on(&gradient.device()).reshape(old);
        Ok(self.scaling.forward(gradient, fisher))
    }
}
