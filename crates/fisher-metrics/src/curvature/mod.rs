//! The Fisher beyond its diagonal.
//!
//! A sample's gradient of a layer is `g_i = Σ_t a_it δ_itᵀ`, and the full Fisher is `F = (1/n) Σ_i g_i g_iᵀ / T_i` over all
//! elements at once: too large to hold, but of no more rank than there are samples.

mod eigen;
mod influence;
mod kronecker;

pub use eigen::Eigen;
#[doc(hidden)]
pub use eigen::symmetric;
pub use influence::{
    DatamodelingScore, Influence, InfluenceConfig, InfluenceReport, Influential, Inverse,
    linear_datamodeling_score,
};
pub use kronecker::{Basis, Corrections, Kronecker, KroneckerBlock};
