//! Files of which only the metadata and a few tensors are read, however large the rest is.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::DeserializeOwned;

use crate::error::{Result, format_error, io_error};

/// A file that was opened, and its header. Nothing is compared with a checksum.
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
    /// [`Error::Io`](crate::Error::Io); [`Error::Format`](crate::Error::Format) when it has no header.
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        let io = |e| io_error(path, e);
        let mut file = File::open(path).map_err(io)?;
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
        let header = bytes(&file, 8, header).map_err(io)?;
        Ok(Self {
            path,
            header: serde_json::from_slice(&header).map_err(|e| format_error(path, e))?,
            file,
            length,
            data,
        })
    }

    /// The metadata, whose JSON stands under `key`.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format).
    pub(crate) fn metadata<M: DeserializeOwned>(&self, key: &str) -> Result<M> {
        serde_json::from_str(self.json(key)?).map_err(|e| format_error(self.path, e))
    }

    /// The JSON that stands under `key`.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format).
    pub(super) fn json(&self, key: &str) -> Result<&str> {
        let json = self.header.metadata().as_ref().and_then(|all| all.get(key));
        let missing = || format_error(self.path, format!("it has no `{key}` metadata"));
        json.map(String::as_str).ok_or_else(missing)
    }

    /// Whether the file is as long as its header says.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format).
    pub(super) fn check_whole(&self) -> Result<()> {
        if self.header.data_len() as u64 == self.length - self.data {
            return Ok(());
        }
        let reason = "it is cut short, or has bytes too many";
        Err(format_error(self.path, reason))
    }

    /// Names and places of all tensors.
    pub(super) fn tensors(&self) -> HashMap<String, &TensorInfo> {
        self.header.tensors()
    }

    /// The place of a tensor.
    pub(super) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.info(name)
    }

    /// The bytes of a tensor of a file that is whole.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub(super) fn read(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        let (from, to) = info.data_offsets;
        let start = self.data + from as u64;
        bytes(&self.file, start, (to - from) as u64).map_err(|e| io_error(self.path, e))
    }

    /// The bytes of a tensor, at least one.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) when it is not there, [`Error::Io`](crate::Error::Io).
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let place = self.header.info(name).map(|info| info.data_offsets);
        let (start, end) = place.unwrap_or_default();
        let [start, end] = [start, end].map(|at| at as u64);
        let there = start < end && end <= self.length - self.data;
        if !there {
            return Err(format_error(self.path, format!("no `{name}`")));
        }
        bytes(&self.file, self.data + start, end - start).map_err(|e| io_error(self.path, e))
    }
}

fn bytes(mut file: &File, start: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
