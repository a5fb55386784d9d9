//! Files of which only the metadata and a few tensors are read, however large the rest is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::tensor::Metadata;
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
        let header = bytes(&mut file, 8, header).map_err(io)?;
        Ok(Self {
            path,
            file,
            header: serde_json::from_slice(&header).map_err(|e| format_error(path, e))?,
            length,
            data,
        })
    }

    /// The metadata, whose JSON stands under `key`.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format).
    pub(crate) fn metadata<M: DeserializeOwned>(&self, key: &str) -> Result<M> {
        let json = self.header.metadata().as_ref().and_then(|all| all.get(key));
        let json =
            json.ok_or_else(|| format_error(self.path, format!("it has no `{key}` metadata")))?;
        serde_json::from_str(json).map_err(|e| format_error(self.path, e))
    }

    /// The bytes of a tensor, at least one.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) when it is not there, [`Error::Io`](crate::Error::Io).
    pub(crate) fn bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        let place = self.header.info(name).map(|info| info.data_offsets);
        let (start, end) = place.unwrap_or_default();
        let [start, end] = [start, end].map(|at| at as u64);
        let there = start < end && end <= self.length - self.data;
        if !there {
            return Err(format_error(self.path, format!("no `{name}`")));
        }
        bytes(&mut self.file, self.data + start, end - start).map_err(|e| io_error(self.path, e))
    }
}

fn bytes(file: &mut File, start: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
