//! Per-sample gradients, kept so that samples can be compared with each other.

mod intake;
mod precision;
mod shards;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use burn::config::Config;
use burn::module::{Module, ParamGroup};

pub use intake::Prepared;
pub use precision::Precision;

use self::intake::{Part, SLICE, Source};
use self::precision::{Matrix, from_bytes};
use self::shards::{Entry, Header, Shards, Stored};
use crate::error::{Error, Result, list};
use crate::gradient::{Gradient, GradientBatch, TokenSum};
use crate::kind::FisherKind;
use crate::model::{Catalogue, Parameter, hash_weights};
use crate::sample::{Sample, SampleRecord};

/// Configuration of a [`GradientStore`].
///
/// A sample takes four bytes (two in half precision) for every element of the parameters that are
/// kept: 64 samples of the attention of a 7-billion-parameter model take half a terabyte, so choose
/// parameters with `only`, such as [`HeadLayout::group`](crate::HeadLayout::group).
#[derive(Config, Debug)]
pub struct StoreConfig {
    /// Bytes of gradients to hold in memory. Taking in a batch needs some 20 MB besides, whatever
    /// its size.
    pub memory: usize,
    /// Where gradients go on disk. With a folder every sample is written there, so that a
    /// collection can be resumed, and as many as `memory` allows are held in memory besides.
    /// Without one, samples beyond `memory` are an error.
    pub folder: Option<PathBuf>,
    /// The type to keep them in.
    #[config(default = "Precision::Float32")]
    pub precision: Precision,
    /// Which Fisher the gradients are of: that of the statistics they are collected with.
    #[config(default = "FisherKind::Empirical")]
    pub kind: FisherKind,
    /// The parameters to keep; all trainable ones when absent.
    pub only: Option<ParamGroup>,
    /// Bytes after which a new file is begun.
    #[config(default = 1073741824)]
    pub shard: u64,
}

impl StoreConfig {
    /// A store for gradients of `model`, with what its folder already has.
    ///
    /// # Errors
    /// [`Error::NoParameters`] when no trainable parameter is to be kept; with a folder,
    /// [`Error::Io`], [`Error::Format`] or [`Error::Version`] when it cannot be used,
    /// [`Error::OtherStore`] when it is of other weights, parameters, kind or precision, and
    /// [`Error::StoreLocked`] when another program writes to it.
    pub fn init<M: Module>(&self, model: &M) -> Result<GradientStore> {
        self.init_for(&Catalogue::of(model)?, hash_weights(model)?)
    }

    /// A store for gradients of the parameters in `catalogue`. `model` identifies the weights, as
    /// [`hash_weights`] does.
    ///
    /// # Errors
    /// As [`StoreConfig::init`].
    pub fn init_for(&self, catalogue: &Catalogue, model: String) -> Result<GradientStore> {
        let catalogue = match &self.only {
            Some(group) => catalogue.filter(group)?,
            None => catalogue.clone(),
        };
        let stored = catalogue.parameters().iter().map(|p| Stored {
            path: p.path().into(),
            shape: p.shape().to_vec(),
            role: p.role(),
            orientation: p.orientation(),
        });
        let header = Header::new(model, self.kind, self.precision, stored.collect());
        let Some(folder) = &self.folder else {
            return GradientStore::new(header, self.memory, None, Vec::new());
        };
        let (shards, entries) = Shards::write(folder, &header, self.shard)?;
        GradientStore::new(header, self.memory, Some(shards), entries)
    }
}

/// Signed token-sum gradients `g_i`, by task, sample and parameter.
///
/// Contributions are derived from them (`C_i = g_i ⊙ g_i / T_i`) and not stored besides. Filled by
/// [`GradientStore::push`], or by collection in `fisher-train` in the same pass as statistics.
///
/// On disk a store is a folder: `index.jsonl` (a line about the model and its parameters, a line for
/// every chunk of samples) and `shard-*.bin` (little-endian numbers). It is read with ordinary
/// positioned reads, so a file that is cut short is an error and not a crash.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use fisher_core::{
///     Catalogue, Gradient, GradientBatch, Orientation, Parameter, Role, Sample, StoreConfig,
/// };
///
/// let weight = Parameter::new("w", [2], Role::Vector, Orientation::InputOutput);
/// let config = StoreConfig::new(1 << 20);
/// let mut store = config.init_for(&Catalogue::new(vec![weight])?, "a model".into())?;
/// let mut batch = GradientBatch::new(vec![Sample::new("first", 3)?]);
/// let gradient = Tensor::<2>::from_floats([[1.0, -1.0]], &Device::flex());
/// batch.insert("w", Gradient::token_sum(gradient));
/// store.push("task", &batch)?;
/// assert_eq!(*store.gradient("task", "first", "w")?, [1.0, -1.0]);
/// # Ok::<(), fisher_core::Error>(())
/// ```
#[derive(Debug)]
pub struct GradientStore {
    model: String,
    kind: FisherKind,
    precision: Precision,
    catalogue: Catalogue,
    /// Path to position in the catalogue.
    index: HashMap<String, usize>,
    tasks: BTreeMap<String, Task>,
    shards: Option<Shards>,
    memory: usize,
    held: usize,
    /// The number of the batch that was begun last and has not been committed.
    begun: Option<u64>,
}

