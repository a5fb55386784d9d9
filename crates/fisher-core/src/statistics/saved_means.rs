//! F of a statistics file, parameter by parameter.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::file::{METADATA, SCHEMA_VERSION};
use crate::container::{Contents, data, encode};
use crate::error::{Error, Result, format_error, list};
use crate::provenance::Provenance;

/// The means of a file that [`Statistics::save`](super::Statistics::save) wrote, each read when it is asked
/// for: files may be larger than memory.
pub struct SavedMeans<'a> {
    path: &'a Path,
    file: Contents<'a>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    provenance: Provenance,
    tasks: BTreeMap<String, serde::de::IgnoredAny>,
    sha256: String,
}

impl<'a> SavedMeans<'a> {
    /// Open the file at `path`, and compare all of it with its checksum.
    ///
    /// # Errors
    /// Those of [`Statistics::load`](super::Statistics::load).
    pub fn open(path: &'a Path) -> Result<Self> {
        let file = Contents::open(path, METADATA)?;
        file.check_version(1..=SCHEMA_VERSION)?;
        let metadata: Metadata = file.metadata()?;
        file.tensors(&metadata.sha256)?;
        Ok(Self {
            path,
            file,
            metadata,
        })
    }

    /// What the statistics are of.
    pub fn provenance(&self) -> &Provenance {
        &self.metadata.provenance
    }

    /// Whether `task` is in the file.
    ///
    /// # Errors
    /// [`Error::UnknownTask`].
    pub fn check_task(&self, task: &str) -> Result<()> {
        if self.metadata.tasks.contains_key(task) {
            return Ok(());
        }
        Err(Error::UnknownTask {
            task: task.into(),
            known: list(self.metadata.tasks.keys()),
        })
    }

    /// F of every element of a parameter, flattened.
    ///
    /// # Errors
    /// [`Error::UnknownTask`]; [`Error::UnknownParameter`] when it was not measured element by element;
    /// [`Error::Io`] when the file cannot be read.
    pub fn mean(&self, task: &str, parameter: &str) -> Result<Vec<f64>> {
        self.check_task(task)?;
        let part = |name: &str| {
            let name = format!("{}/{name}/{parameter}", encode(task));
            let Some(tensor) = self.file.tensor(&name) else {
                return Ok(None);
            };
            let data = data(&name, &tensor).map_err(|e| format_error(self.path, e))?;
            Ok::<_, Error>(Some(data.iter::<f64>().collect::<Vec<f64>>()))
        };
        let mut mean = part("mean")?.ok_or_else(|| Error::UnknownParameter {
            parameter: parameter.into(),
            known: "those that were measured element by element".into(),
        })?;
        let low = part("mean_low")?.unwrap_or_default();
        mean.iter_mut()
            .zip(low)
            .for_each(|(mean, low)| *mean += low);
        Ok(mean)
    }
}

impl std::fmt::Debug for SavedMeans<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "means of {}", self.path.display())
    }
}
