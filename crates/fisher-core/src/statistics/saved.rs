//! What a statistics file is of, read without its accumulators.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use super::accumulators::Statistics;
use super::file::METADATA;
use crate::container::{Partial, encode};
use crate::error::{Result, format_error};
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
        let file = Partial::open(path)?;
        let metadata: Metadata = file.metadata(METADATA)?;
        let mut tasks = BTreeMap::new();
        for task in metadata.tasks.into_keys() {
            let samples = file.bytes(&format!("{}/samples", encode(&task)))?;
            let samples = serde_json::from_slice(&samples).map_err(|e| format_error(path, e))?;
            tasks.insert(task, samples);
        }
        Ok(Self {
            provenance: metadata.provenance,
            tasks,
        })
    }

    /// Where the statistics come from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The samples of a task, in order, those that were skipped included. A task that is not there has none.
    pub fn samples(&self, task: &str) -> &[SampleRecord] {
        self.tasks.get(task).map_or(&[], |samples| samples)
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
