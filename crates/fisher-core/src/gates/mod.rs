//! What if it goes: gates on groups of weights, and what the loss is predicted to change by when one is
//! shut.
//!
//! Multiply the weights of a group *G* by a gate `ξ_G = 1`. For sample *i*, `∂L_i/∂ξ_G = (g_i · θ)_G`, one number a
//! sample and group. With
//!
//! | | |
//! |---|---|
//! | first order | `m_G = mean_i (g_i · θ)_G / T_i` |
//! | Fisher of the gate | `F_ξG = mean_i ((g_i · θ)_G)² / T_i` |
//!
//! shutting the gate changes the loss per token by about `−m_G + ½ F_ξG`: a Taylor expansion to second order with the
//! Fisher in the place of the Hessian (Molchanov et al. 2019, "Importance estimation for neural network pruning";
//! Michel, Levy & Neubig 2019, "Are sixteen heads really better than one?"; Kwon et al. 2022, "A fast post-training
//! pruning framework for transformers"). Unlike `½ Σ F θ²` it has the first order and every cross term inside the group.
//! It is still an expansion around the whole model: where shutting a gate moves the loss far, it is a guess, and what
//! two gates cost together is not the sum of what each costs. Measure what matters (`fisher_train::ablation`).
//!
//! [`Gates`] is a [`GradientSink`](crate::gradient::GradientSink) and shares its pass with statistics and stores:
//! `(&mut statistics, &mut gates)`. What it has seen is [`GateScores`]: saved, loaded, merged.

mod collector;
mod config;
mod file;
mod layout;
mod moments;
mod scores;
mod set;
mod sums;
mod task;

pub use collector::Gates;
pub use config::GatesConfig;
pub use file::GATES_VERSION;
pub use scores::GateScores;
pub use set::{GateKind, GatePart, GateSet};
pub use task::{GateQuantity, TaskGates};
