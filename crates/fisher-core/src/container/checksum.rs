//! The digest over all that a file holds.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::source::Source;
use crate::error::Result;

/// SHA-256, in hexadecimal, over the metadata without its digest and all tensors.
///
/// # Errors
/// What `fail` makes of a name that is no JSON; what kept the bytes of a tensor from being had.
pub(super) fn checksum(
    metadata: &str,
    tensors: &BTreeMap<String, Source<'_>>,
    fail: impl Fn(serde_json::Error) -> crate::Error,
) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(metadata);
    for (name, tensor) in tensors {
        let head = serde_json::to_vec(&(name, tensor.dtype(), tensor.shape()));
        hash.update(head.map_err(&fail)?);
        hash.update(&*tensor.bytes()?);
    }
    Ok(hex(&hash.finalize()))
}

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
