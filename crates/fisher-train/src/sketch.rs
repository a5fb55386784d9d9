//! The diagonal of the Fisher from batch gradients with random signs.

use std::collections::BTreeMap;

use burn::config::Config;
use burn::tensor::{DType, Tensor};
use fisher_core::gradient::ContributionUnit;
use fisher_core::kind::FisherKind;
use fisher_core::model::{Catalogue, Parameter};
use fisher_core::moments::{Welford, accumulation_dtype};
use fisher_core::read;
use fisher_core::{Error as CoreError, check_argument};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::batch::{SampleBatch, SampleLoss, ids};
use crate::capture::{Alone, EVERY, PerSample, Watch};
use crate::error::{Error, Result};
use crate::gradients::{Rounding, Together, is_ragged};

/// Configuration of a [`Sketch`].
#[derive(Config, Debug)]
pub struct SketchConfig {
    /// Forward and backward passes for each batch: the variance falls as one over them.
    #[config(default = 1)]
    pub draws: usize,
    /// Seed of the signs.
    #[config(default = 0)]
    pub seed: u64,
}

impl SketchConfig {
    /// A sketch engine.
    ///
    /// # Errors
    /// [`CoreError::Argument`] for 0 draws.
    pub fn init(&self) -> Result<Sketch> {
        check_argument(self.draws > 0, "draws", "at least 1", self.draws)?;
        Ok(Sketch {
            config: self.clone(),
        })
    }
}

/// Estimates the mean contribution `F` of any model, as it is, for the price of a training step a
/// draw: neither trace nor loop.
///
/// Every sample's loss gets a random sign `s_i = ±1`. The square of the batch's gradient is then an
/// unbiased estimate of the sum of squares, since mixed terms are 0 on average:
/// `E (Σ_i s_i h_i)² = Σ_i h_i²`, with `h_i² = C_i`. Its variance is `2((Σ_i h_i²)² − Σ_i h_i⁴)`, so one
/// draw of a large batch has a relative standard error of about √2 for every element; draws and
/// batches average it down, and so do sums over groups. There is no variance over samples: for
/// error bars of the Fisher itself use the other engines. (Hutchinson's estimator of a diagonal;
/// Bekas, Kokiopoulou & Saad 2007.)
#[derive(Debug, Clone)]
pub struct Sketch {
    config: SketchConfig,
}

/// What a [`Sketch`] estimates.
#[derive(Debug, Clone)]
pub struct SketchedFisher {
    samples: usize,
    /// Of the first batch, and so of all.
    kind: Option<FisherKind>,
    draws: usize,
    /// Over batches and draws, of `v = (Σ_i s_i h_i)²`.
    parameters: BTreeMap<String, Welford>,
}

impl Sketch {
    /// Estimate the Fisher of all trainable parameters from batches of samples.
    ///
    /// Dropout, noise and batch statistics are off, as for the other engines.
    ///
    /// # Errors
    /// [`Error::NoBatches`], [`CoreError::NoActiveTokens`] for a sample without labels,
    /// [`CoreError::NonFinite`] for a loss or gradient that is NaN or infinite (of the batch's first
    /// sample where no loss is), [`Error::NoGraph`], [`Error::BatchLosses`], [`Error::Label`] for a label
    /// that is no class, [`Error::LossKind`] when the labels of some batches were drawn and others
    /// were not; [`Error::LossesDisagree`] and [`Error::TokensDisagree`] where a sample has another loss in
    /// its batch than alone, which is looked for in one sample of the first batch and in one of every 32.
    pub fn collect<M: SampleLoss, C: ContributionUnit>(
        &self,
        model: &M,
        batches: impl IntoIterator<Item = M::Batch>,
    ) -> Result<SketchedFisher> {
        let catalogue = Catalogue::of(model)?;
        let paths = catalogue.parameters().iter().map(Parameter::path);
        let ready = PerSample::new(model, paths)?;
        let mut alone = Alone::new(model);
        let mut watch = Watch::default();
        let mut signs = ChaCha8Rng::seed_from_u64(self.config.seed);
        let mut fisher = SketchedFisher {
            samples: 0,
            kind: None,
            draws: self.config.draws,
            parameters: BTreeMap::new(),
        };
        for batch in batches {
            let samples = batch.len();
            for draw in 0..self.config.draws {
                let together = self.draw::<M, C>(&ready, &batch, &mut signs, &mut fisher)?;
                let shape = (samples, is_ragged(&together.tokens));
                let mut looks = || watch.is_new(shape) || watch.is_due(samples, EVERY);
                if draw == 0 && samples > 0 && looks() {
                    alone.compare(&batch, watch.shortest(&together.tokens), &together)?;
                }
            }
            fisher.samples += samples;
        }
        match fisher.samples {
            0 => Err(Error::NoBatches),
            _ => Ok(fisher),
        }
    }

