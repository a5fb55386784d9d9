//! What follows from numbers: importance, pruning, conflicts, interference, reports.

mod claims;
mod collisions;
mod conflicts;
mod curvature;
mod hostile;
mod importance;
mod interference;
mod made;
mod overlap;
mod pruning;
mod reports;
mod signs;
mod truth;

use burn::tensor::Device;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_tests::golden::Golden;

/// A golden store that compares by the case's heads, on `device`.
fn stored(
    golden: &Golden,
    config: &GradientStoreConfig,
    size: usize,
    device: &Device,
) -> GradientStore {
    let store = golden.store(config, size, device);
    store.with_heads(golden.heads()).with_device(device)
}
