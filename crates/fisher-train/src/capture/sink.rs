//! Where collected gradients go.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use fisher_core::{
    ContributionUnit, Error as CoreError, FisherKind, GradientBatch, GradientStore, Parameter,
    Prepared, SavedSamples, Statistics, hash_weights,
};

use super::policy::NonFinite;
use crate::error::{Error, Result};
use crate::monitor::Aside;

/// Where collected gradients go: into statistics, and whole into a store besides, if there is one.
///
/// Made from `&mut statistics` or from `(&mut statistics, &mut store)`.
#[derive(Debug)]
pub struct Destination<'a, C: ContributionUnit> {
    pub(crate) statistics: &'a mut Statistics<C>,
    pub(crate) store: Option<&'a mut GradientStore>,
    /// What else is wanted of gradients.
    pub(crate) aside: Option<&'a mut Aside>,
}

impl<'a, C: ContributionUnit> From<&'a mut Statistics<C>> for Destination<'a, C> {
    fn from(statistics: &'a mut Statistics<C>) -> Self {
        Self {
            statistics,
            store: None,
            aside: None,
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
            aside: None,
        }
    }
}

impl<C: ContributionUnit> Destination<'_, C> {
    pub(crate) fn check_model<M: Module>(&self, model: &M) -> Result<()> {
        check_model(model, self.statistics)?;
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

    /// Whether the statistics lie where the model's gradients will.
    pub(crate) fn check_device(&self, model: &Device) -> Result<()> {
        let statistics = self.statistics.device();
        if statistics == model {
            return Ok(());
        }
        Err(Error::OtherDevice {
            model: format!("{model:?}"),
            statistics: format!("{statistics:?}"),
        })
    }

    /// Whether gradients of this Fisher belong here.
    pub(crate) fn check_kind(&self, found: FisherKind) -> Result<()> {
        let kinds = self.store.iter().map(|store| store.kind());
        let mut kinds = kinds.chain([self.statistics.provenance().kind]);
        match kinds.find(|expected| *expected != found) {
            Some(expected) => Err(Error::LossKind { expected, found }),
            None => Ok(()),
        }
    }

    /// The same destination, for a while.
    pub(crate) fn reborrow(&mut self) -> Destination<'_, C> {
        Destination {
            statistics: self.statistics,
            store: self.store.as_deref_mut(),
            aside: self.aside.as_deref_mut(),
        }
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
            .collect()
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

    /// First the store says whether it can take the sample, then the statistics count it, and only
    /// then is it kept: what is wrong with it leaves it out of both.
    pub(crate) fn push(&mut self, task: &str, gradients: GradientBatch) -> fisher_core::Result<()> {
        let prepared = self.prepare(task, &gradients)?;
        let aside = self.aside.is_some().then(|| gradients.clone());
        let mut counted = gradients;
        if self.store.is_some() {
            counted.retain(|path| self.statistics.shape(path).is_some());
        }
        self.statistics.push(task, counted)?;
        if let (Some(aside), Some(gradients)) = (&mut self.aside, aside) {
            aside.push(task, &gradients)?;
        }
        self.commit(prepared)
    }

    /// What the store is to keep of a batch; nothing where there is none, or where one on disk is
    /// ahead of the checkpoint that is resumed from and has the samples.
    pub(crate) fn prepare(
        &mut self,
        task: &str,
        gradients: &GradientBatch,
    ) -> fisher_core::Result<Option<Prepared>> {
        let Some(store) = &mut self.store else {
            return Ok(None);
        };
        let mut samples = gradients.samples().iter();
        if samples.all(|s| store.contains(task, s.id())) {
            store.compare(task, gradients)?;
            return Ok(None);
        }
        store.prepare(task, gradients).map(Some)
    }

    pub(crate) fn commit(&mut self, prepared: Option<Prepared>) -> fisher_core::Result<()> {
        match (&mut self.store, prepared) {
            (Some(store), Some(prepared)) => store.commit(prepared),
            _ => Ok(()),
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
