//! Sums over the sides of a parameter.

use burn::tensor::Tensor;

/// Sums (of squares, of products with weights) over one of the two sides of a parameter `[first axis, all others]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Margins {
    /// `[samples, first axis]`
    pub(crate) rows: Option<Tensor<2>>,
    /// `[samples, all others]`
    pub(crate) columns: Option<Tensor<2>>,
}
