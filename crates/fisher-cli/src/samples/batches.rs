//! Samples in batches.

use crate::models::Sequence;

/// Batches of samples of like length, none of more than `tokens` tokens with its padding unless it
/// is one sample. Shortest first, so that the order is the same each time.
pub fn batches(samples: &[Sequence], tokens: usize) -> Vec<Vec<Sequence>> {
    let mut sorted: Vec<&Sequence> = samples.iter().collect();
    sorted.sort_by_key(|sample| sample.tokens.len());
    let mut batches: Vec<Vec<Sequence>> = Vec::new();
    for sample in sorted {
        match batches.last_mut() {
            // The longest so far is the newest.
            Some(batch) if (batch.len() + 1) * sample.tokens.len() <= tokens => {
                batch.push(sample.clone());
            }
            _ => batches.push(vec![sample.clone()]),
        }
    }
    batches
}
