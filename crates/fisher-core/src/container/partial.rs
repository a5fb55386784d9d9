//! Files of which a part at a time is read, however large the whole is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::checksum::Digest;
use crate::error::{Error, Result, format_error, io_error};

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;

/// A file that was opened, and its header. Nothing is compared with a checksum but by
/// [`Partial::verify`].
pub(crate) struct Partial<'a> {
    path: &'a Path,
    file: File,
    header: Metadata,
    length: u64,
    /// Where its tensors begin.
    data: u64,
}

impl<'a> Partial<'a> {
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] when it has no header.
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        Self::of(path, File::open(path).map_err(|e| io_error(path, e))?)
    }

    /// Of a file that is open already.
    ///
    /// # Errors
    /// As [`Partial::open`].
    pub(super) fn of(path: &'a Path, mut file: File) -> Result<Self> {
        let io = |e| io_error(path, e);
        file.rewind().map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut size = [0; 8];
        if length < 8 {
            return Err(format_error(path, "it is too short for a header"));
        }
        file.read_exact(&mut size).map_err(io)?;
        let header = u64::from_le_bytes(size);
        // Sizes come from the file's length, never from its numbers alone.
        let data = header.checked_add(8).filter(|&data| data <= length);
        let data = data.ok_or_else(|| format_error(path, "its header is longer than the file"))?;
        let mut bytes = vec![0; header as usize];
        read_at(&file, 8, &mut bytes).map_err(io)?;
        Ok(Self {
            path,
            file,
            header: serde_json::from_slice(&bytes).map_err(|e| format_error(path, e))?,
            length,
            data,
        })
    }

    /// The metadata, whose JSON stands under `key`.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub(crate) fn metadata<M: DeserializeOwned>(&self, key: &str) -> Result<M> {
        serde_json::from_str(self.json(key)?).map_err(|e| format_error(self.path, e))
    }

    /// The version of its form.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub(crate) fn schema(&self, key: &str) -> Result<u64> {
        #[derive(Deserialize)]
        struct Version {
            schema: u64,
        }
        let Version { schema } = self.metadata(key)?;
        Ok(schema)
    }

    /// The JSON that stands under `key`.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub(super) fn json(&self, key: &str) -> Result<&str> {
        let json = self.header.metadata().as_ref().and_then(|all| all.get(key));
        let json = json.map(String::as_str);
        json.ok_or_else(|| format_error(self.path, format!("it has no `{key}` metadata")))
    }

    /// What its tensors are, by name.
    pub(crate) fn tensors(&self) -> BTreeMap<String, TensorInfo> {
        let all = self.header.tensors().into_iter();
        all.map(|(name, info)| (name, info.clone())).collect()
    }

    /// What a tensor is.
    ///
    /// # Errors
    /// [`Error::Format`] when it is not there.
    pub(crate) fn tensor(&self, name: &str) -> Result<TensorInfo> {
        let info = self.header.info(name).cloned();
        info.ok_or_else(|| format_error(self.path, format!("no `{name}`")))
    }

    /// Whether the file is as long as its header says.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub(super) fn check_whole(&self) -> Result<()> {
        if self.header.data_len() as u64 == self.length - self.data {
            return Ok(());
        }
        let reason = "it is cut short, or has bytes too many";
        Err(format_error(self.path, reason))
    }

    /// Read so many bytes of a tensor, `from` its beginning.
    ///
    /// # Errors
    /// [`Error::Format`] when the file is shorter, [`Error::Io`].
    pub(crate) fn read(&self, tensor: &TensorInfo, from: u64, bytes: &mut [u8]) -> Result<()> {
        let start = self.data + tensor.data_offsets.0 as u64 + from;
        if start + bytes.len() as u64 > self.length {
            return Err(format_error(
                self.path,
                "it is shorter than its header says",
            ));
        }
        read_at(&self.file, start, bytes).map_err(|e| io_error(self.path, e))
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// As [`Partial::read`], and [`Error::Format`] when it is not there.
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.tensor(name)?;
        let (start, end) = tensor.data_offsets;
        if end as u64 > self.length - self.data {
            return Err(format_error(self.path, format!("no `{name}`")));
        }
        let mut bytes = vec![0; end - start];
        self.read(&tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Read all of the file and compare it with `sha256`, which stands in the metadata under `key`.
    ///
    /// # Errors
    /// [`Error::Checksum`], and as [`Partial::read`].
    pub(crate) fn verify(&self, key: &str, sha256: &str) -> Result<()> {
        let undigested = self.json(key)?.replacen(sha256, "", 1);
        let found = self.digest(&undigested)?;
        if found == sha256 {
            return Ok(());
        }
        Err(Error::Checksum {
            path: self.path.into(),
            expected: sha256.into(),
            found,
        })
    }

    /// The digest of the file, when its metadata without its digest is `metadata`.
    ///
    /// # Errors
    /// As [`Partial::read`].
    pub(super) fn digest(&self, metadata: &str) -> Result<String> {
        let mut digest = Digest::of(metadata);
        let mut piece = vec![0; PIECE as usize];
        for (name, tensor) in self.tensors() {
            let told = digest.tensor(&name, tensor.dtype, &tensor.shape);
            told.map_err(|e| format_error(self.path, e))?;
            let (start, end) = tensor.data_offsets;
            let length = (end - start) as u64;
            let mut at = 0;
            while at < length {
                let bytes = &mut piece[..PIECE.min(length - at) as usize];
                self.read(&tensor, at, bytes)?;
                digest.bytes(bytes);
                at += bytes.len() as u64;
            }
        }
        Ok(digest.hex())
    }
}

fn read_at(mut file: &File, start: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(bytes)
}
