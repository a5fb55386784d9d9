//! Sums of squares of a parameter: which are needed, and what they came to.

use burn::tensor::{DType, Tensor};

use crate::grouping::Margins;
use crate::host::Sides;

/// What statistics need of a parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Every element: gradients by rows, whole, or sums over samples.
    pub(crate) elements: bool,
    /// The variance of every element, too.
    pub(crate) variance: bool,
    /// Sums of squares over everything but the first axis.
    pub(crate) rows: bool,
    /// Sums of squares over the first axis.
    pub(crate) columns: bool,
    /// Sums over groups that are no slices of an axis, which every element of the gradient goes into.
    pub(crate) scattered: bool,
}

impl Wanted {
    /// Sides to sum over, at least one: it tells the whole, and sums over the first axis are cheaper.
    pub(crate) fn sides(&self) -> Sides {
        Sides {
            rows: self.rows,
            columns: self.columns || !self.rows,
        }
    }
}

/// Sums of the contributions of a parameter `[first axis, all others]`, divided by `scale²`.
#[derive(Debug)]
pub(crate) struct Sums {
    /// What they are divided by the square of, `[1]`, so that they fit into float32.
    pub(crate) scale: Option<Tensor<1>>,
    /// At least one of the two.
    pub(crate) margins: Margins,
    /// Over samples: `Σ_i C_i`, `[elements]`, where no variance is kept.
    pub(crate) elements: Option<Tensor<1>>,
}

impl Sums {
    /// Sums over the sides, in `dtype`.
    pub(crate) fn margins(&self, dtype: DType) -> Margins {
        let unscale = |sums: &Option<Tensor<2>>| Some(self.unscaled(sums.clone()?, dtype));
        Margins {
            rows: unscale(&self.margins.rows),
            columns: unscale(&self.margins.columns),
        }
    }

    /// The mean of every element over `samples` samples, in `dtype`, where it was taken.
    pub(crate) fn mean(&self, samples: usize, dtype: DType) -> Option<Tensor<1>> {
        let sum = self.unscaled(self.elements.clone()?, dtype);
        Some(sum.div_scalar(samples as f64))
    }

    fn unscaled<const D: usize>(&self, sums: Tensor<D>, dtype: DType) -> Tensor<D> {
        let sums = sums.cast(dtype);
        match &self.scale {
            // Not squared first: it alone may be out of range.
            Some(scale) => {
                let scale = scale.clone().cast(dtype).unsqueeze::<D>();
                sums * scale.clone() * scale
            }
            None => sums,
        }
    }
}
