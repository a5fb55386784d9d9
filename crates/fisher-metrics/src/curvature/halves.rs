//! Two halves of the samples, clusters whole.

use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use crate::jackknife::members;

/// The samples of either half, drawn at random; `None` for fewer than two clusters.
pub(super) fn halves(clusters: &[usize], rng: &mut ChaCha8Rng) -> Option<[Vec<usize>; 2]> {
    let mut members = members(clusters);
    if members.len() < 2 {
        return None;
    }
    for i in (1..members.len()).rev() {
        members.swap(i, rng.random_range(0..=i));
    }
    let second = members.split_off(members.len() / 2);
    Some([members, second].map(|half| {
        let mut samples: Vec<usize> = half.into_iter().flatten().collect();
        samples.sort_unstable();
        samples
    }))
}
