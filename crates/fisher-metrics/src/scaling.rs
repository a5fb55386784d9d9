//! Gradients divided by the Fisher.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Tensor};

use crate::damping::Damping;
use crate::error::{Result, check_argument};
use crate::growth::Growth;

/// Configuration of [`Scaling`].
#[derive(Config, Debug)]
pub struct ScalingConfig {
    /// The power α: 1 for the natural gradient, ½ as Adam has it.
    #[config(default = 1.0)]
    pub power: f64,
    /// λ.
    #[config(default = "Damping::Relative(1e-3)")]
    pub damping: Damping,
    /// What to do with a parameter that has grown since its Fisher was taken. Where it is free, F is 0
    /// there, so λ alone divides: steps are as large as where the task depends on nothing. Take the
    /// Fisher anew once the new part has learned something.
    #[config(default = "Growth::Refuse")]
    pub growth: Growth,
}

impl ScalingConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) unless λ is finite and above 0 and α finite and not
    /// negative.
    pub fn init(&self) -> Result<Scaling> {
        let (Damping::Absolute(lambda) | Damping::Relative(lambda)) = self.damping;
        let fits = lambda > 0.0 && lambda.is_finite();
        check_argument(fits, "damping", "finite and above 0", lambda)?;
        let power = self.power;
        let fits = power >= 0.0 && power.is_finite();
        check_argument(fits, "power", "finite and at least 0", power)?;
        Ok(Scaling {
            power,
            damping: self.damping,
            growth: self.growth,
        })
    }
}

/// `g ⊘ (F + λ)^α`: a step in the metric of the diagonal Fisher (Amari 1998, "Natural gradient
/// works efficiently in learning").
#[derive(Module, Debug)]
pub struct Scaling {
    power: f64,
    #[module(skip)]
    damping: Damping,
    #[module(skip)]
    growth: Growth,
}

impl Scaling {
    /// What becomes of a parameter that has grown since its Fisher was taken.
    pub fn growth(&self) -> Growth {
        self.growth
    }

    /// Scale a gradient by the Fisher of its parameter.
    ///
    /// # Shapes
    /// Both of the parameter's; the result is of the gradient's type. With [`Growth::Free`] the Fisher
    /// may be of the shape that the parameter had before it grew.
    ///
    /// # Panics
    /// When the shapes differ otherwise, or the devices do.
    pub fn forward<const D: usize>(&self, gradient: Tensor<D>, fisher: Tensor<D>) -> Tensor<D> {
        let fisher = self.growth.pad(fisher, gradient.dims());
        let (dtype, wide) = (gradient.dtype(), fisher.dtype());
        let damped = match self.damping {
            Damping::Absolute(lambda) => fisher.add_scalar(lambda),
            Damping::Relative(factor) => {
                // A tensor that nothing depends on has F = 0 all over: λ stays above 0.
                let lambda = fisher.clone().mean().mul_scalar(factor).clamp_min(1e-12);
                fisher + lambda.unsqueeze()
            }
        };
        (gradient.cast(wide) / self.power(damped)).cast(dtype)
    }

    fn power<const D: usize>(&self, damped: Tensor<D>) -> Tensor<D> {
        let dtype = damped.dtype();
        match self.power {
            1.0 => damped,
            0.5 => damped.sqrt(),
            // Vulkan has no power in float64 (and would give 0).
            power => damped.cast(DType::F32).powf_scalar(power).cast(dtype),
        }
    }
}
