//! What a statistics file is of, read without its accumulators.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use super::accumulators::Statistics;
use super::file::METADATA;
use crate::container::encode;
use crate::error::{Result, format_error, io_error};
use crate::gradient::ContributionUnit;
use crate::provenance::Provenance;
use crate::sample::SampleRecord;

/// The provenance and the samples of a file that [`Statistics::save`] wrote: a small part of it,
/// however large its accumulators are. Nothing is compared with the checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSamples {
    provenance: Provenance,
    tasks: BTreeMap<String, Vec<SampleRecord>>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: HashMap<String, String>,
    #[serde(flatten)]
    tensors: HashMap<String, Place>,
}

#[derive(Deserialize)]
struct Place {
    data_offsets: [u64; 2],
}

#[derive(Deserialize)]
struct Metadata {
    provenance: Provenance,
    tasks: BTreeMap<String, serde::de::IgnoredAny>,
}

impl SavedSamples {
    /// Read those of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when it cannot be read, [`Error::Format`](crate::Error::Format)
    /// when it is no statistics file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |e| io_error(path, e);
        let format = |reason: String| format_error(path, reason);
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut size = [0; 8];
        if length < 8 {
            return Err(format("it is too short for a header".into()));
        }
        file.read_exact(&mut size).map_err(io)?;
        let header = u64::from_le_bytes(size);
        // Sizes come from the file's length, never from its numbers alone.
        let data = header.checked_add(8).filter(|&data| data <= length);
        let data = data.ok_or_else(|| format("its header is longer than the file".into()))?;
        let header = bytes(&mut file, 8, header).map_err(io)?;
        let header: Header = serde_json::from_slice(&header).map_err(|e| format_error(path, e))?;
        let metadata = header.metadata.get(METADATA);
        let metadata =
            metadata.ok_or_else(|| format(format!("it has no `{METADATA}` metadata")))?;
        let metadata: Metadata =
            serde_json::from_str(metadata).map_err(|e| format_error(path, e))?;
        let mut tasks = BTreeMap::new();
        for task in metadata.tasks.into_keys() {
            let name = format!("{}/samples", encode(&task));
            let place = header.tensors.get(&name);
            let [start, end] = place.map(|p| p.data_offsets).unwrap_or_default();
            let there = start < end && end <= length - data;
            if !there {
                return Err(format(format!("no `{name}`")));
            }
            let samples = bytes(&mut file, data + start, end - start).map_err(io)?;
            let samples = serde_json::from_slice(&samples).map_err(|e| format_error(path, e))?;
            tasks.insert(task, samples);
        }
        Ok(Self {
            provenance: metadata.provenance,
            tasks,
        })
    }

    /// The number of samples, of all tasks.
    pub fn count(&self) -> usize {
        self.tasks.values().map(Vec::len).sum()
    }

    /// What would be lost if `statistics` took the file's place: the first sample that they lack,
    /// or everything where they are of another model, kind or unit. `None` when nothing would.
    pub fn missing_from<C: ContributionUnit>(&self, statistics: &Statistics<C>) -> Option<String> {
        if let Err(error) = statistics.provenance().compatible(&self.provenance) {
            return Some(error.to_string());
        }
        for (task, samples) in &self.tasks {
            let ours = statistics.task(task).map_or(&[][..], |ours| ours.samples());
            if ours.starts_with(samples) {
                continue;
            }
            let ours: HashSet<_> = ours.iter().map(|s| (s.step, &*s.id)).collect();
            let missing = samples.iter().find(|s| !ours.contains(&(s.step, &*s.id)));
            if let Some(missing) = missing {
                return Some(format!("sample `{}` of task `{task}`", missing.id));
            }
        }
        None
    }
}

fn bytes(file: &mut File, start: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
