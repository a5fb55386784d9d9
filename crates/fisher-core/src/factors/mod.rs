//! Factors of the Fisher of whole layers: second moments of what goes into a layer and of the gradients of what comes out.
//!
//! A sample's gradient of a matrix is `g_i = Σ_t a_it δ_itᵀ`, and the Fisher over all pairs of its elements is
//! `F = (1/n) Σ_i vec(g_i) vec(g_i)ᵀ / T_i`. Its Kronecker approximation (Martens & Grosse 2015, "Optimizing neural networks with
//! Kronecker-factored approximate curvature") is `A ⊗ S`, of as many numbers as two squares of the layer's sides. What is
//! taken for them is one of:
//!
//! | gradients | *A*, of the first axis | *S*, of all others |
//! |---|---|---|
//! | products, [`Positions::Expand`] | mean of `a aᵀ` over the positions with `δ ≠ 0`, each weighed by `1/T_i` | `(1/n) Σ_i (1/T_i) Σ_t δ δᵀ` |
//! | products, [`Positions::Reduce`] | mean of `ā_i ā_iᵀ`, weighed by `1/T_i`, of means `ā_i` over these positions | `(1/n) Σ_i d_i d_iᵀ / T_i` of sums `d_i = Σ_t δ` |
//! | written out, also of vectors | `(1/n) Σ_i g_i g_iᵀ / T_i` | `(1/n) Σ_i g_iᵀ g_i / T_i`, divided by its trace |
//! | a table that is the output's matrix, too | the same, of single positions | the same |
//!
//! (With *a* and *δ* changed over where the first axis is the output's, as a table's is that nobody looks up. Samples without a
//! position with `δ ≠ 0` do not count for *A*.) Which positions are alike, and what a sum over them is
//! taken to be, is Eschenhagen et al. 2023, "Kronecker-factored approximate curvature for modern neural network architectures". Of
//! a vector *S* is 1 and *A* is its whole Fisher: exact. A table's rows are looked up one at a time, so its *A* is a diagonal; so
//! is any side of more than [`FactorsConfig::largest`] elements.
//!
//! [`Factors`] is a [`GradientSink`](crate::gradient::GradientSink): sums in float64 on the host, which merge by addition, with files of
//! their own. Eigenvalues and everything after them are `fisher_metrics::curvature`.

mod block;
mod collector;
mod config;
mod file;
mod positions;
mod second;
mod task;

pub use block::{Block, Form};
pub use collector::Factors;
pub use config::FactorsConfig;
pub use file::FACTORS_VERSION;
pub use positions::Positions;
pub use second::Second;
pub use task::TaskFactors;
