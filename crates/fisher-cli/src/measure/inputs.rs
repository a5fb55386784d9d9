//! What a run measured: `inputs.json`, so that a run only goes on with the same.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::outcome::Result;
use super::replace::write;
use crate::models::{ModelConfig, Sequence};
use crate::samples::TaskData;

/// The file, in a run's folder.
pub const INPUTS: &str = "inputs.json";

/// The architecture, and a hash of every sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// What config.json says of the model: not everything shows in its weights.
    pub model: String,
    /// By task, by id: SHA-256 of tokens and labels.
    pub tasks: BTreeMap<String, BTreeMap<String, String>>,
}

impl Inputs {
    /// Those of a run.
    pub fn of(config: &ModelConfig, tasks: &[TaskData]) -> Self {
        let hashes = |task: &TaskData| {
            let samples = task.samples.iter();
            samples.map(|s| (s.id.clone(), hash(s))).collect()
        };
        Self {
            model: model(config),
            tasks: tasks
                .iter()
                .map(|task| (task.name.clone(), hashes(task)))
                .collect(),
        }
    }

    /// Read those of a folder.
    ///
    /// # Errors
    /// When there are none.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(INPUTS);
        let read = || -> Result<Self> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
        read().map_err(|e| format!("{} is no record of a run: {e}", path.display()).into())
    }

    /// Write them to a folder.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, folder: &Path) -> Result {
        write(folder, INPUTS, &serde_json::to_string(self)?)
    }

    /// These and those of another run of the same model; samples that both have must be the same.
    ///
    /// # Errors
    /// What differs.
    pub fn and(mut self, other: Self) -> Result<Self> {
        self.same_model(&other.model)?;
        for (task, hashes) in other.tasks {
            let known = self.tasks.entry(task.clone()).or_default();
            for (id, hash) in hashes {
                if known.get(&id).is_some_and(|known| *known != hash) {
                    return Err(format!(
                        "sample `{id}` of task `{task}` was another when it was measured: its tokens \
                         or labels have changed; give another --out"
                    )
                    .into());
                }
                known.insert(id, hash);
            }
        }
        Ok(self)
    }

    /// Whether they are of this model.
    ///
    /// # Errors
    /// What differs.
    pub fn same_model(&self, other: &str) -> Result {
        if self.model == *other {
            Ok(())
        } else {
            Err(format!(
                "config.json has changed between what is there and what is to be: {} and {other}",
                self.model
            )
            .into())
        }
    }
}

/// What config.json says of a model.
pub fn model(config: &ModelConfig) -> String {
    format!("{:?}", config.shape)
}

fn hash(sample: &Sequence) -> String {
    let mut hash = Sha256::new();
    for numbers in [&sample.tokens, &sample.labels] {
        hash.update((numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|n| hash.update(n.to_le_bytes()));
    }
    if let Some(class) = sample.class {
        hash.update((class as u64).to_le_bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
