//! The Fisher of recent batches, as Kronecker products with corrected eigenvalues.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::Error as CoreError;
use fisher_core::factors::{Block, FactorsConfig, Form, Second};
use fisher_core::gradient::{GradientBatch, GradientSink};
use fisher_core::kind::FisherKind;
use fisher_core::model::Catalogue;
use fisher_metrics::curvature::kronecker::{Kronecker, KroneckerBlock, Rotation};
use fisher_metrics::damping::Damping;

use super::config::NaturalGradientConfig;
use crate::error::Result;

/// The name of the one task.
const TASK: &str = "batch";

/// How far adaptation takes λ, up or down.
const FACTOR: f64 = 1e6;

/// Mean eigenvalues of a parameter, as shares of that of all: below the first there was no gradient but rounding, and below the second λ
/// does not fall with it.
const ROUNDING: f64 = 1e-6;
const SMALL: f64 = 1e-3;

/// λ never is 0.
const LEAST: f64 = 1e-30;

/// Factors and corrected eigenvalues of recent batches, older ones fading.
#[derive(Clone)]
pub(super) struct RunningFisher {
    config: FactorsConfig,
    catalogue: Catalogue,
    damping: Damping,
    /// What adaptation has made of it.
    factor: f64,
    adaptation: f64,
    decay: f64,
    refresh: usize,
    observed: usize,
    factors: BTreeMap<String, [Second; 2]>,
    /// What they are made of.
    forms: BTreeMap<String, Form>,
    kronecker: Option<Kronecker>,
    blocks: BTreeMap<String, OnDevice>,
}

/// The Fisher of a parameter on a device.
#[derive(Clone)]
pub(super) struct OnDevice {
    rotation: Rotation,
    /// `[first axis, all others]`
    eigenvalues: Tensor<2>,
    lambda: f64,
}

impl RunningFisher {
    pub(super) fn new(
        config: FactorsConfig,
        catalogue: Catalogue,
        natural: &NaturalGradientConfig,
    ) -> Self {
        Self {
            config,
            catalogue,
            damping: natural.damping,
            factor: 1.0,
            adaptation: natural.adaptation,
            decay: natural.decay,
            refresh: natural.refresh,
            observed: 0,
            factors: BTreeMap::new(),
            forms: BTreeMap::new(),
            kronecker: None,
            blocks: BTreeMap::new(),
        }
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.catalogue
            .parameters()
            .iter()
            .map(|parameter| parameter.path())
    }

    pub(super) fn kind(&self) -> FisherKind {
        self.config.kind
    }

    pub(super) fn factor(&self) -> f64 {
        self.factor
    }

    /// λ smaller or larger by how much of what was predicted came true; its new factor.
    pub(super) fn adapt(&mut self, predicted: f64, measured: f64) -> f64 {
        let before = self.factor;
        // A step that was not to lower the loss says nothing good of the approximation.
        let as_foreseen = |least: f64| predicted < 0.0 && measured / predicted > least;
        if as_foreseen(0.75) {
            self.factor *= self.adaptation;
        } else if !as_foreseen(0.25) {
            self.factor /= self.adaptation;
        }
        self.factor = self.factor.clamp(FACTOR.recip(), FACTOR);
        for block in self.blocks.values_mut() {
            block.lambda = (block.lambda * self.factor / before).max(LEAST);
        }
        self.factor
    }

    pub(super) fn block(&self, path: &str) -> Option<&OnDevice> {
        self.blocks.get(path)
    }

    /// Take in the gradients of a batch.
    pub(super) fn observe(&mut self, batches: &[GradientBatch], device: &Device) -> Result<()> {
        let mut factors = self.config.init_for(&self.catalogue, String::new())?;
        for batch in batches {
            factors.push_batch(TASK, batch.clone())?;
        }
        let of_batch = factors.task(TASK)?;
        // The first batches count alike.
        let keep = self.decay.min(1.0 - 1.0 / (1.0 + self.observed as f64));
        for (path, block) in of_batch.blocks() {
            self.mix(path, block, of_batch.factors(path)?, keep)?;
        }
        if self.observed.is_multiple_of(self.refresh) {
            let blocks = self.fresh_blocks()?;
            let provenance = factors.provenance().clone();
            let samples = of_batch.count();
            self.kronecker = Some(Kronecker::of_blocks(provenance, TASK, samples, blocks)?);
        }
        if let Some(kronecker) = &mut self.kronecker {
            let mut corrections = kronecker.corrections_without_errors(device)?;
            for batch in batches {
                corrections.push_batch(TASK, batch.clone())?;
            }
            let mixed = kronecker.blocks().map(|(path, block)| {
                let mut found = corrections.eigenvalues(path)?;
                if block.is_corrected() {
                    let before = block.eigenvalues().iter();
                    let pairs = found.iter_mut().zip(before);
                    pairs.for_each(|(found, before)| *found += keep * (before - *found));
                }
                Ok((path.to_owned(), block.clone().with_eigenvalues(found)))
            });
            let mixed = mixed.collect::<Result<BTreeMap<_, _>>>()?;
            let provenance = kronecker.provenance().clone();
            let samples = kronecker.samples();
            *kronecker = Kronecker::of_blocks(provenance, TASK, samples, mixed)?;
        }
        self.observed += 1;
        self.place(device);
        Ok(())
    }

