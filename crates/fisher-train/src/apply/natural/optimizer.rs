//! The wrapper of an optimizer.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, Tensor};
use fisher_core::factors::FactorsConfig;
use fisher_core::model::Catalogue;
use fisher_core::read;
use fisher_metrics::damping::Damping;
use fisher_metrics::{Error as MetricsError, check_argument};

use super::super::precondition::{Precondition, preconditioned, ties};
use super::config::NaturalGradientConfig;
use super::curvature::RunningFisher;
use super::kept::Kept;
use super::reduction::{Weights, predicted, weights};
use crate::batch::SampleLoss;
use crate::capture::{CaptureConfig, Watched};
use crate::error::{Error, Result};

impl NaturalGradientConfig {
    /// Wrap `optimizer` for all trainable parameters of `model`. It is to have no second moments of its own: `Sgd`, with momentum
    /// or without.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Argument`] for a number out of range, [`crate::Error::SharedId`] when two parameters share an id
    /// and are not tied, [`fisher_core::Error::NoParameters`] when nothing is trainable.
    pub fn init<M: Module>(
        &self,
        optimizer: ModuleOptimizer,
        model: &M,
    ) -> Result<NaturalGradient> {
        let lambda = match self.damping {
            Damping::Absolute(lambda) | Damping::Relative(lambda) => lambda,
            _ => f64::NAN,
        };
        let fits = lambda > 0.0 && lambda.is_finite();
        check_argument(fits, "damping", "finite and above 0", lambda)?;
        let fits = (0.0..1.0).contains(&self.decay);
        check_argument(fits, "decay", "from 0 to below 1", self.decay)?;
        check_argument(self.refresh > 0, "refresh", "above 0", 0.0)?;
        let radius = self.radius.unwrap_or(1.0);
        check_argument(radius > 0.0, "radius", "above 0", radius)?;
        let fits = self.adaptation > 0.0 && self.adaptation <= 1.0;
        check_argument(fits, "adaptation", "above 0 and at most 1", self.adaptation)?;
        ties(model)?;
        let factors = FactorsConfig::new()
            .with_positions(self.positions)
            .with_largest(self.largest)
            .with_kind(self.kind);
        let catalogue = Catalogue::of(model)?;
        // What is wrong with it is said now.
        factors.init_for(&catalogue, String::new())?;
        Ok(NaturalGradient {
            optimizer,
            capture: CaptureConfig::new().with_engine(self.engine),
            fisher: RunningFisher::new(factors, catalogue, self),
            radius: self.radius,
            watched: Watched::default(),
        })
    }
}

/// Wraps a Burn optimizer: each gradient becomes `(F + λ)⁻¹ g` before the step, with EKFAC for *F* (Martens & Grosse 2015;
/// George et al. 2018; see [`fisher_metrics::curvature::kronecker`]).
///
/// *F* is that of the batches that were shown to [`NaturalGradient::observe`], older ones fading: the mean over samples of their Fisher
/// per token. So gradients are to be those of the mean over samples of their loss per token, `model.sample_losses(&batch).means().mean()`;
/// those of another mean are of another size, and where samples differ in their tokens of another weight. A batch need not be observed
/// before every step, nor all of it: an observation costs a traced pass and the rotations, and in the first batch of a shape a comparison
/// with a sample or two alone; by the loop it holds the gradients of all its samples. [`NaturalGradient::step_and_adapt`] makes λ smaller or larger by how well the loss
/// was predicted (the Levenberg-Marquardt rule, Martens & Grosse 2015, section 6.5).
///
/// ```
/// use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
/// use fisher_train::apply::{NaturalGradient, NaturalGradientConfig};
/// use fisher_train::batch::SampleLoss;
/// # use burn::tensor::{DType, Tensor};
/// # fn example<M: SampleLoss>(mut model: M, batches: Vec<M::Batch>, loss: impl Fn(&M, &M::Batch) -> Tensor<1>) -> fisher_train::Result<M> {
/// let mut natural = NaturalGradientConfig::new().init(SgdConfig::new().init(), &model)?;
/// for batch in batches {
///     natural.observe(&model, &batch)?;
///     let loss = model.sample_losses(&batch).means().mean();
///     let gradients = GradientsParams::from_grads(loss.backward(), &model);
///     model = natural.step(0.1, model, gradients)?;
/// }
/// # Ok(model) }
/// ```
///
/// Burn's `Learner` owns its optimizer: there override `TrainStep::optimize`, and pass it the gradients of
/// [`NaturalGradient::precondition`].
#[derive(Clone)]
pub struct NaturalGradient {
    optimizer: ModuleOptimizer,
    capture: CaptureConfig,
    fisher: RunningFisher,
    radius: Option<f64>,
    /// What batches were compared with their samples alone.
    watched: Watched,
}

/// A step that λ was adapted by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adapted {
    /// How far the loss was predicted to change: `gᵀ δ + ½ δᵀ F δ`.
    pub predicted: f64,
    /// How far it changed.
    pub measured: f64,
    /// λ after it, as a multiple of what was configured.
    pub damping_factor: f64,
}

impl NaturalGradient {
    /// Take in the Fisher of a batch at the weights of `model`.
    ///
    /// # Errors
    /// Those of [`Capture::accumulate`](crate::capture::Capture::accumulate): losses that mix samples, another kind of Fisher, numbers
    /// that are not finite. What was observed before is kept then.
    pub fn observe<M: SampleLoss>(&mut self, model: &M, batch: &M::Batch) -> Result<()> {
        let capture = self.capture.init(model, self.fisher.paths())?;
        let mut capture = capture.watching(self.watched.clone());
        let mut kept = Kept::of(self.fisher.kind());
        capture.accumulate(batch, "batch", &mut kept)?;
        self.watched = capture.watched();
        let device = model.devices().first().cloned().unwrap_or_default();
        let mut fisher = self.fisher.clone();
        fisher.observe(&kept.batches, &device.without_autodiff())?;
        self.fisher = fisher;
        Ok(())
    }

