//! The digest over all that a file holds.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// SHA-256, in hexadecimal, over the metadata without its digest and all tensors in the order of their
/// names, taken in piece by piece.
pub(super) struct Digest(Sha256);

impl Digest {
    /// Of the metadata without its digest.
    pub(super) fn of(metadata: &str) -> Self {
        Self(Sha256::new_with_prefix(metadata))
    }

    /// What a tensor is; its bytes follow.
    pub(super) fn tensor(
        &mut self,
        name: &impl Serialize,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<(), serde_json::Error> {
        self.0.update(serde_json::to_vec(&(name, dtype, shape))?);
        Ok(())
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn hex(self) -> String {
        hex(&self.0.finalize())
    }
}

/// The digest of tensors in memory.
pub(super) fn checksum<S: Serialize>(
    metadata: &str,
    views: &BTreeMap<S, TensorView>,
) -> Result<String, serde_json::Error> {
    let mut digest = Digest::of(metadata);
    for (name, view) in views {
        digest.tensor(name, view.dtype(), view.shape())?;
        digest.bytes(view.data());
    }
    Ok(digest.hex())
}

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
