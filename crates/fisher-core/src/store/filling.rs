//! Batches that are put into a store.

use std::ops::Range;

use super::gradients::GradientStore;
use super::index::Entry;
use super::intake::{Part, Prepared, SLICE, Source};
use crate::error::{Error, Result};
use crate::gradient::{GradientBatch, GradientSink, SampleGradient};
use crate::kind::FisherKind;
use crate::model::Parameter;
use crate::sample::{Sample, SampleRecord};

/// What goes to the disk is written there as it is put, after the samples that the index names, and
/// written over if it is never committed.
impl GradientSink for GradientStore {
    fn wants(&self, path: &str) -> bool {
        self.index.contains_key(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        Some(self.kind()).filter(|kind| *kind != found)
    }

    /// # Errors
    /// Those of [`GradientStore::push`] that concern samples and room.
    fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<()> {
        self.pending = None;
        self.pending = Some(self.prepared(task, samples)?);
        Ok(())
    }

    /// # Errors
    /// [`Error::UnknownParameter`] when the store does not keep the parameter, [`Error::NoBatch`] when
    /// none was begun, and those of [`GradientStore::push`] that concern gradients.
    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        let mut prepared = self.pending.take().ok_or(Error::NoBatch)?;
        let put = self.put_into(&mut prepared, path, &gradient);
        self.pending = Some(prepared);
        put
    }

    /// # Errors
    /// [`Error::MissingParameter`] when a parameter has not come, [`Error::NoBatch`] when no batch was
    /// begun.
    fn prepare(&mut self) -> Result<()> {
        let prepared = self.pending.take().ok_or(Error::NoBatch)?;
        if !prepared.samples.is_empty()
            && let Some(position) = prepared.parts.iter().position(Option::is_none)
        {
            return Err(Error::MissingParameter {
                parameter: self.catalogue.parameters()[position].path().into(),
            });
        }
        self.pending = Some(prepared);
        Ok(())
    }

    fn forget(&mut self) {
        self.pending = None;
    }

    /// # Errors
    /// Those of [`prepare`](GradientSink::prepare), and [`Error::Io`] when the folder cannot be written.
    fn commit(&mut self) -> Result<()> {
        self.prepare()?;
        let prepared = self.pending.take().ok_or(Error::NoBatch)?;
        self.keep(prepared)
    }
}

impl GradientStore {
    /// Keep the gradients of a batch of `task`. Gradients of parameters that the store does not
    /// keep are passed over.
    ///
    /// They are read from the device, encoded and written a few megabytes at a time.
    ///
    /// # Errors
    /// [`Error::MissingParameter`], [`Error::ParameterTwice`] or [`Error::Shape`] when a gradient is
    /// not there, is there twice or of another size, [`Error::SampleTwice`] when a sample is already
    /// there, [`Error::NonFinite`] when an element is NaN or infinite, [`Error::Budget`] when there is
    /// neither memory nor a folder left, [`Error::StoreLocked`] when the store was opened for reading,
    /// [`Error::Io`] when the folder cannot be written, [`Error::Device`] when the device does not
    /// give the values. Nothing is kept then.
    pub fn push(&mut self, task: &str, batch: &GradientBatch) -> Result<()> {
        self.pending = None;
        let prepared = self.encode(task, batch)?;
        self.keep(prepared)
    }

    /// A batch, encoded and fit to be kept.
    fn encode(&mut self, task: &str, batch: &GradientBatch) -> Result<Prepared> {
        self.check_batch(batch)?;
        let mut prepared = self.prepared(task, batch.samples())?;
        for range in self.transfers(batch.samples().len()) {
            for (position, source) in range.clone().zip(self.sources(batch, range)?) {
                self.take(&mut prepared, position, &source)?;
            }
        }
        Ok(prepared)
    }

    /// A batch that nothing has come of yet.
    fn prepared(&mut self, task: &str, samples: &[Sample]) -> Result<Prepared> {
        let held = self.check_room(task, samples)?;
        let bytes = (self.bytes_per_sample() as u64).saturating_mul(samples.len() as u64);
        let place = match &mut self.shards {
            Some(shards) if !samples.is_empty() => Some(shards.place(bytes)?),
            _ => None,
        };
        Ok(Prepared {
            task: task.into(),
            samples: samples.to_vec(),
            held,
            place,
            parts: self.catalogue.parameters().iter().map(|_| None).collect(),
        })
    }