    /// `(F + λ)⁻¹ g` of the gradients of a module, shortened to the radius.
    ///
    /// # Errors
    /// [`Error::NoFisher`] naming a parameter that has a gradient and was not observed; [`Error::SharedId`] when two parameters share
    /// an id and are not tied; [`fisher_metrics::Error::NotFinite`] when a gradient is not.
    pub fn precondition<M: Module>(
        &self,
        module: &M,
        gradients: GradientsParams,
    ) -> Result<GradientsParams> {
        Ok(self.divided(module, gradients)?.0)
    }

    /// The gradients divided, and as they were, by path.
    fn divided<M: Module>(
        &self,
        module: &M,
        gradients: GradientsParams,
    ) -> Result<(GradientsParams, Weights)> {
        let mut divide = Divide {
            fisher: &self.fisher,
            length: None,
            gradients: Weights::new(),
        };
        let divided = preconditioned(module, gradients, &mut divide)?;
        let length = match divide.length {
            // Below 0 is rounding; NaN stays what it is.
            Some(square) => match read(square)?[0] {
                square if square < 0.0 => 0.0,
                square => square.sqrt(),
            },
            None => 0.0,
        };
        if !length.is_finite() {
            return Err(MetricsError::not_finite("the length of the step", "all gradients").into());
        }
        let factor = match self.radius {
            Some(radius) if length > radius => radius / length,
            _ => 1.0,
        };
        let types = divide.gradients.iter();
        let types = types.map(|(path, gradient)| (path.clone(), gradient.dtype()));
        let mut shorten = Shorten {
            factor,
            types: types.collect(),
        };
        let shortened = preconditioned(module, divided, &mut shorten)?;
        Ok((shortened, divide.gradients))
    }

    /// One step of the wrapped optimizer on them.
    ///
    /// # Errors
    /// As [`NaturalGradient::precondition`]; the module is lost then.
    pub fn step<M: Module>(
        &mut self,
        rate: impl Into<ModuleLearningRate>,
        module: M,
        gradients: GradientsParams,
    ) -> Result<M> {
        let divided = self.precondition(&module, gradients)?;
        self.step_of(rate, module, divided)
    }

    /// The same, after which λ is adapted by how well it was foreseen: `before` is the loss that the gradients are of, and `after` what
    /// it is for a model.
    ///
    /// With `ρ = (after − before) / predicted`, λ is multiplied by [`NaturalGradientConfig::adaptation`] where the loss was to fall and
    /// ρ > ¾, and divided by it where ρ < ¼ or it was not to fall. Costs a forward pass.
    ///
    /// # Errors
    /// As [`NaturalGradient::precondition`]; the module is lost then.
    pub fn step_and_adapt<M: Module>(
        &mut self,
        rate: impl Into<ModuleLearningRate>,
        module: M,
        gradients: GradientsParams,
        before: f64,
        after: impl FnOnce(&M) -> f64,
    ) -> Result<(M, Adapted)> {
        let from = weights(&module)?;
        let (divided, gradients) = self.divided(&module, gradients)?;
        let module = self.step_of(rate, module, divided)?;
        let predicted = predicted(&self.fisher, &gradients, [&from, &weights(&module)?])?;
        let measured = after(&module) - before;
        let adapted = Adapted {
            predicted,
            measured,
            damping_factor: self.fisher.adapt(predicted, measured),
        };
        Ok((module, adapted))
    }

    fn step_of<M: Module>(
        &mut self,
        rate: impl Into<ModuleLearningRate>,
        module: M,
        gradients: GradientsParams,
    ) -> Result<M> {
        let ties = ties(&module)?;
        let module = ties.separate(module);
        Ok(ties.rejoin(self.optimizer.step(rate, module, gradients)))
    }

    /// λ as a multiple of what was configured.
    pub fn damping_factor(&self) -> f64 {
        self.fisher.factor()
    }
}

/// `(F + λ)⁻¹ g`, with `gᵀ (F + λ)⁻¹ g` added up.
struct Divide<'a> {
    fisher: &'a RunningFisher,
    length: Option<Tensor<1>>,
    gradients: Weights,
}

impl Precondition for Divide<'_> {
    fn forward<const D: usize>(&mut self, path: &str, gradient: Tensor<D>) -> Result<Tensor<D>> {
        let block = self.fisher.block(path);
        let block = block.ok_or_else(|| Error::no_fisher(path))?;
        let divided = block.divide(gradient.clone());
        let product = (gradient.clone().cast(divided.dtype()) * divided.clone()).sum();
        self.length = Some(match self.length.take() {
            Some(sum) => sum + product,
            None => product,
        });
        let elements = gradient.dims().iter().product::<usize>();
        self.gradients
            .insert(path.to_owned(), gradient.reshape([elements]));
        Ok(divided)
    }
}

/// Every direction times a number, in the type of its gradient.
struct Shorten {
    factor: f64,
    types: BTreeMap<String, DType>,
}

impl Precondition for Shorten {
    fn forward<const D: usize>(&mut self, path: &str, direction: Tensor<D>) -> Result<Tensor<D>> {
        let dtype = self.types.get(path).copied();
        let dtype = dtype.ok_or_else(|| Error::no_fisher(path))?;
        Ok(direction.mul_scalar(self.factor).cast(dtype))
    }
}
