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
    /// When one is a diagonal and the other is not, or they are of other sides.
    pub fn mix(&mut self, keep: f64, other: &Self) {
        let form = |of: &Self| (of.side(), matches!(of, Self::Diagonal(_)));
        assert_eq!(form(self), form(other), "sides of second moments");
        let pairs = self.values_mut().iter_mut().zip(other.values());
        pairs.for_each(|(ours, theirs)| *ours += (1.0 - keep) * (theirs - *ours));
    }

    /// Take in the rows of `x`, `[rows, side]`.
    pub(super) fn push(&mut self, x: Tensor<2>) -> Result<()> {
        self.push_columns(0, x, 1.0)
    }

    /// Take in rows `scale · x`, of which `x` has the columns from `first` on: all of them, unless this is a diagonal. They are divided
    /// by their largest value meanwhile, so that float32 has the range.
    pub(super) fn push_columns(&mut self, first: usize, x: Tensor<2>, scale: f64) -> Result<()> {
        let largest = read(x.clone().max_abs())?[0];
        if largest == 0.0 {
            return Ok(());
        }
        let x = x.div_scalar(largest);
        let scale = scale * largest;
        let sums = match self {
            Self::Matrix { side, .. } => {
                assert_eq!([first, x.dims()[1]], [0, *side], "columns of a matrix");
                read(x.clone().transpose().matmul(x))?
            }
            Self::Diagonal(_) => {
                let dtype: DType = accumulation_dtype(&x.device());
                read(x.cast(dtype).square().sum_dim(0))?
            }
        };
        // Not squared first: it alone may be out of range.
        let add = |(sum, x): (&mut f64, f64)| *sum += x * scale * scale;
        self.values_mut()[first..]
            .iter_mut()
            .zip(sums)
            .for_each(add);
        Ok(())
    }

    /// Add to the diagonal.
    pub(super) fn push_diagonal(&mut self, values: impl Iterator<Item = f64>) {
        let stride = match self {
            Self::Matrix { side, .. } => *side + 1,
            Self::Diagonal(_) => 1,
        };
        let diagonal = self.values_mut().iter_mut().step_by(stride);
        diagonal.zip(values).for_each(|(sum, value)| *sum += value);
    }

    /// Whether it can be a sum of `x xᵀ`, as far as its diagonal says.
    pub(super) fn is_sound(&self) -> bool {
        let stride = match self {
            Self::Matrix { side, .. } => *side + 1,
            Self::Diagonal(_) => 1,
        };
        let values = self.values();
        values.iter().all(|x| x.is_finite()) && values.iter().step_by(stride).all(|x| *x >= 0.0)
    }
}
