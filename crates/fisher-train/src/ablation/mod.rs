//! What goes when it goes: the loss of each held-out sample with a part of the model taken out, measured.
//!
//! Candidates are [`GateSet`](fisher_core::gates::GateSet)s: layers, heads, channels or groups of one's own. Each is taken
//! out of a copy of the model, so the model stays as it is, to the bit.

mod config;
mod inputs;
mod operator;
mod report;
mod without;

pub use config::{AblationConfig, AblationInterval, AblationKind, AblationUnit};
pub use operator::Ablation;
pub use report::{AblatedGate, AblationReport};
