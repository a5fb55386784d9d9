//! Where collected gradients go.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use fisher_core::Error as CoreError;
use fisher_core::gates::Gates;
use fisher_core::gradient::{ContributionUnit, GradientBatch, GradientSink, SampleGradient};
use fisher_core::kind::FisherKind;
use fisher_core::model::{Parameter, hash_weights};
use fisher_core::sample::Sample;
use fisher_core::statistics::{SavedSamples, Statistics};
use fisher_core::store::GradientStore;

use crate::capture::NonFinite;
use crate::error::{Error, Result};

/// Where collected gradients go: into statistics, and besides into a store and gates, if there are some.
///
/// Made from `&mut statistics`, `(&mut statistics, &mut store)`, `(&mut statistics, &mut gates)` or
/// `(&mut statistics, &mut store, &mut gates)`. Gates see the samples that the statistics count, so a checkpoint that has
/// some already is no beginning for gates that have not. As a [`GradientSink`] it lets the store be
/// ahead of the statistics, as one on disk is after an interruption: batches that are in it already are compared, not
/// stored twice. (A [`Collector`](crate::collect::Collector) takes a batch that is there in part sample by sample; a plain
/// pair of sinks refuses what the store has.)
#[derive(Debug)]
pub struct Destination<'a, C: ContributionUnit> {
    pub(crate) statistics: &'a mut Statistics<C>,
    store: Option<&'a mut GradientStore>,
    gates: Option<&'a mut Gates>,
    /// The batch that was begun, where the store has it already, until it has been compared.
    stored: Option<Stored>,
}

/// A batch that the store has already.
#[derive(Debug)]
enum Stored {
    Coming(String, GradientBatch),
    Compared,
}

impl<'a, C: ContributionUnit> From<&'a mut Statistics<C>> for Destination<'a, C> {
    fn from(statistics: &'a mut Statistics<C>) -> Self {
        Self {
            statistics,
            store: None,
            gates: None,
            stored: None,
        }
    }
}

impl<'a, C: ContributionUnit> From<(&'a mut Statistics<C>, &'a mut GradientStore)>
    for Destination<'a, C>
{
    fn from((statistics, store): (&'a mut Statistics<C>, &'a mut GradientStore)) -> Self {
        Self {
            statistics,
            store: Some(store),
            gates: None,
            stored: None,
        }
    }
}

impl<'a, C: ContributionUnit> From<(&'a mut Statistics<C>, &'a mut Gates)> for Destination<'a, C> {
    fn from((statistics, gates): (&'a mut Statistics<C>, &'a mut Gates)) -> Self {
        Self {
            gates: Some(gates),
            ..Self::from(statistics)
        }
    }
}

impl<'a, C: ContributionUnit> From<(&'a mut Statistics<C>, &'a mut GradientStore, &'a mut Gates)>
    for Destination<'a, C>
{
    fn from(
        (statistics, store, gates): (&'a mut Statistics<C>, &'a mut GradientStore, &'a mut Gates),
    ) -> Self {
        Self {
            gates: Some(gates),
            ..Self::from((statistics, store))
        }
    }
}

/// The statistics count a batch, and then the store keeps it: what is wrong with it leaves it out of both.
impl<C: ContributionUnit> GradientSink for Destination<'_, C> {
    fn wants(&self, path: &str) -> bool {
        self.statistics.wants(path)
            || self.store.as_ref().is_some_and(|store| store.wants(path))
            || self.gates.as_ref().is_some_and(|gates| gates.wants(path))
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        let store = self.store.as_ref();
        let by_store = store.and_then(|store| store.refuses(found));
        let by_gates = || self.gates.as_ref().and_then(|gates| gates.refuses(found));
        by_store
            .or_else(|| self.statistics.refuses(found))
            .or_else(by_gates)
    }

    fn takes_from(&self) -> Option<&Device> {
        self.statistics.takes_from()
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        self.statistics.begin(task, samples)?;
        self.gates.begin(task, samples)?;
        self.stored = None;
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        if samples
            .iter()
            .all(|sample| store.contains(task, sample.id()))
        {
            let batch = GradientBatch::new(samples.to_vec());
            self.stored = Some(Stored::Coming(task.into(), batch));
            return Ok(());
        }
        store.begin(task, samples)
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        if let Some(store) = &mut self.store
            && store.wants(path)
        {
            match &mut self.stored {
                Some(Stored::Coming(_, batch)) => batch.insert(path, gradient.clone()),
                Some(Stored::Compared) => return Err(CoreError::NoBatch),
                None => store.put(path, gradient.clone())?,
            }
        }
        if self.gates.wants(path) {
            self.gates.put(path, gradient.clone())?;
        }
        if self.statistics.wants(path) {
            self.statistics.put(path, gradient)?;
        }
        Ok(())
    }

    fn prepare(&mut self) -> fisher_core::Result<()> {
        self.statistics.prepare()?;
        self.gates.prepare()?;
        match (&mut self.store, &self.stored) {
            (Some(store), Some(Stored::Coming(task, batch))) => {
                store.compare(task, batch)?;
                self.stored = Some(Stored::Compared);
                Ok(())
            }
            (Some(store), None) => store.prepare(),
            (_, Some(Stored::Compared)) | (None, _) => Ok(()),
        }
    }

    fn forget(&mut self) {
        self.statistics.forget();
        self.gates.forget();
        self.stored = None;
        if let Some(store) = &mut self.store {
            store.forget();
        }
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        self.prepare()?;
        self.statistics.commit()?;
        self.gates.commit()?;
        match (&mut self.store, self.stored.take()) {
            (Some(store), None) => store.commit(),
            _ => Ok(()),
        }
    }

    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> fisher_core::Result<()> {
        self.statistics.skip(task, sample, parameter)?;
        self.gates.skip(task, sample, parameter)
    }
}

