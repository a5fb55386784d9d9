//! Whole files: written with a checksum in their metadata, and read when it is that of the content.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::path::Path;

use burn::tensor::TensorData;
use safetensors::tensor::{SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::atomic::write_atomically;
use super::checksum::checksum;
use super::tensors::view;
use crate::error::{Error, Result, check_version, format_error, io_error};

/// Who wrote a file.
pub(crate) const WRITER: &str = concat!("fisher-core ", env!("CARGO_PKG_VERSION"));

/// Write `tensors` to `path`, atomically, with `metadata` as JSON under `key`; its checksum goes where
/// `sha256` says, which is empty before.
pub(crate) fn write<M: Serialize>(
    path: &Path,
    key: &str,
    tensors: &BTreeMap<String, TensorData>,
    mut metadata: M,
    sha256: impl FnOnce(&mut M) -> &mut String,
) -> Result<()> {
    let views: BTreeMap<&str, TensorView> = tensors
        .iter()
        .map(|(name, data)| Ok((&**name, view(data).map_err(|e| format_error(path, e))?)))
        .collect::<Result<_>>()?;
    let json = |metadata: &M| serde_json::to_string(metadata).map_err(|e| format_error(path, e));
    let undigested = json(&metadata)?;
    *sha256(&mut metadata) = checksum(&undigested, &views).map_err(|e| format_error(path, e))?;
    let header = HashMap::from([(key.to_owned(), json(&metadata)?)]);
    write_atomically(path, views, header)
}

/// A file that was read, and the JSON in its metadata.
pub(crate) struct Contents<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
    json: String,
}

impl<'a> Contents<'a> {
    /// Read the file at `path`, whose JSON stands under `key`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] when it is no such file.
    pub(crate) fn read(path: &'a Path, key: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| io_error(path, e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| format_error(path, e))?;
        let json = header.metadata().as_ref().and_then(|m| m.get(key));
        let json = json.ok_or_else(|| format_error(path, format!("it has no `{key}` metadata")))?;
        let json = json.clone();
        Ok(Self { path, bytes, json })
    }

    /// Whether its `schema` is one of those that can be read.
    ///
    /// # Errors
    /// [`Error::Version`].
    pub(crate) fn check_version(&self, versions: RangeInclusive<u64>) -> Result<()> {
        #[derive(Deserialize)]
        struct Version {
            schema: u64,
        }
        let Version { schema } = self.metadata()?;
        check_version(self.path, schema, versions)
    }

    /// The metadata.
    pub(crate) fn metadata<M: DeserializeOwned>(&self) -> Result<M> {
        serde_json::from_str(&self.json).map_err(|e| format_error(self.path, e))
    }

    /// All tensors, by name, when `sha256` is the checksum of all that the file holds.
    ///
    /// # Errors
    /// [`Error::Checksum`]; [`Error::Format`].
    pub(crate) fn tensors(&self, sha256: &str) -> Result<BTreeMap<String, TensorView<'_>>> {
        let path = self.path;
        let file = SafeTensors::deserialize(&self.bytes).map_err(|e| format_error(path, e))?;
        let views = file.tensors().into_iter().collect();
        let undigested = self.json.replacen(sha256, "", 1);
        let found = checksum(&undigested, &views).map_err(|e| format_error(path, e))?;
        if found != sha256 {
            return Err(Error::Checksum {
                path: path.into(),
                expected: sha256.into(),
                found,
            });
        }
        Ok(views)
    }
}
