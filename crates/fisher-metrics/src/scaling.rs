//! Gradients divided by the Fisher.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What is added to F before it divides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damping {
    /// λ itself, in the unit of F.
    Absolute(f64),
    /// λ as a multiple of the mean of F over the tensor, at least 1e-12.
    Relative(f64),
}

/// Configuration of [`Scaling`].
#[derive(Config, Debug)]
pub struct ScalingConfig {
    /// The power α: 1 for the natural gradient, ½ as Adam has it.
    #[config(default = 1.0)]
    pub power: f64,
    /// λ.
    #[config(default = "Damping::Relative(1e-3)")]
    pub damping: Damping,
}

impl ScalingConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] unless λ is above 0 and α not negative.
    pub fn init(&self) -> Result<Scaling> {
        let check = |name, expected, found: f64, fits: bool| match fits {
            true => Ok(()),
            false => Err(Error::Argument {
                name,
                expected,
                found,
            }),
        };
        let (Damping::Absolute(lambda) | Damping::Relative(lambda)) = self.damping;
        check("damping", "above 0", lambda, lambda > 0.0)?;
        check("power", "at least 0", self.power, self.power >= 0.0)?;
        Ok(Scaling {
            power: self.power,
            damping: self.damping,
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
}

impl Scaling {
    /// Scale a gradient by the Fisher of its parameter.
    ///
    /// # Shapes
    /// Both of the parameter's; the result is of the gradient's type.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn forward<const D: usize>(&self, gradient: Tensor<D>, fisher: Tensor<D>) -> Tensor<D> {
        assert_eq!(
            gradient.dims(),
            fisher.dims(),
            "shapes of gradient and Fisher"
        );
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
