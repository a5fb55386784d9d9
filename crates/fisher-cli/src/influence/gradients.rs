//! Gradients of training samples and queries, kept or held.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::factors::{Factors, FactorsConfig};
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::pieces;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::curvature::kronecker::Kronecker;
use fisher_train::capture::CaptureConfig;

use super::args::InfluenceArgs;
use crate::interrupt::{Interrupted, Unhurried, asked};
use crate::measure::{Progress, Result, doing};
use crate::models::{Checkpoint, Sequences};
use crate::samples::{TaskData, batches};

/// Kronecker factors of the training samples, beside their gradients.
const FACTORS: &str = "factors.safetensors";

/// Numbers of gradients that are held at a time while eigenvalues are corrected.
const HELD: usize = 1 << 24;

/// What gradients are taken of, and how.
pub(super) struct Gradients<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) catalogue: Catalogue,
    pub(super) run: &'a InfluenceArgs,
    pub(super) device: &'a Device,
}

impl Gradients<'_> {
    /// Those of the training samples, and their factors where these are wanted.
    ///
    /// # Errors
    /// What the library refused; [`Interrupted`].
    pub(super) fn train(
        &self,
        task: &TaskData,
        factored: bool,
    ) -> Result<(GradientStore, Option<Factors>)> {
        let _unhurried = Unhurried::begin();
        let folder = self.run.gradients.as_deref();
        let mut store = self.store(folder)?;
        let file = folder.map(|folder| folder.join(FACTORS));
        let mut factors = match &file {
            Some(file) if factored && file.exists() => Some(Factors::load(file)?),
            _ => None,
        };
        let stored = self.stored(&store, task)?;
        // Factors are of all samples, or made anew.
        let complete = factors.as_ref().is_some_and(|factors| {
            let of_task = factors.task(&task.name);
            of_task.is_ok_and(|of_task| of_task.count() as usize == task.samples.len())
        });
        if factored && !complete {
            factors = Some(self.factors()?);
        }
        let fresh = factors.as_mut().filter(|_| factored && !complete);
        if fresh.is_some() || !stored {
            let sink = (fresh, (!stored).then_some(&mut store));
            self.collect(task, sink)?;
        }
        if let (Some(file), Some(factors), false) = (&file, &factors, complete) {
            factors.save(file)?;
        }
        Ok((store, factors))
    }

    /// Those of the queries, in memory.
    ///
    /// # Errors
    /// As [`Gradients::train`].
    pub(super) fn queries(&self, task: &TaskData) -> Result<GradientStore> {
        let mut store = self.store(None)?;
        self.collect(task, &mut store)?;
        Ok(store)
    }

    fn store(&self, folder: Option<&Path>) -> Result<GradientStore> {
        let config = GradientStoreConfig::new(self.run.memory.0 / 2)
            .with_folder(folder.map(Path::to_path_buf));
        let store = config.init_for(&self.catalogue, self.hash()?)?;
        Ok(store.with_device(self.device))
    }

    fn factors(&self) -> Result<Factors> {
        Ok(FactorsConfig::new().init_for(&self.catalogue, self.hash()?)?)
    }

    fn hash(&self) -> Result<String> {
        Ok(hash_weights(&self.checkpoint.model)?)
    }

    /// Whether a store has all samples of a task.
    ///
    /// # Errors
    /// When it has others, or some.
    fn stored(&self, store: &GradientStore, task: &TaskData) -> Result<bool> {
        let there = store.samples(&task.name);
        if there.is_empty() {
            return Ok(false);
        }
        let known = |sample: &&crate::models::Sequence| store.contains(&task.name, &sample.id);
        let found = task.samples.iter().filter(known).count();
        if found == task.samples.len() && there.len() == found {
            return Ok(true);
        }
        let folder = self
            .run
            .gradients
            .as_deref()
            .unwrap_or(Path::new(""))
            .display();
        Err(format!(
            "{folder} holds gradients of {} samples of `{}`, and {found} of the {} that are asked for are among them: a pass was \
             interrupted, or the samples are others; give another --gradients, or remove the folder",
            there.len(),
            task.name,
            task.samples.len()
        )
        .into())
    }

    fn collect(&self, task: &TaskData, mut sink: impl GradientSink) -> Result {
        let model = &self.checkpoint.model;
        let names = self.checkpoint.naming.names();
        let paths = self.catalogue.parameters().iter().map(|p| p.path());
        let mut capture = CaptureConfig::new().init_named(model, paths, &names)?;
        let tracked = self.device.clone().autodiff();
        let tokens = |samples: &[crate::models::Sequence]| -> u64 {
            samples.iter().map(|s| s.tokens.len() as u64).sum()
        };
        let mut progress = Progress::new(&task.name, tokens(&task.samples));
        for samples in batches(&task.samples, self.run.batch_tokens) {
            if asked() {
                return Err(
                    Interrupted("Interrupted before all gradients were there.".into()).into(),
                );
            }
            let batch = Sequences::new(&samples, &tracked);
            capture.accumulate(&batch, &task.name, &mut sink)?;
            progress.advance(tokens(&samples));
        }
        progress.finish();
        Ok(())
    }

    /// KFAC of the training samples, or EKFAC: its eigenvalues are corrected by the gradients that are stored.
    ///
    /// # Errors
    /// What the library refused.
    pub(super) fn kronecker(
        &self,
        factors: &Factors,
        store: &GradientStore,
        task: &str,
        corrected: bool,
    ) -> Result<Kronecker> {
        doing("eigenvectors of factors");
        let kfac = Kronecker::of(factors, task)?;
        if !corrected {
            return Ok(kfac);
        }
        let mut corrections = kfac.corrections(self.device)?;
        let samples = store.samples(task);
        let elements: usize = self
            .catalogue
            .parameters()
            .iter()
            .map(|p| p.elements())
            .sum();
        let mut progress = Progress::of("eigenvalues", samples.len() as u64, "samples");
        for range in pieces(samples.len(), (HELD / elements.max(1)).max(1)) {
            let mut batch = GradientBatch::new(samples[range.clone()].to_vec());
            for parameter in self.catalogue.parameters() {
                let (path, elements) = (parameter.path(), parameter.elements());
                let mut values = Vec::with_capacity(range.len() * elements);
                for at in range.clone() {
                    values.extend_from_slice(&store.row(task, at, path, 0..elements)?);
                }
                let rows = TensorData::new(values, [range.len(), elements]);
                let rows = Tensor::<2>::from_data(rows, self.device);
                batch.insert(path, SampleGradient::full(rows));
            }
            corrections.push_batch(task, batch)?;
            progress.advance(range.len() as u64);
        }
        progress.finish();
        Ok(kfac.corrected(&corrections)?)
    }
}