impl<C: ContributionUnit> Destination<'_, C> {
    pub(crate) fn check_model<M: Module>(&self, model: &M) -> Result<()> {
        check_model(model, self.statistics)?;
        if let Some(gates) = &self.gates {
            let (ours, theirs) = (self.statistics.provenance(), gates.scores().provenance());
            if theirs.model != ours.model {
                return Err(Error::OtherModel {
                    expected: theirs.model.clone(),
                    found: ours.model.clone(),
                });
            }
        }
        let kind = self.statistics.provenance().kind;
        match &self.store {
            Some(store) if store.kind() != kind => Err(Error::OtherKind {
                statistics: kind,
                store: store.kind(),
            }),
            Some(store) if store.model() != self.statistics.provenance().model => {
                Err(Error::OtherModel {
                    expected: store.model().into(),
                    found: self.statistics.provenance().model.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether gradients are stored besides.
    pub(crate) fn stores(&self) -> bool {
        self.store.is_some()
    }

    /// The parameters that need gradients.
    pub(crate) fn paths(&self) -> BTreeSet<&str> {
        let stored = self
            .store
            .iter()
            .flat_map(|store| store.catalogue().parameters());
        self.statistics
            .paths()
            .chain(stored.map(Parameter::path))
            .chain(self.gates.iter().flat_map(|gates| gates.paths()))
            .collect()
    }

    /// Whether gates have seen the samples of a task that the statistics have.
    ///
    /// # Errors
    /// [`Error::GatesBehind`]
    pub(crate) fn check_gates(&self, task: &str) -> Result<()> {
        let Some(gates) = &self.gates else {
            return Ok(());
        };
        let of_task = gates.scores().task(task);
        let theirs = of_task.map_or(0, |of_task| of_task.samples().len());
        let ours = self.seen(task);
        if ours == theirs {
            return Ok(());
        }
        Err(Error::GatesBehind {
            task: task.into(),
            statistics: ours,
            gates: theirs,
        })
    }

    /// Whether a sample still has to go into the store.
    pub(crate) fn lacks(&self, task: &str, sample: &str) -> bool {
        let store = self.store.as_ref();
        store.is_some_and(|store| !store.contains(task, sample))
    }

    /// The store first: what the checkpoint has counted must be in it.
    ///
    /// # Errors
    /// Those of [`Destination::check_path`] and [`Statistics::save`].
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        self.check_path(path)?;
        self.sync()?;
        Ok(self.statistics.save(path)?)
    }

    pub(crate) fn sync(&self) -> fisher_core::Result<()> {
        self.store.as_ref().map_or(Ok(()), |store| store.sync())
    }

    /// Make sure that the statistics can be written to `path` without a loss. `true` when there is
    /// nothing to write: the file has all their samples, or there are none.
    ///
    /// # Errors
    /// [`Error::OtherCheckpoint`] when a file is there that has what they lack, those of
    /// [`SavedSamples::read`] when it is no statistics file.
    pub(crate) fn check_path(&self, path: &Path) -> Result<bool> {
        let tasks = self.statistics.tasks();
        let ours: usize = tasks.map(|task| self.seen(task)).sum();
        if !path.exists() {
            return Ok(ours == 0);
        }
        let saved = SavedSamples::read(path)?;
        match saved.missing_from(self.statistics) {
            None => Ok(saved.count() == ours),
            Some(missing) => Err(Error::OtherCheckpoint {
                path: path.into(),
                missing,
            }),
        }
    }

    /// Samples of a task that were counted or skipped.
    pub(crate) fn seen(&self, task: &str) -> usize {
        let task = self.statistics.task(task);
        task.map_or(0, |task| task.samples().len())
    }

    /// Into the store only, what the statistics have counted before.
    pub(crate) fn restore(
        &mut self,
        task: &str,
        gradients: &GradientBatch,
        non_finite: NonFinite,
    ) -> fisher_core::Result<()> {
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        match store.push(task, gradients) {
            Err(CoreError::NonFinite { sample, parameter }) if non_finite == NonFinite::Skip => {
                tracing::warn!(sample, parameter, "gradient not finite, sample not stored");
                Ok(())
            }
            result => result,
        }
    }

    /// How many samples of a task the store has and the statistics lack.
    pub(crate) fn only_stored(&self, task: &str) -> usize {
        let known: HashSet<&str> = match self.statistics.task(task) {
            Ok(task) => task.samples().iter().map(|s| &*s.id).collect(),
            Err(_) => HashSet::new(),
        };
        let stored = self.store.iter().flat_map(|store| store.samples(task));
        stored.filter(|s| !known.contains(s.id())).count()
    }
}

/// Whether the statistics are of these very weights.
pub(crate) fn check_model<M: Module, C: ContributionUnit>(
    model: &M,
    statistics: &Statistics<C>,
) -> Result<()> {
    let expected = &statistics.provenance().model;
    let found = hash_weights(model)?;
    if *expected == found {
        return Ok(());
    }
    Err(Error::OtherModel {
        expected: expected.clone(),
        found,
    })
}
