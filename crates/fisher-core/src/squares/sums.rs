//! Sums of squares that are wanted of a parameter, and those that were taken.

use burn::tensor::Tensor;

use crate::grouping::Margins;

/// What statistics want to know of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Every element: gradients by rows, whole, or sums over samples.
    pub elements: bool,
    /// The variance of every element, too.
    pub variance: bool,
    /// Sums of squares over everything but the first axis.
    pub rows: bool,
    /// Sums of squares over the first axis.
    pub columns: bool,
    /// Sums over groups that are no slices of an axis, which every element of the gradient goes into.
    pub scattered: bool,
}

/// Sums of the contributions of a parameter `[first axis, all others]`, divided by `scale²`.
#[derive(Debug)]
pub(crate) struct Sums {
    /// What they are divided by the square of, so that they fit into float32.
    pub(crate) scale: f64,
    /// As far as is wanted, at least one of the two.
    pub(crate) margins: Margins,
    /// Over samples: `Σ_i C_i`, `[elements]`, where no variance is kept.
    pub(crate) elements: Option<Tensor<1>>,
}
