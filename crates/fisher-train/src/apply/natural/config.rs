//! The configuration.

use burn::config::Config;
use fisher_core::factors::Positions;
use fisher_core::kind::FisherKind;
use fisher_metrics::damping::Damping;

use crate::capture::Engine;

/// Configuration of [`NaturalGradient`](super::NaturalGradient).
#[derive(Config, Debug)]
pub struct NaturalGradientConfig {
    /// λ, in every parameter's block: relative to the mean of its eigenvalues, or to a thousandth of that of all parameters where it is
    /// smaller, or to all of that where there was no gradient but rounding.
    #[config(default = "Damping::Relative(0.1)")]
    pub damping: Damping,
    /// What is kept of factors and eigenvalues when a batch is observed.
    #[config(default = 0.95)]
    pub decay: f64,
    /// Batches observed until eigenvectors are computed anew, which takes *side³* operations for each side.
    #[config(default = 10)]
    pub refresh: usize,
    /// The longest a direction may be in the Fisher's metric, `√(gᵀ (F + λ)⁻¹ g)`; longer ones are shortened to it. By the whole
    /// empirical Fisher of the batch that the gradient is of, samples of one token reach 1 at most and samples of *T* tokens 1/√T, so
    /// what is longer is the approximation's. `None` for no bound.
    #[config(default = "Some(1.0)")]
    pub radius: Option<f64>,
    /// Of [`NaturalGradient::step_and_adapt`](super::NaturalGradient::step_and_adapt): λ is multiplied by this where the loss fell as predicted, and divided by it where it did not.
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