    /// Take in the factors of a batch. Where no gradient is, no input counts.
    fn mix(&mut self, path: &str, block: &Block, found: [Second; 2], keep: f64) -> Result<()> {
        let before = self.forms.get(path).copied();
        if let (Some(before), Some(now)) = (before, block.form())
            && before != now
        {
            return Err(CoreError::Form {
                parameter: path.into(),
                before: before.name(),
                now: now.name(),
            }
            .into());
        }
        let Some(ours) = self.factors.get_mut(path) else {
            self.forms
                .extend(block.form().map(|form| (path.to_owned(), form)));
            self.factors.insert(path.to_owned(), found);
            return Ok(());
        };
        match (before, block.form()) {
            // What came before were zeros.
            (None, Some(form)) => {
                self.forms.insert(path.to_owned(), form);
                *ours = found;
            }
            (_, Some(_)) => {
                let pairs = ours.iter_mut().zip(&found);
                pairs.for_each(|(ours, found)| ours.mix(keep, found));
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// New eigenvectors, with what the old ones say of their eigenvalues.
    fn fresh_blocks(&self) -> Result<BTreeMap<String, KroneckerBlock>> {
        let blocks = self.catalogue.parameters().iter().map(|parameter| {
            let path = parameter.path();
            let block = KroneckerBlock::new(parameter.shape(), self.factors[path].clone(), path)?;
            let before = self
                .kronecker
                .as_ref()
                .map(|kronecker| kronecker.block(path));
            Ok(match before.transpose()? {
                Some(before) => {
                    let eigenvalues = block.diagonal_of(before);
                    (path.to_owned(), block.with_eigenvalues(eigenvalues))
                }
                None => (path.to_owned(), block),
            })
        });
        blocks.collect()
    }

    /// Put blocks where gradients are, with λ as it is now.
    fn place(&mut self, device: &Device) {
        let Some(kronecker) = &self.kronecker else {
            return;
        };
        let of_all = kronecker.mean_eigenvalue();
        let blocks = kronecker.blocks().map(|(path, block)| {
            let [rows, columns] = block.sides();
            let eigenvalues = block.eigenvalues();
            let mean = eigenvalues.iter().sum::<f64>() / eigenvalues.len().max(1) as f64;
            let values: Vec<f32> = eigenvalues.iter().map(|&s| s as f32).collect();
            let on_device = OnDevice {
                rotation: Rotation::new(block, device),
                eigenvalues: Tensor::from_data(TensorData::new(values, [rows, columns]), device),
                lambda: self.lambda(base(mean, of_all)),
            };
            (path.to_owned(), on_device)
        });
        self.blocks = blocks.collect();
    }

    fn lambda(&self, mean: f64) -> f64 {
        let lambda = match self.damping {
            Damping::Absolute(lambda) => lambda,
            Damping::Relative(factor) => factor * mean,
            _ => unreachable!("refused when the optimizer was made"),
        };
        (self.factor * lambda).max(LEAST)
    }
}

/// What λ is a multiple of. The quotient of a gradient and an F that both are nothing but rounding, as of a bias that all scores share,
/// would be of any size; so would that of a gradient that comes after F was looked at.
fn base(mean: f64, of_all: f64) -> f64 {
    if mean < ROUNDING * of_all {
        of_all
    } else {
        mean.max(SMALL * of_all)
    }
}

impl OnDevice {
    fn sides(&self) -> [usize; 2] {
        self.eigenvalues.dims()
    }

    /// `(F + λ)⁻¹ g`, in float32: it may leave the range of the gradient's type before it is shortened.
    pub(super) fn divide<const D: usize>(&self, gradient: Tensor<D>) -> Tensor<D> {
        let shape = gradient.dims();
        let gradient = gradient
            .reshape(self.sides())
            .cast(self.eigenvalues.dtype());
        let turned = self.rotation.there(gradient);
        let divided = turned / self.eigenvalues.clone().add_scalar(self.lambda);
        self.rotation.back(divided).reshape(shape)
    }

    /// `vᵀ F v`, `[1]`.
    pub(super) fn square<const D: usize>(&self, v: Tensor<D>) -> Tensor<1> {
        let v = v.reshape(self.sides()).cast(self.eigenvalues.dtype());
        let turned = self.rotation.there(v);
        (turned.square() * self.eigenvalues.clone()).sum()
    }
}
