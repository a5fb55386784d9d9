//! Whole files: written with a checksum in their metadata, and read when it is that of the content.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::atomic::write_atomically;
use super::checksum::checksum;
use super::partial::Partial;
use super::source::Source;
use crate::error::{Error, Result, check_version, format_error};

/// Who wrote a file.
pub(crate) const WRITER: &str = concat!("fisher-core ", env!("CARGO_PKG_VERSION"));

/// Write `tensors` to `path`, atomically, with `metadata` as JSON under `key`; its checksum goes where
/// `sha256` says, which is empty before. Of every tensor the bytes are asked for twice.
pub(crate) fn write<M: Serialize>(
    path: &Path,
    key: &str,
    tensors: &BTreeMap<String, Source<'_>>,
    mut metadata: M,
    sha256: impl FnOnce(&mut M) -> &mut String,
) -> Result<()> {
    let fail = |e: serde_json::Error| format_error(path, e);
    let json = |metadata: &M| serde_json::to_string(metadata).map_err(fail);
    let undigested = json(&metadata)?;
    *sha256(&mut metadata) = checksum(&undigested, tensors, fail)?;
    let header = HashMap::from([(key.to_owned(), json(&metadata)?)]);
    write_atomically(path, tensors, header)
}

/// A file that was opened, and the JSON in its metadata. Its tensors are read when they are asked for.
pub(crate) struct Contents<'a> {
    path: &'a Path,
    file: Partial<'a>,
    json: String,
}

impl<'a> Contents<'a> {
    /// Open the file at `path`, whose JSON stands under `key`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] when it is no such file.
    pub(crate) fn open(path: &'a Path, key: &str) -> Result<Self> {
        let file = Partial::open(path)?;
        file.check_whole()?;
        let json = file.json(key)?.to_owned();
        Ok(Self { path, file, json })
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
    pub(crate) fn tensors(&self, sha256: &str) -> Result<BTreeMap<String, Source<'_>>> {
        let path = self.path;
        let tensors = self.file.tensors().into_iter();
        let tensors = tensors
            .map(|(name, info)| (name, self.source(info)))
            .collect();
        let undigested = self.json.replacen(sha256, "", 1);
        let found = checksum(&undigested, &tensors, |e| format_error(path, e))?;
        if found != sha256 {
            return Err(Error::Checksum {
                path: path.into(),
                expected: sha256.into(),
                found,
            });
        }
        Ok(tensors)
    }

    /// The tensor of this name, whatever the checksum.
    pub(crate) fn tensor(&self, name: &str) -> Option<Source<'_>> {
        Some(self.source(self.file.tensor(name).ok()?))
    }

    fn source(&self, info: TensorInfo) -> Source<'_> {
        let (dtype, shape) = (info.dtype, info.shape.clone());
        let read = move || {
            let (start, end) = info.data_offsets;
            let mut bytes = vec![0; end - start];
            self.file.read(&info, 0, &mut bytes)?;
            Ok(Cow::Owned(bytes))
        };
        Source::new(dtype, shape, read)
    }
}
