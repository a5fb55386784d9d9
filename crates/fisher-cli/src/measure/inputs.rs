//! What a run measured: `inputs.json`, so that a run only goes on with the same.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::outcome::Result;
use super::replace::write;
use crate::models::{ModelConfig, Sequence};
use crate::samples::{Part, TaskData};

/// The file, in a run's folder.
pub const INPUTS: &str = "inputs.json";

/// The architecture, and a hash of every sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// What config.json says of the model: not everything shows in its weights.
    pub model: String,
    /// By task, by id: SHA-256 of tokens and labels.
    pub tasks: BTreeMap<String, BTreeMap<String, String>>,
    /// By task, the parts of its file that were measured, where not all of it was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, Vec<Part>>,
}

impl Inputs {
    /// Those of a run.
    pub fn of(config: &ModelConfig, tasks: &[TaskData], part: Option<Part>) -> Self {
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
            parts: part.map_or_else(BTreeMap::new, |part| {
                let tasks = tasks.iter();
                let part = Part {
                    source: None,
                    ..part
                };
                tasks.map(|task| (task.name.clone(), vec![part])).collect()
            }),
        }
    }

    /// Of no sample, by what [`model`] says.
    pub fn empty(model: String) -> Self {
        Self {
            model,
            tasks: BTreeMap::new(),
            parts: BTreeMap::new(),
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

    /// These of what is there and those of what is to be, of the same parts or of all samples; samples that
    /// both have must be the same.
    ///
    /// # Errors
    /// What differs.
    pub fn go_on(mut self, other: Self) -> Result<Self> {
        for (task, ours) in &self.parts {
            if let Some(theirs) = other.parts.get(task)
                && ours != theirs
            {
                let [ours, theirs] = [ours, theirs].map(|parts| said(parts));
                return Err(format!(
                    "it holds part {ours} of task `{task}`, and this is part {theirs}; give another --out"
                )
                .into());
            }
        }
        self.parts.clear();
        self.and(other)
    }

    /// These and those of another run of the same model; samples that both have must be the same.
    ///
    /// # Errors
    /// What differs.
    pub fn and(mut self, other: Self) -> Result<Self> {
        self.same_model(&other.model)?;
        for (task, parts) in other.parts {
            self.parts.entry(task).or_default().extend(parts);
        }
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

    /// Parts of which none is here, where others of as many are: task and parts.
    pub fn missing(&self) -> Vec<(&str, Vec<Part>)> {
        let mut missing = Vec::new();
        for (task, parts) in &self.parts {
            let mut counts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for part in parts {
                let of = counts.entry(part.of).or_insert_with(|| vec![0; part.of]);
                of[part.index] += 1;
            }
            let mut of_task = Vec::new();
            for (of, counts) in counts {
                // One file's parts are each there once, those of several files as often as there are files.
                let most = counts.iter().max().copied().unwrap_or(0);
                let fewer = counts.iter().enumerate().filter(|(_, n)| **n < most);
                of_task.extend(fewer.map(|(index, _)| Part {
                    index,
                    of,
                    source: None,
                }));
            }
            if !of_task.is_empty() {
                missing.push((&**task, of_task));
            }
        }
        missing
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

/// Parts as words, not all of them where they are many.
pub fn said(parts: &[Part]) -> String {
    const SHOWN: usize = 20;
    let mut words: Vec<String> = parts.iter().take(SHOWN).map(Part::to_string).collect();
    if parts.len() > SHOWN {
        words.push(format!("{} more", parts.len() - SHOWN));
    }
    words.join(", ")
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
