//! The Fisher as Kronecker products of two factors, and its eigenvalues corrected.
//!
//! With *A ⊗ S* for the Fisher of a matrix ([`fisher_core::factors`]) and `A = U diag(α) Uᵀ`, `S = V diag(σ) Vᵀ`, its eigenvectors are
//! `u_k ⊗ v_l` and its eigenvalues `α_k σ_l`: KFAC (Martens & Grosse 2015). What gradients really have along these is
//!
//! `s_kl = (1/n) Σ_i (u_kᵀ g_i v_l)² / T_i`
//!
//! the diagonal Fisher in rotated coordinates: EKFAC (George et al. 2018, "Fast approximate natural gradient descent in a
//! Kronecker-factored eigenbasis"). Of all matrices with these eigenvectors it is the nearest to the Fisher, it has its trace, and its
//! diagonal in the eigenbasis.
//!
//! ```
//! use fisher_core::factors::{Factors, FactorsConfig};
//! use fisher_metrics::curvature::kronecker::{Corrections, Kronecker};
//! # fn example(factors: &Factors, device: &burn::tensor::Device) -> fisher_metrics::Result<()> {
//! let kfac = Kronecker::of(factors, "task")?; // after a pass over the task with `factors` as a sink
//! let mut corrections = kfac.corrections(device)?; // a sink for a second pass
//! # let mut pass = |_: &mut Corrections| ();
//! pass(&mut corrections);
//! let ekfac = kfac.corrected(&corrections)?;
//! let step = ekfac.apply("layer.weight", &[0.1; 12], |s| 1.0 / (s + 1e-3))?; // (F + λ)⁻¹ v
//! # Ok(()) }
//! ```

mod block;
mod corrections;
mod operator;
mod rotation;

pub use block::{Basis, KroneckerBlock};
pub use corrections::Corrections;
pub use operator::Kronecker;
pub use rotation::Rotation;
