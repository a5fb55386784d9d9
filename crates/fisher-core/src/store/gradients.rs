//! The store: gradients by task, sample and parameter, and how they are read.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use burn::tensor::Device;

use super::index::{Entry, Header};
use super::intake::Prepared;
use super::precision::{Matrix, Precision, from_bytes};
use super::shards::Shards;
use super::usage::Usage;
use crate::error::{Error, Result, list};
use crate::grouping::{AttentionConfig, HeadLayout};
use crate::kind::FisherKind;
use crate::model::{Catalogue, Parameter};
use crate::sample::{Sample, SampleRecord, check_new};

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
/// use fisher_core::gradient::{Gradient, GradientBatch};
/// use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
/// use fisher_core::sample::Sample;
/// use fisher_core::store::GradientStoreConfig;
///
/// let weight = Parameter::new("w", [2], Role::Vector, Orientation::InputOutput);
/// let config = GradientStoreConfig::new(1 << 20);
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
    pub(super) precision: Precision,
    pub(super) catalogue: Catalogue,
    /// Path to position in the catalogue.
    pub(super) index: HashMap<String, usize>,
    tasks: BTreeMap<String, Task>,
    pub(super) shards: Option<Shards>,
    pub(super) memory: usize,
    pub(super) held: usize,
    heads: HeadLayout,
    /// Where comparisons are computed.
    device: Device,
    /// The batch that was begun and not committed.
    pub(super) pending: Option<Prepared>,
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
    /// ([`GradientStoreConfig::init`](super::GradientStoreConfig::init)) does the same.
    ///
    /// # Errors
    /// As [`GradientStore::open`], and [`Error::StoreLocked`] while a program writes to it.
    pub fn repair(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let header = Shards::header(folder)?;
        drop(Shards::write(folder, &header, u64::MAX)?);
        Self::open(folder)
    }

    pub(super) fn new(
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
            heads: HeadLayout::none(),
            device: Device::default(),
            pending: None,
        };
        for entry in entries {
            let samples = entry.samples.iter();
            let samples = samples.map(SampleRecord::sample);
            let samples = samples.collect::<Result<Vec<_>>>()?;
            let task = entry.task.clone();
            store.check_ids(&task, &samples)?;
            store.add(&task, samples, Vec::new(), Some(entry));
        }
        Ok(store)
    }

    /// The same store, whose samples are compared by the heads of `heads`.
    #[must_use]
    pub fn with_heads(mut self, heads: HeadLayout) -> Self {
        self.heads = heads;
        self
    }

    /// The same store, whose samples are compared by heads that are found by the names of its
    /// parameters.
    ///
    /// # Errors
    /// [`Error::HeadLayout`] when projections are not recognized.
    pub fn with_attention(self, attention: &AttentionConfig) -> Result<Self> {
        let heads = HeadLayout::recognize(&self.catalogue, attention)?;
        Ok(self.with_heads(heads))
    }

    /// The same store, whose samples are compared on `device`.
    #[must_use]
    pub fn with_device(mut self, device: &Device) -> Self {
        self.device = device.clone().without_autodiff();
        self
    }

    /// Where attention heads lie in the parameters; nowhere unless that was said. It is not in the
    /// store's folder.
    pub fn heads(&self) -> &HeadLayout {
        &self.heads
    }

    /// Where samples are compared: the device of the model that the store was made for, Burn's default
    /// where it was opened from its folder.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn check_ids(&self, task: &str, samples: &[Sample]) -> Result<()> {
        let of_task = self.tasks.get(task);
        check_new(task, samples, |id| {
            of_task.is_some_and(|of_task| of_task.ids.contains_key(id))
        })
    }

    pub(super) fn add(
        &mut self,
        task: &str,
        samples: Vec<Sample>,
        held: Vec<Matrix>,
        on_disk: Option<Entry>,
    ) {
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

    /// [`hash_weights`](crate::model::hash_weights) of the model.
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
    pub(super) fn number(&self, task: &str, sample: &str) -> Result<usize> {
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
