//! What the samples of several tasks say of a model's gates.

use std::collections::BTreeMap;

use super::set::GateSet;
use super::task::TaskGates;
use crate::error::{Error, Result, list};
use crate::provenance::Provenance;

/// What the samples of several tasks say of a model's gates: `m_G`, `F_ξG` and `−m_G + ½ F_ξG`, with errors, and one
/// number a sample and gate while they are few.
#[derive(Debug, Clone)]
pub struct GateScores {
    pub(super) provenance: Provenance,
    pub(super) sets: Vec<GateSet>,
    /// Numbers that are kept of a task's samples.
    pub(super) limit: usize,
    pub(super) tasks: BTreeMap<String, TaskGates>,
}

impl GateScores {
    /// Where they come from. Their unit is `per_token`.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The gates.
    pub fn sets(&self) -> &[GateSet] {
        &self.sets
    }

    /// The number of gates.
    pub fn gates(&self) -> usize {
        self.sets.iter().map(GateSet::gates).sum()
    }

    /// Each set, and where its gates lie among all.
    pub fn places(&self) -> impl Iterator<Item = (&GateSet, std::ops::Range<usize>)> {
        let mut first = 0;
        self.sets.iter().map(move |set| {
            let range = first..first + set.gates();
            first = range.end;
            (set, range)
        })
    }

    /// Names of the tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// What the samples of a task say.
    ///
    /// # Errors
    /// [`Error::UnknownTask`]
    pub fn task(&self, task: &str) -> Result<&TaskGates> {
        self.tasks.get(task).ok_or_else(|| Error::UnknownTask {
            task: task.into(),
            known: list(self.tasks.keys()),
        })
    }

    /// Take in what others say: other samples of the same gates of the same model. Rows are kept where both have them
    /// and they are few enough together.
    ///
    /// # Errors
    /// [`Error::Incompatible`] when kind, model or gates differ, [`Error::DuplicateSample`] when a sample is in both.
    /// Nothing is changed then.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        self.provenance.compatible(&other.provenance)?;
        if self.sets != other.sets {
            let names = |sets: &[GateSet]| list(sets.iter().map(GateSet::name));
            return Err(Error::Incompatible {
                what: "what the gates are on".into(),
                ours: names(&self.sets),
                theirs: names(&other.sets),
            });
        }
        for (name, theirs) in &other.tasks {
            let ours = self.tasks.get(name);
            if let Some(twice) = ours.and_then(|ours| ours.samples.shared(&theirs.samples)) {
                return Err(Error::DuplicateSample {
                    task: name.clone(),
                    sample: twice.id.clone(),
                });
            }
        }
        self.provenance.absorb(other.provenance);
        for (name, theirs) in other.tasks {
            match self.tasks.get_mut(&name) {
                Some(ours) => ours.merge(theirs, self.limit),
                None => {
                    self.tasks.insert(name, theirs);
                }
            }
        }
        Ok(())
    }
}
