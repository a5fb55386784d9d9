//! Which samples of a task move the losses of others: influence.
//!
//! A step of natural gradient on sample *i* changes the loss of sample *j* by `−ε τ(i → j)`, to first order, with
//!
//! `τ(i → j) = g_jᵀ (F + λ)⁻¹ g_i`
//!
//! and leaving *i* out of the samples that a model was trained on changes it by about `τ / Σ T_i`, over their active tokens, since *F* is
//! per token and gradients are sums over tokens (Koh & Liang 2017, "Understanding
//! black-box predictions via influence functions", with the Fisher in the place of the Hessian). Above 0: *i* helps *j*. Which
//! *F* is inverted is [`Inverse`]: the whole Fisher of the training samples, exactly; EKFAC (Grosse et al. 2023, "Studying large
//! language model generalization with influence functions"); its diagonal; or none, the product of gradients.
//!
//! Scores are hypotheses. They say what would happen near these weights and by these losses, not what retraining does: how well they
//! predict it is [`linear_datamodeling_score`], from models retrained on subsets.

mod config;
mod exact;
mod lds;
mod operator;
mod report;

pub use config::{InfluenceConfig, Inverse};
pub use lds::{DatamodelingScore, linear_datamodeling_score};
pub use operator::Influence;
pub use report::{InfluenceReport, Influential};
