//! The ways to a parameter's contributions.

/// How a parameter's contributions were computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// From gradients that were given whole, `[samples, elements]`.
    Whole,
    /// From gradients of a few rows at a time, by tensor operations.
    Tiles,
    /// In registers, of the host or of a device of CubeCL: no gradient is written to memory.
    Kernel,
    /// Sums over a side by products of positions with positions: `Σ_k (Σ_t l_tr r_tk)²` is
    /// `l_·rᵀ (R Rᵀ) l_·r`.
    Ghost,
    /// Sums over samples as a product of squares, for one position a sample.
    Squares,
    /// From the rows of a table that were looked up.
    Lookup,
    /// A product and a lookup of the same table, a band of its rows at a time.
    Bands,
}
