//! Natural gradients: any Burn optimizer on gradients that Kronecker approximations of the Fisher have been divided out of.

mod config;
mod curvature;
mod kept;
mod optimizer;
mod reduction;

pub use config::NaturalGradientConfig;
pub use optimizer::{Adapted, NaturalGradient};
