//! The digest over all that a file holds.

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::source::Source;
use crate::error::{Error, Result};

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
    ) -> std::result::Result<(), serde_json::Error> {
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

/// The digest of `tensors`, of which each is asked for its bytes once.
///
/// # Errors
/// What `fail` makes of a name that is no JSON; what kept the bytes of a tensor from being had.
pub(super) fn checksum(
    metadata: &str,
    tensors: &BTreeMap<String, Source<'_>>,
    fail: impl Fn(serde_json::Error) -> Error,
) -> Result<String> {
    let mut digest = Digest::of(metadata);
    for (name, tensor) in tensors {
        let told = digest.tensor(name, tensor.dtype(), tensor.shape());
        told.map_err(&fail)?;
        digest.bytes(&tensor.bytes()?);
    }
    Ok(digest.hex())
}

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