    fn put_into(
        &self,
        prepared: &mut Prepared,
        path: &str,
        gradient: &SampleGradient,
    ) -> Result<()> {
        let parameter = self.catalogue.require(path)?;
        gradient.check(path, prepared.samples.len(), parameter.shape())?;
        let position = self.index[path];
        if prepared.parts[position].is_some() {
            return Err(Error::ParameterTwice {
                parameter: path.into(),
            });
        }
        for source in Source::of(vec![gradient.to_full()])? {
            self.take(prepared, position, &source)?;
        }
        Ok(())
    }

    fn keep(&mut self, prepared: Prepared) -> Result<()> {
        let Prepared {
            task,
            samples,
            held,
            place,
            parts,
        } = prepared;
        if samples.is_empty() {
            return Ok(());
        }
        let needed = self.bytes_per_sample() * samples.len();
        let (crc, exponents, matrices) = Prepared::finish(parts.into_iter().flatten().collect());
        let entry = match (&mut self.shards, place) {
            (Some(shards), Some(place)) => {
                let records = samples.iter().map(SampleRecord::from).collect();
                let entry = Entry::new(&task, records, place, needed as u64, crc, exponents);
                Some(shards.append(entry)?)
            }
            _ => None,
        };
        if held {
            self.held += needed;
        }
        self.add(&task, samples, matrices, entry);
        Ok(())
    }

    /// Whether the samples fit in memory.
    fn check_room(&self, task: &str, samples: &[Sample]) -> Result<bool> {
        self.check_ids(task, samples)?;
        let needed = self.bytes_per_sample().saturating_mul(samples.len());
        let needed = self.held.saturating_add(needed);
        match &self.shards {
            Some(shards) => shards.check_writable()?,
            None if needed > self.memory => {
                return Err(Error::Budget {
                    needed,
                    budget: self.memory,
                });
            }
            None => {}
        }
        Ok(needed <= self.memory)
    }

    /// Whether a batch has gradients of all parameters that are kept, one row a sample.
    pub(super) fn check_batch(&self, batch: &GradientBatch) -> Result<()> {
        batch.check_once()?;
        for parameter in self.catalogue.parameters() {
            let gradient = batch.get(parameter.path());
            let gradient = gradient.ok_or_else(|| Error::MissingParameter {
                parameter: parameter.path().into(),
            })?;
            gradient.check(parameter.path(), batch.samples().len(), parameter.shape())?;
        }
        Ok(())
    }

    /// Runs of parameters whose gradients of so many samples are read in one transfer, because they
    /// are few; or of one, that is read in slices.
    pub(super) fn transfers(&self, samples: usize) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut room = 0;
        for (position, parameter) in self.catalogue.parameters().iter().enumerate() {
            let elements = parameter.elements().saturating_mul(samples);
            match ranges.last_mut() {
                Some(last) if elements <= room => {
                    last.end = position + 1;
                    room -= elements;
                }
                _ => {
                    ranges.push(position..position + 1);
                    room = SLICE.saturating_sub(elements);
                }
            }
        }
        ranges
    }

    /// The gradients of a run of parameters, of a batch that has them.
    pub(super) fn sources(
        &self,
        batch: &GradientBatch,
        range: Range<usize>,
    ) -> Result<Vec<Source>> {
        let parameters = self.catalogue.parameters()[range].iter();
        let gradients = parameters.filter_map(|p| batch.get(p.path()));
        Source::of(gradients.map(SampleGradient::to_full).collect())
    }

    /// Encode the gradients of a parameter, and write them where they are to lie.
    fn take(&self, prepared: &mut Prepared, position: usize, source: &Source) -> Result<()> {
        let parameters = self.catalogue.parameters();
        let before = parameters[..position].iter().map(Parameter::elements);
        let before = before.sum::<usize>() * prepared.samples.len() * self.precision.bytes();
        let mut at = prepared
            .place
            .map(|(shard, start)| (shard, start + before as u64));
        let not_finite = |row: usize| Error::NonFinite {
            sample: prepared.samples[row].id().into(),
            parameter: parameters[position].path().into(),
        };
        let part = Part::of(source, self.precision, prepared.held, not_finite, |bytes| {
            if let (Some(shards), Some((shard, offset))) = (&self.shards, &mut at) {
                shards.write_at(*shard, *offset, bytes)?;
                *offset += bytes.len() as u64;
            }
            Ok(())
        });
        prepared.parts[position] = Some(part?);
        Ok(())
    }
}
