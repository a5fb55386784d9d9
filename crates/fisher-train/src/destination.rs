//! Where collected gradients go.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::Module;
use fisher_core::{
    ContributionUnit, GradientBatch, GradientStore, Parameter, Statistics, hash_weights,
};

use crate::{Error, Result};

/// Where collected gradients go: into statistics, and whole into a store besides, if there is one.
///
/// Made from `&mut statistics` or from `(&mut statistics, &mut store)`.
#[derive(Debug)]
pub struct Destination<'a, C: ContributionUnit> {
    pub(crate) statistics: &'a mut Statistics<C>,
    pub(crate) store: Option<&'a mut GradientStore>,
}

impl<'a, C: ContributionUnit> From<&'a mut Statistics<C>> for Destination<'a, C> {
    fn from(statistics: &'a mut Statistics<C>) -> Self {
        Self {
            statistics,
            store: None,
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
        }
    }
}

impl<C: ContributionUnit> Destination<'_, C> {
    pub(crate) fn check_model<M: Module>(&self, model: &M) -> Result<()> {
        check_model(model, self.statistics)?;
        match &self.store {
            Some(store) if store.model() != self.statistics.provenance().model => {
                Err(Error::OtherModel {
                    expected: store.model().into(),
                    found: self.statistics.provenance().model.clone(),
                })
            }
            _ => Ok(()),
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
    pub(crate) fn save(&self, path: &Path) -> fisher_core::Result<()> {
        if let Some(store) = &self.store {
            store.sync()?;
        }
        self.statistics.save(path)
    }

    pub(crate) fn restore(
        &mut self,
        task: &str,
        gradients: &GradientBatch,
    ) -> fisher_core::Result<()> {
        match &mut self.store {
            Some(store) => store.push(task, gradients),
            None => Ok(()),
        }
    }

    /// The store takes the sample only when the statistics did.
    pub(crate) fn push(&mut self, task: &str, gradients: GradientBatch) -> fisher_core::Result<()> {
        let Some(store) = &mut self.store else {
            return self.statistics.push(task, gradients);
        };
        let mut counted = gradients.clone();
        counted.retain(|path| self.statistics.shape(path).is_some());
        self.statistics.push(task, counted)?;
        // A store on disk may be ahead of the checkpoint that is resumed from.
        match gradients
            .samples()
            .iter()
            .all(|s| store.contains(task, s.id()))
        {
            true => Ok(()),
            false => store.push(task, &gradients),
        }
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
