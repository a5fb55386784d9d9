//! The gradient noise scale.

use std::collections::{BTreeMap, BTreeSet};

use burn::config::Config;
use burn::tensor::{DType, Tensor};
use fisher_core::{GradientBatch, Sample, accumulation_dtype};
use serde::{Deserialize, Serialize};

use crate::capture::read;
use crate::{Error, Result};

/// The loss of a sample that training averages over the samples of a batch.
///
/// The noise scale does not change when all losses are multiplied by one number, so a mean over all
/// tokens of a batch is near enough to [`SampleWeight::TokenSum`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleWeight {
    /// `L_i`: long samples weigh more, as where a batch's loss is the mean over all its tokens.
    #[default]
    TokenSum,
    /// `L_i / T_i`: every sample weighs the same, as where it is the mean of samples' means.
    TokenMean,
}

impl SampleWeight {
    fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::TokenSum => 1.0,
            Self::TokenMean => 1.0 / sample.tokens() as f64,
        }
    }
}

/// Configuration of [`GradientMoments`].
#[derive(Config, Debug)]
pub struct NoiseScaleConfig {
    /// The loss of a sample that training averages.
    #[config(default = "SampleWeight::TokenSum")]
    pub weight: SampleWeight,
    /// Groups of samples for the error: each is as large as the model.
    #[config(default = 8)]
    pub blocks: usize,
}

impl NoiseScaleConfig {
    /// An accumulator that has seen nothing.
    ///
    /// # Errors
    /// [`fisher_core::Error::Argument`] for fewer than two blocks.
    pub fn init(&self) -> Result<GradientMoments> {
        if self.blocks < 2 {
            return Err(Error::Core(fisher_core::Error::Argument {
                name: "blocks",
                expected: "at least 2",
                found: self.blocks.to_string(),
            }));
        }
        Ok(GradientMoments {
            weight: self.weight,
            seen: 0,
            blocks: vec![Block::default(); self.blocks],
        })
    }
}

/// Sums of gradients and of their squared norms over samples, in a few blocks.
#[derive(Debug, Clone)]
pub struct GradientMoments {
    weight: SampleWeight,
    seen: usize,
    blocks: Vec<Block>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    count: usize,
    /// `Σ g_i` by parameter.
    sums: BTreeMap<String, Tensor<1>>,
    /// `Σ |g_i|²`, one term a parameter and batch: read once, at the end.
    squares: Vec<Tensor<1>>,
}

/// An estimate and its standard error, where that is defined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Its standard error.
    pub standard_error: Option<f64>,
}

/// The simple noise scale `B = tr Σ / |G|²` (McCandlish et al. 2018, "An empirical model of
/// large-batch training", equation 2.9): the batch size, in samples, at which noise and signal in
/// the mean gradient are equal.
///
/// `G` is the expected gradient of a sample's loss ([`SampleWeight`]), `Σ` its covariance over
/// samples. Both are estimated without bias from `n` samples (their appendix A.1, with batches of 1
/// and `n`): with `S = (1/n) Σ |g_i|²` and the mean gradient `ḡ`,
/// `tr Σ = n (S − |ḡ|²) / (n − 1)` and `|G|² = |ḡ|² − tr Σ / n`. Their ratio is not unbiased; it is
/// consistent.
///
/// Standard errors are of the jackknife that leaves out one block of samples at a time:
/// `√((K − 1)/K Σ_k (x_k − x̄)²)`. With few blocks they are themselves rough.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NoiseScale {
    /// `n`.
    pub samples: usize,
    /// `tr Σ`.
    pub covariance_trace: Estimate,
    /// `|G|²`. Below 0 where noise drowns it.
    pub squared_gradient: Estimate,
    /// `B`; `None` where `|G|²` is not above 0: more samples are needed than there were. Its error
    /// is `None` where that happens without one of the blocks.
    pub scale: Option<Estimate>,
}

impl GradientMoments {
    /// Take in a batch of samples.
    pub fn push(&mut self, batch: &GradientBatch) {
        for (path, gradient) in batch.iter() {
            self.take(batch.samples(), path, gradient.tensor().clone());
        }
        self.count(batch.samples());
    }

    /// Take in one parameter of a batch, `[samples, elements]`.
    pub(crate) fn take(&mut self, samples: &[Sample], path: &str, gradient: Tensor<2>) {
        let (device, dtype) = (gradient.device(), accumulation_dtype(&gradient.device()));
        let (of_blocks, n) = (self.blocks.len(), samples.len());
        let weights: Vec<f64> = samples.iter().map(|s| self.weight.of(s)).collect();
        let float = match gradient.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let column = Tensor::<1>::from_data(&*weights, (&device, float)).reshape([n, 1]);
        let weighted = gradient.cast(float) * column;
        let squares = weighted
            .clone()
            .square()
            .sum_dim(1)
            .reshape([n])
            .cast(dtype);
        // Sample by sample, or all at once: a matrix says which sample is in which block.
        for (k, block) in self.blocks.iter_mut().enumerate() {
            let chosen = (0..n).map(|i| f64::from((self.seen + i) % of_blocks == k));
            let chosen: Vec<f64> = chosen.collect();
            if chosen.iter().all(|&one| one == 0.0) {
                continue;
            }
            let row = Tensor::<1>::from_data(&*chosen, (&device, float));
            let sum = match n {
                1 => weighted.clone().flatten(0, 1),
                _ => row
                    .clone()
                    .reshape([1, n])
                    .matmul(weighted.clone())
                    .flatten(0, 1),
            };
            let sum = sum.cast(dtype);
            block
                .squares
                .push((squares.clone() * row.cast(dtype)).sum());
            match block.sums.get_mut(path) {
                Some(before) => before.inplace(|before| before + sum),
                None => {
                    block.sums.insert(path.to_owned(), sum);
                }
            }
        }
    }

