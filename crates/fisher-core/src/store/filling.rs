//! Batches that are put into a store.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::gradients::GradientStore;
use super::index::Entry;
use super::intake::{Part, Prepared, SLICE, Source};
use crate::error::{Error, Result};
use crate::gradient::{Gradient, GradientBatch, TokenSum};
use crate::model::Parameter;
use crate::sample::{Sample, SampleRecord};

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
        let prepared = self.prepare(task, batch)?;
        self.commit(prepared)
    }

    /// Everything about [`GradientStore::push`] that can go wrong with the batch: what comes back
    /// is encoded and fit to be kept, and nothing is kept yet. Where it goes to the disk it is there
    /// already, and would be written over if it were never committed.
    ///
    /// # Errors
    /// Those of [`GradientStore::push`].
    pub fn prepare(&mut self, task: &str, batch: &GradientBatch) -> Result<Prepared> {
        self.check_batch(batch)?;
        let mut prepared = self.begin(task, batch.samples())?;
        for range in self.transfers(batch.samples().len()) {
            for (position, source) in range.clone().zip(self.sources(batch, range)?) {
                self.take(&mut prepared, position, &source)?;
            }
        }
        Ok(prepared)
    }

    /// Begin to take in a batch of samples of `task` without ever holding its gradients whole: every
    /// parameter of [`GradientStore::catalogue`] comes by [`GradientStore::put`], in any order, before
    /// [`GradientStore::commit`].
    ///
    /// # Errors
    /// Those of [`GradientStore::push`] that concern samples and room.
    pub fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<Prepared> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let held = self.check_room(task, samples)?;
        let bytes = (self.bytes_per_sample() as u64).saturating_mul(samples.len() as u64);
        let place = match &mut self.shards {
            Some(shards) if !samples.is_empty() => Some(shards.place(bytes)?),
            _ => None,
        };
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        self.begun = Some(number);
        Ok(Prepared {
            task: task.into(),
            samples: samples.to_vec(),
            number,
            held,
            place,
            parts: self.catalogue.parameters().iter().map(|_| None).collect(),
        })
    }

    /// Take in the gradients of one parameter, one row a sample, for a batch that was begun last.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when the store does not keep the parameter,
    /// [`Error::NotPrepared`] when another batch was begun since, and those of
    /// [`GradientStore::push`] that concern gradients.
    pub fn put(
        &mut self,
        prepared: &mut Prepared,
        path: &str,
        gradient: &Gradient<TokenSum>,
    ) -> Result<()> {
        self.check_begun(prepared)?;
        let parameter = self.catalogue.require(path)?;
        check_shape(parameter, prepared.samples.len(), gradient)?;
        let position = self.index[path];
        if prepared.parts[position].is_some() {
            return Err(Error::ParameterTwice {
                parameter: path.into(),
            });
        }
        for source in Source::of(vec![gradient.tensor().clone()])? {
            self.take(prepared, position, &source)?;
        }
        Ok(())
    }

    /// Keep what was prepared by this store.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when a parameter has not come, [`Error::NotPrepared`] when
    /// another batch was begun since, [`Error::Io`] when the folder cannot be written.
    pub fn commit(&mut self, prepared: Prepared) -> Result<()> {
        self.check_begun(&prepared)?;
        let Prepared {
            task,
            samples,
            held,
            place,
            parts,
            ..
        } = prepared;
        if samples.is_empty() {
            return Ok(());
        }
        if let Some(position) = parts.iter().position(Option::is_none) {
            return Err(Error::MissingParameter {
                parameter: self.catalogue.parameters()[position].path().into(),
            });
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
        self.begun = None;
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
            check_shape(parameter, batch.samples().len(), gradient)?;
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
        Source::of(gradients.map(|g| g.tensor().clone()).collect())
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

    /// # Errors
    /// [`Error::NotPrepared`] unless this is the batch that was begun last.
    fn check_begun(&self, prepared: &Prepared) -> Result<()> {
        if self.begun == Some(prepared.number) {
            return Ok(());
        }
        Err(Error::NotPrepared {
            task: prepared.task.clone(),
        })
    }
}

fn check_shape(parameter: &Parameter, samples: usize, gradient: &Gradient<TokenSum>) -> Result<()> {
    let expected = [samples, parameter.elements()];
    let found = gradient.tensor().dims();
    if expected == found {
        return Ok(());
    }
    Err(Error::Shape {
        parameter: parameter.path().into(),
        expected: format!("[samples, elements] = {expected:?}"),
        found: format!("{found:?}"),
    })
}
