//! Folders of stores joined into one folder, without a gradient being decoded.

use std::collections::HashSet;
use std::path::Path;

use super::config::GradientStoreConfig;
use super::gradients::GradientStore;
use super::index::{Entry, same};
use super::shards::Shards;
use crate::error::{Error, Result};

impl GradientStore {
    /// Join the stores in the folders `from` into one in `to`, in this order, and open it to read from it. Bytes
    /// are copied as they are and compared with their checksums meanwhile; what is held are 8 MB and the
    /// records of the samples. What `to` holds already is kept.
    ///
    /// # Errors
    /// [`Error::OtherStore`] when two are of other weights, parameters, kind or precision,
    /// [`Error::DuplicateSample`] when a sample is in two, [`Error::Checksum`], and those of
    /// [`GradientStore::open`] and [`GradientStoreConfig::init`]; [`Error::Argument`] for no folders. What was
    /// copied by then stays.
    pub fn join_folders(from: &[impl AsRef<Path>], to: impl AsRef<Path>) -> Result<Self> {
        let to = to.as_ref();
        let first = from.first().ok_or_else(|| Error::Argument {
            name: "from",
            expected: "at least one folder",
            found: "none".into(),
        })?;
        let header = Shards::header(first.as_ref())?;
        let limit = GradientStoreConfig::new(0).shard;
        let (mut joined, entries) = Shards::write(to, &header, limit)?;
        let mut seen = HashSet::new();
        new(&mut seen, &entries)?;
        for folder in from {
            let folder = folder.as_ref();
            let (shards, theirs, entries) = Shards::read(folder)?;
            same(folder, &header, &theirs)?;
            new(&mut seen, &entries)?;
            for entry in entries {
                copy(&shards, entry, &mut joined)?;
            }
        }
        joined.sync()?;
        drop(joined);
        Self::open(to)
    }
}

/// # Errors
/// [`Error::DuplicateSample`] when a sample was there before.
fn new(seen: &mut HashSet<(String, String)>, entries: &[Entry]) -> Result<()> {
    for entry in entries {
        for sample in &entry.samples {
            if !seen.insert((entry.task.clone(), sample.id.clone())) {
                return Err(Error::DuplicateSample {
                    task: entry.task.clone(),
                    sample: sample.id.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Copy a chunk to the end of another store.
fn copy(from: &Shards, entry: Entry, to: &mut Shards) -> Result<()> {
    let (shard, offset) = to.place(entry.bytes)?;
    let mut at = 0;
    from.read_checked(&entry, |piece| {
        to.write_at(shard, offset + at, piece)?;
        at += piece.len() as u64;
        Ok(())
    })?;
    to.append(Entry {
        shard,
        offset,
        ..entry
    })?;
    Ok(())
}
