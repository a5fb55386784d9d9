//! The losses of samples in their batch.

use super::rounding::Rounding;

/// The losses of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Together {
    pub(crate) losses: Vec<f64>,
    pub(crate) tokens: Vec<u64>,
    pub(crate) rounding: Rounding,
}

impl Together {
    /// The largest loss of a batch, and of a sample alone.
    pub(crate) fn largest(&self, alone: f64) -> f64 {
        let sizes = self.losses.iter().map(|loss| loss.abs());
        let finite = sizes.filter(|loss| loss.is_finite());
        finite.fold(alone.abs(), f64::max)
    }
}

/// Whether samples differ in their active tokens, so that some are padded.
pub(crate) fn is_ragged(tokens: &[u64]) -> bool {
    tokens.windows(2).any(|pair| pair[0] != pair[1])
}

/// Where the samples with the fewest active tokens are.
pub(crate) fn all_shortest(tokens: &[u64]) -> Vec<usize> {
    let fewest = tokens.iter().min();
    let all = tokens.iter().enumerate();
    let all = all.filter(|(_, tokens)| Some(*tokens) == fewest);
    all.map(|(at, _)| at).collect()
}
