//! How far a Fisher foretells what a small change of weights does to predictions.

use std::collections::BTreeMap;
use std::fmt;

use burn::config::Config;
use fisher_core::model::Catalogue;
use fisher_core::moments::{IntervalMethod, MeanEstimate};
use fisher_core::statistics::Statistics;
use fisher_metrics::check_argument;
use fisher_metrics::growth::Growth;
use fisher_metrics::weights::Weights;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::diagonal::elementwise;
use crate::batch::{SampleBatch, SampleLoss};
use crate::capture::deterministic;
use crate::destination::check_model;
use crate::error::{Error, Result};
use crate::predictions::{Predictions, normal};

/// Version of the form of [`CalibrationReport`].
const SCHEMA: u64 = 1;

/// Configuration of [`Calibration`].
#[derive(Config, Debug)]
pub struct CalibrationConfig {
    /// The divergence that changes are made for, in nats a token: small enough that the second order is what counts, large enough
    /// that it is more than rounding.
    #[config(default = 1e-3)]
    pub divergence: f64,
    /// Changes of each layer.
    #[config(default = 8)]
    pub draws: usize,
    /// λ, as a multiple of the mean of F over the layer: how much more elements that F says nothing of are changed.
    #[config(default = 0.1)]
    pub damping: f64,
    /// Level of the intervals.
    #[config(default = 0.95)]
    pub level: f64,
    /// Seed of the changes.
    #[config(default = 0)]
    pub seed: u64,
}