#[derive(Debug, Default)]
struct Task {
    samples: Vec<Sample>,
    /// Id to number.
    ids: HashMap<String, usize>,
    /// The chunk and the row in it, of every sample.
    places: Vec<(usize, usize)>,
    chunks: Vec<Chunk>,
}

/// The samples of one push.
#[derive(Debug)]
struct Chunk {
    rows: usize,
    /// By parameter; empty where they are only on disk.
    held: Vec<Matrix>,
    on_disk: Option<Entry>,
}

/// What a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Samples of all tasks.
    pub samples: usize,
    /// Bytes of gradients in memory.
    pub memory: usize,
    /// Bytes that may be in memory.
    pub budget: usize,
    /// Bytes of gradients on disk.
    pub disk: u64,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: f64| bytes / 1e6;
        write!(
            f,
            "{} samples, {:.1} MB of {:.1} MB in memory, {:.1} MB on disk",
            self.samples,
            mb(self.memory as f64),
            mb(self.budget as f64),
            mb(self.disk as f64)
        )
    }
}

impl GradientStore {
    /// Open the store in `folder` to read from it. Another program may write to it meanwhile: what it
    /// has written by now is there.
    ///
    /// # Errors
    /// [`Error::Truncated`] when samples that the index names are not there, because a copy broke off
    /// or the writing was cut short; [`Error::Io`], [`Error::Format`] or [`Error::Version`] when there
    /// is no store.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let (shards, header, entries) = Shards::read(folder.as_ref())?;
        Self::new(header, 0, Some(shards), entries)
    }

    /// Give up the samples at the end of the store in `folder` that were not written whole, with a
    /// warning that says how many, and open it to read from it. Opening a store for writing
    /// ([`StoreConfig::init`]) does the same.
    ///
    /// # Errors
    /// As [`GradientStore::open`], and [`Error::StoreLocked`] while a program writes to it.
    pub fn repair(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let header = Shards::header(folder)?;
        drop(Shards::write(folder, &header, u64::MAX)?);
        Self::open(folder)
    }

    fn new(
        header: Header,
        memory: usize,
        shards: Option<Shards>,
        entries: Vec<Entry>,
    ) -> Result<Self> {
        let parameters = header.parameters.into_iter();
        let parameters = parameters.map(|p| Parameter::new(p.path, p.shape, p.role, p.orientation));
        let catalogue = Catalogue::new(parameters.collect())?;
        let paths = catalogue.parameters().iter().map(|p| p.path().to_owned());
        let mut store = Self {
            model: header.model,
            kind: header.kind,
            precision: header.precision,
            index: paths.enumerate().map(|(i, path)| (path, i)).collect(),
            catalogue,
            tasks: BTreeMap::new(),
            shards,
            memory,
            held: 0,
            begun: None,
        };
        for entry in entries {
            let samples = entry.samples.iter();
            let samples = samples.map(|s| Sample::new(s.id.clone(), s.tokens));
            let samples = samples.collect::<Result<Vec<_>>>()?;
            let task = entry.task.clone();
            store.check_ids(&task, &samples)?;
            store.add(&task, samples, Vec::new(), Some(entry));
        }
        Ok(store)
    }

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

    /// Whether the samples of a batch are here already as they are given: with the same active
    /// tokens, and gradients that differ by less than the rounding of another backward pass and of
    /// the store's precision (1 % of a parameter's norm, and a ten-thousandth of all).
    ///
    /// # Errors
    /// [`Error::OtherSample`] when one is not, [`Error::UnknownTask`] or [`Error::UnknownSample`]
    /// when it is not here at all, and those of [`GradientStore::prepare`] and
    /// [`GradientStore::row`].
    pub fn compare(&self, task: &str, batch: &GradientBatch) -> Result<()> {
        self.check_batch(batch)?;
        let differs = |sample: &Sample, what: String| {
            Err(Error::OtherSample {
                task: task.into(),
                sample: sample.id().into(),
                what,
            })
        };
        let mut numbers = Vec::new();
        for sample in batch.samples() {
            let number = self.number(task, sample.id())?;
            if self.samples(task)[number].tokens() != sample.tokens() {
                return differs(sample, "another number of tokens".into());
            }
            numbers.push(number);
        }
        // Of every parameter and sample, the squares of distance and norm.
        let mut squares = vec![vec![[0.0; 2]; numbers.len()]; self.index.len()];
        for range in self.transfers(numbers.len()) {
            for (position, source) in range.clone().zip(self.sources(batch, range)?) {
                let path = self.catalogue.parameters()[position].path();
                source.slices(|rows, columns, ours| {
                    for (row, ours) in rows.zip(ours.chunks(columns.len())) {
                        let theirs = self.row(task, numbers[row], path, columns.clone())?;
                        let [distance, norm] = &mut squares[position][row];
                        for (x, y) in ours.iter().zip(&*theirs) {
                            *distance += (f64::from(*x) - f64::from(*y)).powi(2);
                            *norm += f64::from(*x).powi(2);
                        }
                    }
                    Ok(())
                })?;
            }
        }
        for (row, sample) in batch.samples().iter().enumerate() {
            let all: f64 = squares.iter().map(|of| of[row][1]).sum();
            let apart = |[distance, norm]: [f64; 2]| {
                // So that NaN does not agree.
                let agrees = distance.sqrt() <= 1e-2 * norm.sqrt() + 1e-4 * all.sqrt();
                !agrees
            };
            if let Some(position) = squares.iter().position(|of| apart(of[row])) {
                let path = self.catalogue.parameters()[position].path();
                return differs(sample, format!("another gradient of `{path}`"));
            }
        }
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
    fn check_batch(&self, batch: &GradientBatch) -> Result<()> {
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
    fn transfers(&self, samples: usize) -> Vec<Range<usize>> {
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
    fn sources(&self, batch: &GradientBatch, range: Range<usize>) -> Result<Vec<Source>> {
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

    fn check_ids(&self, task: &str, samples: &[Sample]) -> Result<()> {
        let mut seen = std::collections::HashSet::new();
        let known = self.tasks.get(task).map(|t| &t.ids);
        let twice = samples
            .iter()
            .find(|s| !seen.insert(s.id()) || known.is_some_and(|ids| ids.contains_key(s.id())));
        match twice {
            None => Ok(()),
            Some(sample) => Err(Error::SampleTwice {
                task: task.into(),
                sample: sample.id().into(),
            }),
        }
    }

    fn add(&mut self, task: &str, samples: Vec<Sample>, held: Vec<Matrix>, on_disk: Option<Entry>) {
        let task = self.tasks.entry(task.to_owned()).or_default();
        let chunk = task.chunks.len();
        for (row, sample) in samples.iter().enumerate() {
            task.ids.insert(sample.id().into(), task.places.len());
            task.places.push((chunk, row));
        }
        task.chunks.push(Chunk {
            rows: samples.len(),
            held,
            on_disk,
        });
        task.samples.extend(samples);
    }

    /// Wait until everything pushed is on the disk, so that it also survives a power cut. (That a
    /// program is killed it survives without.)
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.shards.as_ref().map_or(Ok(()), Shards::sync)
    }

    /// Read everything that is on disk and compare it with its checksums.
    ///
    /// # Errors
    /// [`Error::Checksum`], naming the file, or [`Error::Io`].
    pub fn verify(&self) -> Result<()> {
        let Some(shards) = &self.shards else {
            return Ok(());
        };
        let chunks = self.tasks.values().flat_map(|task| &task.chunks);
        let mut entries = chunks.filter_map(|chunk| chunk.on_disk.as_ref());
        entries.try_for_each(|entry| shards.verify(entry))
    }

    /// What the store takes.
    pub fn usage(&self) -> Usage {
        Usage {
            samples: self.tasks.values().map(|t| t.samples.len()).sum(),
            memory: self.held,
            budget: self.memory,
            disk: self.shards.as_ref().map_or(0, |s| s.bytes),
        }
    }

    /// Bytes that one sample takes.
    pub fn bytes_per_sample(&self) -> usize {
        let elements = self.catalogue.parameters().iter().map(Parameter::elements);
        let elements = elements.fold(0usize, usize::saturating_add);
        elements.saturating_mul(self.precision.bytes())
    }

    /// The parameters that are kept.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// [`hash_weights`] of the model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Which Fisher the gradients are of.
    pub fn kind(&self) -> FisherKind {
        self.kind
    }

    /// The type gradients are kept in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Names of the tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The samples of a task, in the order they came. A task that is not there has none.
    pub fn samples(&self, task: &str) -> &[Sample] {
        self.tasks.get(task).map_or(&[], |t| &t.samples)
    }

    /// Whether the sample is there.
    pub fn contains(&self, task: &str, sample: &str) -> bool {
        let task = self.tasks.get(task);
        task.is_some_and(|task| task.ids.contains_key(sample))
    }

    /// `g_i` of one parameter, flattened.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], [`Error::UnknownSample`] or [`Error::UnknownParameter`] when it is
    /// not there, [`Error::Io`] when it cannot be read.
    pub fn gradient(&self, task: &str, sample: &str, path: &str) -> Result<Cow<'_, [f32]>> {
        let number = self.number(task, sample)?;
        let elements = self.catalogue.require(path)?.elements();
        self.row(task, number, path, 0..elements)
    }

    /// Elements `range` of `g_i` of one parameter, where `number` counts the task's samples.
    ///
    /// # Errors
    /// [`Error::UnknownTask`] or [`Error::UnknownParameter`] when it is not there, [`Error::Io`]
    /// when it cannot be read.
    ///
    /// # Panics
    /// When there are not so many samples or elements.
    pub fn row(
        &self,
        task: &str,
        number: usize,
        path: &str,
        range: Range<usize>,
    ) -> Result<Cow<'_, [f32]>> {
        let task = self.task(task)?;
        self.catalogue.require(path)?;
        let position = self.index[path];
        let elements = self.catalogue.parameters()[position].elements();
        assert!(range.end <= elements, "elements of `{path}`");
        let (chunk, row) = task.places[number];
        let chunk = &task.chunks[chunk];
        if let Some(matrix) = chunk.held.get(position) {
            return Ok(matrix.row(row, elements, range));
        }
        let (Some(entry), Some(shards)) = (&chunk.on_disk, &self.shards) else {
            unreachable!("a chunk is in memory or on disk");
        };
        let before = self.catalogue.parameters()[..position].iter();
        let before: usize = before.map(Parameter::elements).sum();
        let width = self.precision.bytes();
        let offset = (before * chunk.rows + row * elements + range.start) * width;
        let mut bytes = vec![0; range.len() * width];
        shards.read_at(entry.shard, entry.offset + offset as u64, &mut bytes)?;
        let exponent = entry.exponents.get(position).map_or(0, |of| of[row]);
        Ok(Cow::Owned(from_bytes(self.precision, &bytes, exponent)))
    }

    /// `F = (1/n) Σ_i g_i ⊙ g_i / T_i` over the task's samples here, flattened.
    ///
    /// # Errors
    /// As [`GradientStore::row`], and [`Error::NoSamples`] when the task has none.
    pub fn fisher(&self, task: &str, path: &str) -> Result<Vec<f64>> {
        let elements = self.catalogue.require(path)?.elements();
        let samples = self.samples(task);
        if samples.is_empty() {
            return Err(Error::NoSamples { task: task.into() });
        }
        let mut fisher = vec![0.0; elements];
        for (number, sample) in samples.iter().enumerate() {
            let weight = 1.0 / (sample.tokens() as f64 * samples.len() as f64);
            let row = self.row(task, number, path, 0..elements)?;
            for (sum, &g) in fisher.iter_mut().zip(&*row) {
                *sum += weight * f64::from(g) * f64::from(g);
            }
        }
        Ok(fisher)
    }

    /// The number of a sample in its task.
    fn number(&self, task: &str, sample: &str) -> Result<usize> {
        let number = self.task(task)?.ids.get(sample).copied();
        number.ok_or_else(|| Error::UnknownSample {
            task: task.into(),
            sample: sample.into(),
            known: list(self.samples(task).iter().map(Sample::id)),
        })
    }

    fn task(&self, name: &str) -> Result<&Task> {
        self.tasks.get(name).ok_or_else(|| Error::UnknownTask {
            task: name.into(),
            known: list(self.tasks()),
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
