//! Samples, their active tokens, and records of those that were seen.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One sequence, or one example of a classifier: an id and its number of active tokens `T_i ≥ 1`.
///
/// Active tokens are the label positions that count, after the shift and after masking. A
/// classifier has one. The id is free text and is never parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    id: String,
    tokens: u64,
    cluster: Option<String>,
}

impl Sample {
    /// A sample with `tokens` active tokens.
    ///
    /// # Errors
    /// [`Error::NoActiveTokens`] when `tokens` is 0.
    pub fn new(id: impl Into<String>, tokens: u64) -> Result<Self> {
        let id = id.into();
        if tokens == 0 {
            return Err(Error::NoActiveTokens { sample: id });
        }
        Ok(Self {
            id,
            tokens,
            cluster: None,
        })
    }

    /// The same sample, one of those of `cluster`: a document, a template, a user. Samples of a
    /// cluster may depend on each other, so that error bars, relabellings and bootstraps take
    /// clusters whole. A sample without one depends on no other.
    #[must_use]
    pub fn with_cluster(self, cluster: impl Into<String>) -> Self {
        Self {
            cluster: Some(cluster.into()),
            ..self
        }
    }

    /// The sample's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The number of active tokens, at least 1.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The cluster that the sample is one of, if it is.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }
}

/// The active tokens of a batch of samples, on a device.
///
/// # Shapes
/// `[samples, 1]`, so that it divides the rows of a `[samples, elements]` matrix.
#[derive(Debug, Clone)]
pub struct Tokens(Tensor<2>);

impl Tokens {
    /// The token counts of `samples`.
    pub fn of(samples: &[Sample], device: &Device) -> Self {
        let counts: Vec<f32> = samples.iter().map(|s| s.tokens as f32).collect();
        // In float32 on any device: half precision would round 257 tokens to 256.
        let column = Tensor::<1>::from_data(counts.as_slice(), (device, DType::F32));
        Self(column.reshape([samples.len(), 1]))
    }

    pub(crate) fn column(&self, dtype: DType) -> Tensor<2> {
        self.0.clone().cast(dtype)
    }
}

/// A sample that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The sample's id.
    pub id: String,
    /// Its active tokens.
    pub tokens: u64,
    /// The parameter because of which it was left out, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The step of training at whose weights it was seen, where weights moved meanwhile: see
    /// [`Statistics::during_training`](crate::statistics::Statistics::during_training).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// The cluster that it is one of, if it is: see [`Sample::with_cluster`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

impl SampleRecord {
    /// The sample.
    ///
    /// # Errors
    /// [`Error::NoActiveTokens`]
    pub fn sample(&self) -> Result<Sample> {
        let sample = Sample::new(self.id.clone(), self.tokens)?;
        Ok(match &self.cluster {
            Some(cluster) => sample.with_cluster(cluster.clone()),
            None => sample,
        })
    }
}

impl From<&Sample> for SampleRecord {
    fn from(sample: &Sample) -> Self {
        Self {
            id: sample.id().into(),
            tokens: sample.tokens(),
            skipped: None,
            step: None,
            cluster: sample.cluster.clone(),
        }
    }
}

/// Records in the order they came, and which samples they are of. A sample is known by its id and
/// the step at which it was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    records: Vec<SampleRecord>,
    /// Hashes of (step, id): eight bytes a sample where ids would be kept twice.
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl Seen {
    /// The records, and how many of them are of a sample that came before.
    pub(crate) fn of(records: Vec<SampleRecord>) -> (Self, usize) {
        let samples = records.iter().map(|r| (r.step, &*r.id));
        let twice = records.len() - samples.collect::<HashSet<_>>().len();
        let mut seen = Self::default();
        records.into_iter().for_each(|record| seen.push(record));
        (seen, twice)
    }

    pub(crate) fn records(&self) -> &[SampleRecord] {
        &self.records
    }

    pub(crate) fn push(&mut self, record: SampleRecord) {
        self.hashes.insert(self.hash(record.step, &record.id));
        self.records.push(record);
    }

    pub(crate) fn extend(&mut self, other: Self) {
        other.records.into_iter().for_each(|r| self.push(r));
    }

    /// The first of `other` that is here too.
    pub(crate) fn shared<'a>(&self, other: &'a Self) -> Option<&'a SampleRecord> {
        let mut records = other.records.iter();
        records.find(|r| self.contains(r.step, &r.id))
    }

    /// All of them as seen at `step`.
    pub(crate) fn at_step(&mut self, step: u64) {
        for mut record in std::mem::take(self).records {
            record.step = Some(step);
            self.push(record);
        }
    }

    pub(crate) fn contains(&self, step: Option<u64>, id: &str) -> bool {
        // Two samples may have one hash, so a hit is looked at; hardly any but a true one comes.
        let is = |r: &SampleRecord| r.step == step && r.id == id;
        self.hashes.contains(&self.hash(step, id)) && self.records.iter().any(is)
    }

    fn hash(&self, step: Option<u64>, id: &str) -> u64 {
        self.hasher.hash_one((step, id))
    }
}

/// Whether these samples of `task` differ and none is `known`.
///
/// # Errors
/// [`Error::SampleTwice`], naming the first for which that is not so.
pub(crate) fn check_new<'a>(
    task: &str,
    samples: impl IntoIterator<Item = &'a Sample>,
    known: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut batch = HashSet::new();
    let mut samples = samples.into_iter();
    match samples.find(|s| known(s.id()) || !batch.insert(s.id())) {
        None => Ok(()),
        Some(sample) => Err(Error::SampleTwice {
            task: task.into(),
            sample: sample.id().into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record((id, step): (u8, Option<u64>)) -> SampleRecord {
        SampleRecord {
            id: id.to_string(),
            tokens: 1,
            skipped: None,
            step,
            cluster: None,
        }
    }

    proptest! {
        /// What is found is what a list would find.
        #[test]
        fn a_sample_is_its_id_and_step(
            ours in prop::collection::vec((0u8..9, prop::option::of(0u64..3)), 0..12),
            theirs in prop::collection::vec((0u8..9, prop::option::of(0u64..3)), 0..12),
        ) {
            let all: Vec<SampleRecord> = ours.iter().copied().map(record).collect();
            let (seen, twice) = Seen::of(all.clone());
            prop_assert_eq!(seen.records(), &*all);
            let distinct: HashSet<_> = ours.iter().collect();
            prop_assert_eq!(twice, ours.len() - distinct.len());
            let (other, _) = Seen::of(theirs.iter().copied().map(record).collect());
            let expected = theirs.iter().find(|key| distinct.contains(key));
            let expected = expected.copied().map(record);
            prop_assert_eq!(seen.shared(&other), expected.as_ref());
            let mut joined = seen.clone();
            joined.extend(other);
            prop_assert_eq!(joined.records().len(), ours.len() + theirs.len());
            let mut later = seen;
            later.at_step(7);
            prop_assert!(later.records().iter().all(|r| later.contains(Some(7), &r.id)));
            prop_assert!(later.records().iter().all(|r| !later.contains(None, &r.id)));
        }
    }
}