impl CalibrationConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Argument`] for a number out of range.
    pub fn init(&self) -> Result<Calibration> {
        for (name, found) in [("divergence", self.divergence), ("damping", self.damping)] {
            let fits = found > 0.0 && found.is_finite();
            check_argument(fits, name, "finite and above 0", found)?;
        }
        check_argument(self.draws > 0, "draws", "above 0", 0.0)?;
        let fits = self.level > 0.0 && self.level < 1.0;
        check_argument(fits, "level", "between 0 and 1", self.level)?;
        Ok(Calibration {
            config: self.clone(),
        })
    }
}

/// Changes the weights of one layer by `δ ~ N(0, ε² / (F + λ))` and measures how far predictions diverge, beside what F foretells.
///
/// Measured is `KL(θ ‖ θ + δ)`, the mean over samples of their mean per active token; foretold is `½ Σ F δ²`. Elements of δ are
/// independent, so the terms between elements vanish in the mean over draws, and the ratio of both is 1 for the true Fisher in the
/// limit of small steps. What it is for the empirical one says how far its labels are from the model's predictions; the ratio of the
/// traces of both kinds says the same of their sum ([`fisher_metrics::kinds`]), this of sizes and directions together. It is of the
/// samples that are given, at these weights, and for steps of this size.
#[derive(Debug, Clone)]
pub struct Calibration {
    config: CalibrationConfig,
}

/// How well F foretold what changes of a layer do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerCalibration {
    /// The layer.
    pub layer: String,
    /// `½ Σ F δ²`, the mean over draws, in nats a token.
    pub foretold: f64,
    /// `KL(θ ‖ θ + δ)`, likewise.
    pub measured: f64,
    /// The mean over draws of measured by foretold; `None` where F is 0.
    pub ratio: Option<f64>,
    /// Its interval over draws, by Student's t; `None` for a single one. The samples are those that were given.
    pub interval: Option<[f64; 2]>,
}

/// How well F foretells what changes of each layer do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationReport {
    /// Version of this form.
    pub schema: u64,
    /// The task whose F it is.
    pub task: String,
    /// Which Fisher.
    pub kind: String,
    /// Draws of each layer.
    pub draws: usize,
    /// Samples whose predictions were compared.
    pub samples: usize,
    /// Every layer.
    pub layers: Vec<LayerCalibration>,
}

impl Calibration {
    /// Look at each layer. The model stays as it is. Takes a forward pass over `batches` for each layer and draw.
    ///
    /// # Errors
    /// [`Error::OtherModel`] when the statistics are not of `model`; [`Error::NoFisher`] naming a parameter without elementwise
    /// statistics; [`Error::NoPredictions`] when losses do not say what was predicted; [`fisher_core::Error::NoSamples`] without
    /// samples; [`Error::MovedLoss`] when predictions are no numbers.
    pub fn forward<M: SampleLoss>(
        &self,
        model: &M,
        statistics: &Statistics,
        task: &str,
        batches: &[M::Batch],
    ) -> Result<CalibrationReport> {
        check_model(model, statistics)?;
        let catalogue = Catalogue::of(model)?;
        let fisher = elementwise(statistics, task, &catalogue, Growth::Refuse)?;
        let before = predictions(model, batches)?;
        let samples: usize = before.iter().map(Predictions::len).sum();
        if samples == 0 {
            return Err(fisher_core::Error::NoSamples { task: task.into() }.into());
        }
        let weights = Weights::of(model)?;
        let mut layers = Vec::new();
        for (number, (layer, parameters)) in catalogue.layers().into_iter().enumerate() {
            let mut of_layer = Vec::new();
            for parameter in parameters {
                let path = parameter.path();
                let values = fisher.get(path).ok_or_else(|| Error::no_fisher(path))?;
                let values = fisher_core::read(values.fisher.clone())?;
                of_layer.push((parameter, values));
            }
            let elements: usize = of_layer.iter().map(|(_, fisher)| fisher.len()).sum();
            let trace: f64 = of_layer.iter().flat_map(|(_, fisher)| fisher).sum();
            let lambda = self.config.damping * trace / elements.max(1) as f64;
            // What F foretells of a change of variance 1 / (F + λ).
            let of_unit: f64 = of_layer
                .iter()
                .flat_map(|(_, fisher)| fisher.iter().map(|f| 0.5 * f / (f + lambda)))
                .sum();
            let (mut foretold, mut measured) = (Vec::new(), Vec::new());
            for draw in 0..self.config.draws {
                if trace <= 0.0 {
                    break;
                }
                let epsilon = (self.config.divergence / of_unit).sqrt();
                let seed = self.config.seed ^ ((number as u64) << 32 | draw as u64);
                let mut random = StdRng::seed_from_u64(seed);
                let mut moved = BTreeMap::new();
                let mut sum = 0.0;
                for (parameter, fisher) in &of_layer {
                    let old = weights.get(parameter.path(), fisher.len())?;
                    let new = old.iter().zip(fisher).map(|(weight, f)| {
                        let step = epsilon * normal(&mut random) / (f + lambda).sqrt();
                        sum += 0.5 * f * step * step;
                        weight + step
                    });
                    moved.insert(parameter.path().to_owned(), new.collect());
                }
                let moved = Weights::from(moved).write(model.clone())?;
                foretold.push(sum);
                measured.push(divergence(
                    &before,
                    &predictions(&moved, batches)?,
                    batches,
                )?);
            }
            layers.push(self.layer(layer, &foretold, &measured)?);
        }
        Ok(CalibrationReport {
            schema: SCHEMA,
            task: task.into(),
            kind: statistics.provenance().kind.to_string(),
            draws: self.config.draws,
            samples,
            layers,
        })
    }

    fn layer(&self, layer: String, foretold: &[f64], measured: &[f64]) -> Result<LayerCalibration> {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let ratios: Vec<f64> = measured.iter().zip(foretold).map(|(m, f)| m / f).collect();
        let ratio = (!ratios.is_empty()).then(|| mean(&ratios));
        let n = ratios.len() as f64;
        let interval = match ratio {
            Some(ratio) if ratios.len() > 1 => {
                let squares: f64 = ratios.iter().map(|x| (x - ratio).powi(2)).sum();
                let estimate = MeanEstimate {
                    mean: ratio,
                    units: ratios.len() as u64,
                    standard_error: Some((squares / (n - 1.0) / n).sqrt()),
                    effective: None,
                    skewness: None,
                };
                let interval = estimate.interval(self.config.level, IntervalMethod::StudentT)?;
                interval.map(|of| [of.lower, of.upper])
            }
            _ => None,
        };
        Ok(LayerCalibration {
            layer,
            foretold: mean(foretold),
            measured: mean(measured),
            ratio,
            interval,
        })
    }
}

fn predictions<M: SampleLoss>(model: &M, batches: &[M::Batch]) -> Result<Vec<Predictions>> {
    let model = deterministic(model, |_| false);
    let of = |batch: &M::Batch| model.sample_losses(batch).predictions();
    batches.iter().map(of).collect()
}

/// `KL(p ‖ q)`: the mean over samples of their mean over what is predicted.
fn divergence<B: SampleBatch>(p: &[Predictions], q: &[Predictions], batches: &[B]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for ((p, q), batch) in p.iter().zip(q).zip(batches) {
        for (index, divergence) in p.divergences(q).into_iter().enumerate() {
            if !divergence.is_finite() {
                let sample = batch.id(index).unwrap_or_else(|| format!("{index}"));
                return Err(Error::MovedLoss { sample });
            }
            sum += divergence;
            count += 1;
        }
    }
    Ok(sum / f64::from(count.max(1)))
}

impl fmt::Display for CalibrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "KL of predictions over ½ Σ F δ², {} Fisher of {}, {} draws, {} samples (1: F foretells it)",
            self.kind, self.task, self.draws, self.samples
        )?;
        for layer in &self.layers {
            let ratio = match (layer.ratio, layer.interval) {
                (Some(ratio), Some([lower, upper])) => {
                    format!("{ratio:.2} [{lower:.2}, {upper:.2}]")
                }
                (Some(ratio), None) => format!("{ratio:.2}"),
                _ => "no gradient".into(),
            };
            writeln!(f, "  {:<32} {ratio}", layer.layer)?;
        }
        Ok(())
    }
}
