//! The digest over all that a file holds.

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// SHA-256, in hexadecimal, over the metadata without its digest and all tensors.
pub(super) fn checksum<S: Serialize>(
    metadata: &str,
    views: &BTreeMap<S, TensorView>,
) -> Result<String, serde_json::Error> {
    let mut hash = Sha256::new();
    hash.update(metadata);
    for (name, view) in views {
        hash.update(serde_json::to_vec(&(name, view.dtype(), view.shape()))?);
        hash.update(view.data());
    }
    Ok(hex(&hash.finalize()))
}

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
