//! Per-sample gradients and their squares, with the unit in the type.
//!
//! A gradient of a token-mean loss does not go where a token-sum gradient is wanted:
//!
//! ```compile_fail
//! # use burn::tensor::{Device, Tensor};
//! # use fisher_core::{gradient::*, sample::*, statistics::*};
//! fn square(gradient: Gradient<TokenMean>, tokens: &Tokens) -> Contribution<PerToken> {
//!     gradient.contribution(tokens) // there is no such method: convert with `into_token_sum`
//! }
//! ```
//!
//! and statistics of one unit do not take the other:
//!
//! ```compile_fail
//! # use fisher_core::{gradient::*, sample::*, statistics::*};
//! fn merge(per_token: &mut Statistics<PerToken>, raw: Statistics<Raw>) {
//!     per_token.merge(raw).unwrap();
//! }
//! ```

use std::marker::PhantomData;

use burn::tensor::{DType, Tensor};

use super::precision::at_least_single;
use crate::moments::accumulation_dtype;
use crate::sample::Tokens;

mod sealed {
    pub trait Sealed {}
}

/// How the loss of a sample sums over its tokens: [`TokenSum`] or [`TokenMean`].
pub trait GradientUnit: sealed::Sealed + Clone + Send + 'static {
    /// The name in files and reports.
    const NAME: &'static str;
}

/// The loss of a sample is the *sum* over its active tokens, `L_i = Σ_t -log p(y_it | ..)`.
#[derive(Debug, Clone, Copy)]
pub enum TokenSum {}

/// The loss of a sample is the *mean* over its active tokens, `L_i / T_i`.
#[derive(Debug, Clone, Copy)]
pub enum TokenMean {}

impl sealed::Sealed for TokenSum {}
impl sealed::Sealed for TokenMean {}

impl GradientUnit for TokenSum {
    const NAME: &'static str = "token_sum";
}

impl GradientUnit for TokenMean {
    const NAME: &'static str = "token_mean";
}

/// The per-sample gradients `g_i` of one parameter for a batch of samples.
///
/// # Shapes
/// `[samples, elements]`: every parameter is flattened, rows are samples.
#[derive(Debug, Clone)]
pub struct Gradient<U: GradientUnit> {
    tensor: Tensor<2>,
    unit: PhantomData<U>,
}

impl<U: GradientUnit> Gradient<U> {
    fn flatten<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = tensor.dims();
        let elements = shape[1..].iter().product();
        Self {
            tensor: tensor.reshape([shape[0], elements]),
            unit: PhantomData,
        }
    }

    /// The gradients, `[samples, elements]`.
    pub fn tensor(&self) -> &Tensor<2> {
        &self.tensor
    }

    pub(crate) fn into_tensor(self) -> Tensor<2> {
        self.tensor
    }

    /// The number of samples.
    pub fn samples(&self) -> usize {
        self.tensor.dims()[0]
    }

    /// The number of elements of the parameter.
    pub fn elements(&self) -> usize {
        self.tensor.dims()[1]
    }
}

impl Gradient<TokenSum> {
    /// Gradients of token-sum losses, `[samples, ..shape of the parameter]`.
    pub fn token_sum<const D: usize>(tensor: Tensor<D>) -> Self {
        Self::flatten(tensor)
    }

    /// `C_i = g_i ⊙ g_i / T_i` ([`PerToken`]) or `g_i ⊙ g_i` ([`Raw`]), squared per sample,
    /// before any sum over samples or elements.
    ///
    /// Squares are taken in float64 where the device has it, else in float32: in float16
    /// everything under 3e-8 would become 0, in float32 everything under 1e-45.
    ///
    /// # Panics
    /// When `tokens` has another number of samples.
    pub fn contribution<C: ContributionUnit>(self, tokens: &Tokens) -> Contribution<C> {
        let dtype = accumulation_dtype(&self.tensor.device());
        self.contribution_in(tokens, dtype)
    }

    pub(crate) fn contribution_in<C: ContributionUnit>(
        self,
        tokens: &Tokens,
        dtype: DType,
    ) -> Contribution<C> {
        Contribution {
            tensor: C::normalize(self.tensor.cast(dtype).square(), tokens),
            unit: PhantomData,
        }
    }
}

impl Gradient<TokenMean> {
    /// Gradients of token-mean losses, `[samples, ..shape of the parameter]`.
    pub fn token_mean<const D: usize>(tensor: Tensor<D>) -> Self {
        Self::flatten(tensor)
    }

    /// `g_i · T_i`: the gradient of the token sum, in float32 at least.
    ///
    /// ```
    /// # use burn::tensor::{Device, Tensor};
    /// # use fisher_core::{gradient::*, sample::*, statistics::*};
    /// fn square(gradient: Gradient<TokenMean>, tokens: &Tokens) -> Contribution<PerToken> {
    ///     gradient.into_token_sum(tokens).contribution(tokens)
    /// }
    /// ```
    ///
    /// # Panics
    /// When `tokens` has another number of samples.
    pub fn into_token_sum(self, tokens: &Tokens) -> Gradient<TokenSum> {
        let tensor = at_least_single(self.tensor);
        let tokens = tokens.column(tensor.dtype());
        Gradient {
            tensor: tensor * tokens,
            unit: PhantomData,
        }
    }
}

/// What a squared gradient is divided by: [`PerToken`] or [`Raw`].
pub trait ContributionUnit: sealed::Sealed + Clone + Send + 'static {
    /// The name in files and reports.
    const NAME: &'static str;

    #[doc(hidden)]
    fn normalize(squares: Tensor<2>, tokens: &Tokens) -> Tensor<2>;

    #[doc(hidden)]
    fn root(tokens: u64) -> f64;
}

/// `C_i = g_i ⊙ g_i / T_i`, the default.
#[derive(Debug, Clone, Copy)]
pub enum PerToken {}

/// `C_i = g_i ⊙ g_i`.
#[derive(Debug, Clone, Copy)]
pub enum Raw {}

impl sealed::Sealed for PerToken {}
impl sealed::Sealed for Raw {}

impl ContributionUnit for PerToken {
    const NAME: &'static str = "per_token";

    fn normalize(squares: Tensor<2>, tokens: &Tokens) -> Tensor<2> {
        let column = tokens.column(squares.dtype());
        squares / column
    }

    fn root(tokens: u64) -> f64 {
        (tokens as f64).sqrt().recip()
    }
}

impl ContributionUnit for Raw {
    const NAME: &'static str = "raw";

    fn normalize(squares: Tensor<2>, _tokens: &Tokens) -> Tensor<2> {
        squares
    }

    fn root(_tokens: u64) -> f64 {
        1.0
    }
}

/// The contributions `C_i` of a batch of samples, or their reductions to groups.
///
/// # Shapes
/// `[samples, elements]` or `[samples, groups]`.
#[derive(Debug, Clone)]
pub struct Contribution<C: ContributionUnit = PerToken> {
    tensor: Tensor<2>,
    unit: PhantomData<C>,
}

impl<C: ContributionUnit> Contribution<C> {
    /// The contributions, rows are samples.
    pub fn tensor(&self) -> &Tensor<2> {
        &self.tensor
    }

    pub(crate) fn of(tensor: Tensor<2>) -> Self {
        Self {
            tensor,
            unit: PhantomData,
        }
    }

    /// The same unit, other columns: how groupings reduce.
    pub(crate) fn map(&self, f: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        Self {
            tensor: f(self.tensor.clone()),
            unit: PhantomData,
        }
    }
}
