//! Whole files that are filled a piece of a tensor at a time, so that they need not fit in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::Dtype;
use serde::Serialize;
use tempfile::NamedTempFile;

use super::atomic::{Layout, begin, folder_of, layout, put_in_place, remove_stale};
use super::partial::Partial;
use crate::error::{Result, format_error, io_error};

/// A checksummed safetensors file on its way: there, whole, once it is [finished](Filled::finish).
pub(crate) struct Filled<'a, M> {
    path: &'a Path,
    temporary: NamedTempFile,
    key: &'a str,
    metadata: M,
    sha256: fn(&mut M) -> &mut String,
    tensors: BTreeMap<String, (Dtype, Vec<usize>)>,
    layout: Layout,
}

impl<'a, M: Serialize> Filled<'a, M> {
    /// Begin a file at `path` of these tensors, all zeros yet, with `metadata` as JSON under `key`; its
    /// checksum goes where `sha256` says.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::Header`](crate::Error::Header).
    pub(crate) fn begin(
        path: &'a Path,
        key: &'a str,
        mut metadata: M,
        sha256: fn(&mut M) -> &mut String,
        tensors: BTreeMap<String, (Dtype, Vec<usize>)>,
    ) -> Result<Self> {
        let io = |e| io_error(path, e);
        // As long as the one that follows.
        *sha256(&mut metadata) = "0".repeat(64);
        let layout = layout(path, &tensors, header(path, key, &metadata)?)?;
        let folder = folder_of(path);
        std::fs::create_dir_all(folder).map_err(io)?;
        remove_stale(folder);
        let temporary = begin(folder).map_err(io)?;
        let mut file = temporary.as_file();
        file.write_all(&layout.header).map_err(io)?;
        file.set_len(layout.length()).map_err(io)?;
        Ok(Self {
            path,
            temporary,
            key,
            metadata,
            sha256,
            tensors,
            layout,
        })
    }

    /// Write bytes of a tensor, `from` its beginning.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::Format`](crate::Error::Format) when there is no such
    /// tensor.
    pub(crate) fn put(&mut self, tensor: &str, from: u64, bytes: &[u8]) -> Result<()> {
        let start = self.layout.start(tensor);
        let start = start.ok_or_else(|| format_error(self.path, format!("no `{tensor}`")))?;
        let written = write_at(self.temporary.as_file(), start + from, bytes);
        written.map_err(|e| io_error(self.path, e))
    }

    /// Write the checksum, and put the file in its place.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub(crate) fn finish(mut self) -> Result<()> {
        (self.sha256)(&mut self.metadata).clear();
        let undigested = serde_json::to_string(&self.metadata);
        let undigested = undigested.map_err(|e| format_error(self.path, e))?;
        // By the file that is locked: another would be kept out on Windows.
        let file = self.temporary.as_file().try_clone();
        let file = file.map_err(|e| io_error(self.path, e))?;
        let digest = Partial::of(self.path, file)?.digest(&undigested)?;
        *(self.sha256)(&mut self.metadata) = digest;
        let header = header(self.path, self.key, &self.metadata)?;
        let header = layout(self.path, &self.tensors, header)?.header;
        let written = write_at(self.temporary.as_file(), 0, &header);
        written.map_err(|e| io_error(self.path, e))?;
        put_in_place(self.temporary, self.path)
    }
}

fn header(path: &Path, key: &str, metadata: &impl Serialize) -> Result<HashMap<String, String>> {
    let json = serde_json::to_string(metadata).map_err(|e| format_error(path, e))?;
    Ok([(key.to_owned(), json)].into())
}

fn write_at(mut file: &File, start: u64, bytes: &[u8]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(start))?;
    file.write_all(bytes)
}
