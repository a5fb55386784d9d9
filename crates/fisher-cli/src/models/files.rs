//! The safetensors files of a folder: which tensors are where.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};
use serde_json::Value;

use super::error::{Error, Result};
use super::folder::{INDEX, SINGLE, readable};

/// A tensor in a file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) file: PathBuf,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    /// Where its bytes are in the file.
    bytes: std::ops::Range<u64>,
}

impl Stored {
    /// Its bytes.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        let read = || {
            let mut file = File::open(&self.file)?;
            file.seek(SeekFrom::Start(self.bytes.start))?;
            let mut bytes = Vec::new();
            file.take(self.bytes.end - self.bytes.start)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|e| Error::io(&self.file, e))
    }
}

/// The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists.
pub(super) fn tensors(folder: &Path) -> Result<BTreeMap<String, Stored>> {
    let single = folder.join(SINGLE);
    if single.exists() {
        header(&single)
    } else {
        sharded(folder, &folder.join(INDEX))
    }
}

/// Each tensor from the shard that the index names. What shards have beside that is not of the model: the
/// index decides.
fn sharded(folder: &Path, index: &Path) -> Result<BTreeMap<String, Stored>> {
    let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, e))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| Error::json(index, e))?;
    let map = json["weight_map"].as_object();
    let map = map.ok_or_else(|| Error::json(index, "it has no `weight_map`"))?;
    let mut shards = BTreeMap::new();
    for file in map.values() {
        let name = file.as_str().filter(|name| !name.contains(['/', '\\']));
        let name = name.ok_or_else(|| Error::json(index, format!("{file} is no file name")))?;
        if !shards.contains_key(name) {
            shards.insert(name, header(&folder.join(name))?);
        }
    }
    let mut all = BTreeMap::new();
    for (tensor, file) in map {
        let shard = file.as_str().and_then(|file| shards.get_mut(file));
        let stored = shard.and_then(|shard| shard.remove(tensor));
        let stored = stored.ok_or_else(|| {
            Error::json(
                index,
                format!("it takes `{tensor}` from {file}, which does not have it"),
            )
        })?;
        all.insert(tensor.clone(), stored);
    }
    for (file, tensor) in shards
        .iter()
        .flat_map(|(file, rest)| rest.keys().map(move |t| (file, t)))
    {
        tracing::info!(
            file,
            tensor,
            "left out: the index does not take it from there"
        );
    }
    Ok(all)
}

/// The tensors of one file, from its header.
pub(super) fn header(path: &Path) -> Result<BTreeMap<String, Stored>> {
    readable(path)?;
    let io = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length.saturating_add(8) > size {
        return Err(Error::json(path, "its header is longer than the file"));
    }
    let mut json = Vec::new();
    (&mut file)
        .take(length)
        .read_to_end(&mut json)
        .map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&json).map_err(|e| Error::json(path, e))?;
    let start = 8 + length;
    if metadata.data_len() as u64 + start != size {
        return Err(Error::json(path, "it is cut short, or has bytes too many"));
    }
    let stored = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (from, to) = info.data_offsets;
        let stored = Stored {
            file: path.into(),
            shape: info.shape.clone(),
            dtype: info.dtype,
            bytes: start + from as u64..start + to as u64,
        };
        (name, stored)
    };
    Ok(metadata.tensors().into_iter().map(stored).collect())
}
