//! The Fisher beyond its diagonal.
//!
//! A sample's gradient of a layer is `g_i = Σ_t a_it δ_itᵀ`, and the full Fisher is `F = (1/n) Σ_i g_i g_iᵀ / T_i` over all
//! elements at once: too large to hold, but of no more rank than there are samples.
//!
//! [`spectrum`] has its eigenvalues from inner products of samples, [`likeness`] compares those of two tasks.
//! [`kronecker`] approximates it parameter by parameter, [`influence`] puts its inverse between samples.
//! [`product`] multiplies it with vectors; from products alone [`lanczos`] has its largest eigenvalues, [`trace`] its trace
//! and [`density`] how eigenvalues are spread, of any symmetric operator.

pub mod density;
mod eigen;
mod estimate;
mod gram;
mod halves;
pub mod influence;
pub mod kronecker;
pub mod lanczos;
pub mod likeness;
mod moments;
mod operator;
pub mod product;
pub mod spectrum;
pub mod trace;
mod vectors;

pub use eigen::Eigen;
#[doc(hidden)]
pub use eigen::symmetric;
pub use estimate::Estimate;
pub use operator::{Map, Operator};
