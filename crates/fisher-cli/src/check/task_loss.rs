//! The loss of a task.

use serde::Serialize;

/// The loss of some samples of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskLoss {
    /// The task.
    pub task: String,
    /// Samples looked at.
    pub samples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Those that are predicted; a sample with a class counts as one.
    pub active: usize,
    /// `Σ L_i / Σ T_i`, in nats.
    pub loss: f64,
    /// `exp` of it.
    pub perplexity: f64,
    /// The least `L_i / T_i` of a sample.
    pub least: f64,
    /// The most.
    pub most: f64,
}