    /// Count samples whose every parameter was taken in.
    pub(crate) fn count(&mut self, samples: &[Sample]) {
        let of_blocks = self.blocks.len();
        for _ in samples {
            self.blocks[self.seen % of_blocks].count += 1;
            self.seen += 1;
        }
    }

    /// Take in what another accumulator of as many blocks has seen: other samples of the same model.
    ///
    /// # Errors
    /// [`fisher_core::Error::Incompatible`] when weight or blocks differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let describe = |m: &Self| format!("{:?} in {} blocks", m.weight, m.blocks.len());
        let (ours, theirs) = (describe(self), describe(other));
        if ours != theirs {
            return Err(Error::Core(fisher_core::Error::Incompatible {
                what: "the noise scale".into(),
                ours,
                theirs,
            }));
        }
        self.seen += other.seen;
        for (block, theirs) in self.blocks.iter_mut().zip(&other.blocks) {
            block.count += theirs.count;
            block.squares.extend(theirs.squares.iter().cloned());
            for (path, sum) in &theirs.sums {
                match block.sums.get_mut(path) {
                    Some(before) => before.inplace(|before| before + sum.clone()),
                    None => {
                        block.sums.insert(path.clone(), sum.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// The noise scale; `None` for fewer than two samples.
    ///
    /// # Errors
    /// [`fisher_core::Error::Device`] when the device does not give the sums.
    pub fn read(&self) -> Result<Option<NoiseScale>> {
        let blocks: Vec<&Block> = self.blocks.iter().filter(|block| block.count > 0).collect();
        let squares = blocks.iter().map(|block| read_sum(&block.squares));
        let squares: Vec<f64> = squares.collect::<Result<_>>()?;
        let products = products(&blocks)?;
        let (n, k) = (self.seen, blocks.len());
        let all: f64 = products.iter().flatten().sum();
        let square: f64 = squares.iter().sum();
        let Some(whole) = Moments::of(n, square, all) else {
            return Ok(None);
        };
        let without = (0..k).map(|left| {
            let row: f64 = products[left].iter().sum();
            let sum = all - 2.0 * row + products[left][left];
            Moments::of(n - blocks[left].count, square - squares[left], sum)
        });
        let without: Option<Vec<Moments>> = without.collect();
        let error = |of: fn(&Moments) -> Option<f64>| {
            let values: Option<Vec<f64>> = without.as_ref()?.iter().map(of).collect();
            jackknife(&values?)
        };
        let estimate = |value, of| Estimate {
            value,
            standard_error: error(of),
        };
        Ok(Some(NoiseScale {
            samples: n,
            covariance_trace: estimate(whole.trace, |m| Some(m.trace)),
            squared_gradient: estimate(whole.squared, |m| Some(m.squared)),
            scale: whole.scale().map(|scale| estimate(scale, Moments::scale)),
        }))
    }
}

/// `tr Σ` and `|G|²`.
struct Moments {
    trace: f64,
    squared: f64,
}

impl Moments {
    /// From `n`, `Σ |g_i|²` and `|Σ g_i|²`.
    fn of(n: usize, squares: f64, sum_squared: f64) -> Option<Self> {
        let n = (n > 1).then_some(n as f64)?;
        let mean = sum_squared / (n * n);
        let trace = n / (n - 1.0) * (squares / n - mean);
        Some(Self {
            trace,
            squared: mean - trace / n,
        })
    }

    fn scale(&self) -> Option<f64> {
        (self.squared > 0.0).then(|| self.trace / self.squared)
    }
}

fn jackknife(values: &[f64]) -> Option<f64> {
    let k = values.len() as f64;
    let mean = values.iter().sum::<f64>() / k;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (values.len() > 1).then(|| ((k - 1.0) / k * squares).sqrt())
}

fn read_sum(terms: &[Tensor<1>]) -> Result<f64> {
    match terms.is_empty() {
        true => Ok(0.0),
        false => Ok(read(Tensor::cat(terms.to_vec(), 0))?.iter().sum()),
    }
}

/// `⟨Σ_k g, Σ_l g⟩` of every two blocks.
fn products(blocks: &[&Block]) -> Result<Vec<Vec<f64>>> {
    let k = blocks.len();
    let mut sum: Option<Tensor<2>> = None;
    let paths: BTreeSet<&String> = blocks.iter().flat_map(|block| block.sums.keys()).collect();
    for path in paths {
        let of_path: Vec<Option<&Tensor<1>>> = blocks.iter().map(|b| b.sums.get(path)).collect();
        let Some(like) = of_path.iter().flatten().next() else {
            continue;
        };
        // A block whose samples do not reach the parameter has zeros.
        let rows = of_path.iter().map(|row| match row {
            Some(row) => (*row).clone(),
            None => like.zeros_like(),
        });
        let matrix: Tensor<2> = Tensor::stack(rows.collect(), 0);
        let product = matrix.clone().matmul(matrix.transpose());
        sum = Some(match sum {
            Some(before) => before + product,
            None => product,
        });
    }
    let values = match sum {
        Some(sum) => read(sum.reshape([k * k]))?,
        None => vec![0.0; k * k],
    };
    Ok(values.chunks(k.max(1)).map(<[f64]>::to_vec).collect())
}
