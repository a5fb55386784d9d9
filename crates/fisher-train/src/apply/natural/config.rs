//! The configuration.

use burn::config::Config;
use burn::module::Module;
use burn::optim::ModuleOptimizer;
use fisher_core::factors::{FactorsConfig, Positions};
use fisher_core::kind::FisherKind;
use fisher_core::model::Catalogue;
use fisher_metrics::check_argument;
use fisher_metrics::damping::Damping;

use super::curvature::RunningFisher;
use super::optimizer::NaturalGradient;
use crate::apply::precondition::ties;
use crate::capture::{CaptureConfig, Engine};
use crate::error::Result;

/// Configuration of [`NaturalGradient`].
#[derive(Config, Debug)]
pub struct NaturalGradientConfig {
    /// λ, in every parameter's block: relative to the mean of its eigenvalues.
    #[config(default = "Damping::Relative(0.1)")]
    pub damping: Damping,
    /// What is kept of factors and eigenvalues when a batch is observed.
    #[config(default = 0.95)]
    pub decay: f64,
    /// Batches observed until eigenvectors are computed anew, which takes *side³* operations for each side.
    #[config(default = 10)]
    pub refresh: usize,
    /// The longest a direction may be in the Fisher's metric, `√(gᵀ (F + λ)⁻¹ g)`; longer ones are shortened to it. For the whole
    /// empirical Fisher of the batch it is 1 at most, so what is longer is the approximation's. `None` for no bound.
    #[config(default = "Some(1.0)")]
    pub radius: Option<f64>,
    /// Of [`NaturalGradient::step_and_adapt`]: λ is multiplied by this where the loss fell as predicted, and divided by it where it did not.
    #[config(default = 0.9)]
    pub adaptation: f64,
    /// What a layer's positions are to each other.
    #[config(default = "Positions::Expand")]
    pub positions: Positions,
    /// Sides of more elements keep a diagonal.
    #[config(default = 2048)]
    pub largest: usize,
    /// How per-sample gradients are taken.
    #[config(default = "Engine::Auto")]
    pub engine: Engine,
    /// Which Fisher the losses of observed batches are of: that of labels drawn from the model is
    /// [`FisherKind::MonteCarlo`].
    #[config(default = "FisherKind::Empirical")]
    pub kind: FisherKind,
}

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
        })
    }
}