    fn draw<M: SampleLoss, C: ContributionUnit>(
        &self,
        ready: &PerSample<M>,
        batch: &M::Batch,
        signs: &mut ChaCha8Rng,
        fisher: &mut SketchedFisher,
    ) -> Result<Together> {
        let ids = ids(batch, fisher.samples);
        let losses = ready.model().sample_losses(batch);
        let expected = *fisher.kind.get_or_insert(losses.kind());
        if expected != losses.kind() {
            let found = losses.kind();
            return Err(Error::LossKind { expected, found });
        }
        let mut weights = Vec::new();
        for sample in losses.samples(&ids)? {
            let sign = if signs.random::<bool>() { 1.0 } else { -1.0 };
            weights.push((sign * C::root(sample.tokens())) as f32);
        }
        let sums = losses.sums().clone();
        let weights = Tensor::<1>::from_floats(weights.as_slice(), &sums.device());
        let loss = (sums.clone() * weights.cast(sums.dtype())).sum();
        if !loss.is_tracked() {
            return Err(Error::NoGraph {
                sample: ids.into_iter().next().unwrap_or_default(),
            });
        }
        let (mut found, unreached) = ready.take(loss.backward(), |gradient| {
            let dtype = accumulation_dtype(&gradient.device());
            gradient.cast(dtype)
        });
        found.extend(unreached.into_iter().map(|(path, (elements, device))| {
            let dtype = accumulation_dtype(&device);
            (path, Tensor::zeros([1, elements], (&device, dtype)))
        }));
        let rounding = Rounding::of([sums.dtype()]);
        let mut probes = vec![sums.inner().cast(DType::F32)];
        let sum = |gradient: &Tensor<2>| gradient.clone().cast(DType::F32).sum();
        probes.extend(found.values().map(sum));
        let probes = read(Tensor::cat(probes, 0))?;
        if let Some(at) = probes.iter().position(|probe| !probe.is_finite()) {
            let parameter = at
                .checked_sub(ids.len())
                .and_then(|at| found.keys().nth(at));
            return Err(Error::Core(CoreError::NonFinite {
                sample: ids.get(at).or(ids.first()).cloned().unwrap_or_default(),
                parameter: parameter.cloned().unwrap_or_else(|| "loss".into()),
            }));
        }
        for (path, gradient) in found {
            let [_, elements] = gradient.dims();
            let device = gradient.device();
            let welford = fisher.parameters.entry(path);
            let welford = welford.or_insert_with(|| Welford::new(elements, &device));
            welford.push(gradient.flatten(0, 1).square());
        }
        Ok(Together {
            losses: probes[..ids.len()].to_vec(),
            tokens: losses.tokens()?,
            rounding,
        })
    }
}

impl SketchedFisher {
    /// The number of samples, `n`.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Which Fisher it is.
    pub fn kind(&self) -> FisherKind {
        self.kind.unwrap_or_default()
    }

    /// Paths of the parameters.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.parameters.keys().map(String::as_str)
    }

    /// The estimate of `F = (1/n) Σ_i C_i`, `[elements]`.
    ///
    /// # Errors
    /// [`CoreError::UnknownParameter`].
    pub fn fisher(&self, path: &str) -> Result<Tensor<1>> {
        let (welford, mean) = self.mean(path)?;
        let rounds = welford.count() as f64;
        Ok(mean.mul_scalar(rounds / self.divisor()))
    }

    /// A standard error of the estimate about the `F` of these very samples, `[elements]`.
    ///
    /// From above: the variance of a draw is at most two thirds of the mean of its square. It is an
    /// estimate itself, of the same draws: after a single one, two standard errors about it hold `F`
    /// but 54 % of the time. Trust it after some tens of draws and batches together.
    ///
    /// # Errors
    /// [`CoreError::UnknownParameter`].
    pub fn standard_error(&self, path: &str) -> Result<Tensor<1>> {
        let (welford, mean) = self.mean(path)?;
        let rounds = welford.count() as f64;
        let mut squares = mean.square().mul_scalar(rounds);
        if let Some(variance) = welford.variance() {
            squares = squares + variance.mul_scalar(rounds - 1.0);
        }
        Ok(squares
            .mul_scalar(2.0 / 3.0)
            .sqrt()
            .div_scalar(self.divisor()))
    }

    fn divisor(&self) -> f64 {
        (self.samples * self.draws) as f64
    }

    fn mean(&self, path: &str) -> Result<(&Welford, Tensor<1>)> {
        let found = self.parameters.get(path);
        let found = found.and_then(|welford| Some((welford, welford.mean()?)));
        Ok(found.ok_or_else(|| CoreError::UnknownParameter {
            parameter: path.into(),
            known: self.paths().collect::<Vec<_>>().join(", "),
        })?)
    }
}
