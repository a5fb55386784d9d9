//! Sums of `x xᵀ`, or of its diagonal.

use burn::tensor::{DType, Tensor};

use crate::error::Result;
use crate::moments::accumulation_dtype;
use crate::read::read;

/// `Σ x xᵀ` over rows *x*, in float64 on the host.
#[derive(Debug, Clone, PartialEq)]
pub enum Second {
    /// `[side, side]`, all of it.
    Matrix {
        /// The length of *x*.
        side: usize,
        /// Row-major and symmetric.
        sums: Vec<f64>,
    },
    /// Its diagonal, `[side]`.
    Diagonal(Vec<f64>),
}

impl Second {
    pub(super) fn zeros(side: usize, diagonal: bool) -> Self {
        if diagonal {
            Self::Diagonal(vec![0.0; side])
        } else {
            let sums = vec![0.0; side * side];
            Self::Matrix { side, sums }
        }
    }

    /// The length of *x*.
    pub fn side(&self) -> usize {
        match self {
            Self::Matrix { side, .. } => *side,
            Self::Diagonal(sums) => sums.len(),
        }
    }

    /// `Σ |x|²`.
    pub fn trace(&self) -> f64 {
        match self {
            Self::Matrix { side, sums } => sums.iter().step_by(side + 1).sum(),
            Self::Diagonal(sums) => sums.iter().sum(),
        }
    }

    /// What there is of it, `[side, side]` or `[side]`.
    pub fn values(&self) -> &[f64] {
        match self {
            Self::Matrix { sums, .. } | Self::Diagonal(sums) => sums,
        }
    }

    pub(super) fn values_mut(&mut self) -> &mut [f64] {
        match self {
            Self::Matrix { sums, .. } | Self::Diagonal(sums) => sums,
        }
    }

    /// All of it times `factor`.
    pub(super) fn times(mut self, factor: f64) -> Self {
        self.values_mut().iter_mut().for_each(|x| *x *= factor);
        self
    }

    pub(super) fn add(&mut self, other: &Self) {
        let pairs = self.values_mut().iter_mut().zip(other.values());
        pairs.for_each(|(ours, theirs)| *ours += theirs);
    }

    /// `keep` of what it is and `1 − keep` of another.
    ///
    /// # Panics
    /// When they are of other sides.
    pub fn mix(&mut self, keep: f64, other: &Self) {
        assert_eq!(
            self.values().len(),
            other.values().len(),
            "sides of second moments"
        );
        let pairs = self.values_mut().iter_mut().zip(other.values());
        pairs.for_each(|(ours, theirs)| *ours += (1.0 - keep) * (theirs - *ours));
    }

    /// Take in the rows of `x`, `[rows, side]`. They are divided by their largest value meanwhile, so that float32 has the range.
    pub(super) fn push(&mut self, x: Tensor<2>) -> Result<()> {
        let largest = read(x.clone().max_abs())?[0];
        if largest == 0.0 {
            return Ok(());
        }
        let x = x.div_scalar(largest);
        let sums = match self {
            Self::Matrix { .. } => read(x.clone().transpose().matmul(x))?,
            Self::Diagonal(_) => {
                let dtype: DType = accumulation_dtype(&x.device());
                read(x.cast(dtype).square().sum_dim(0))?
            }
        };
        // Not squared first: it alone may be out of range.
        let add = |(sum, x): (&mut f64, f64)| *sum += x * largest * largest;
        self.values_mut().iter_mut().zip(sums).for_each(add);
        Ok(())
    }
}
