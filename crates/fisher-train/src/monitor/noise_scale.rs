//! The gradient noise scale.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use burn::config::Config;
use burn::tensor::Tensor;
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient, unit_rows};
use fisher_core::moments::accumulation_dtype;
use fisher_core::read;
use fisher_core::sample::Sample;
use fisher_core::squares::{SquaredNorms, squared_norms};
use fisher_core::{Error as CoreError, check_argument, pieces};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::error::{Error, Result};

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
    /// Groups of samples for the error: a sum of gradients each, as large as the model (in float32
    /// where gradients are half precision), of every task. Samples of a cluster are of one block.
    #[config(default = 8)]
    pub blocks: usize,
}

impl NoiseScaleConfig {
    /// An accumulator that has seen nothing.
    ///
    /// # Errors
    /// [`fisher_core::Error::Argument`] for fewer than two blocks.
    pub fn init(&self) -> Result<GradientMoments> {
        check_argument(self.blocks >= 2, "blocks", "at least 2", self.blocks)?;
        Ok(GradientMoments {
            weight: self.weight,
            units: 0,
            clusters: HashMap::new(),
            blocks: vec![Block::default(); self.blocks],
            pending: None,
            squares: None,
        })
    }
}

/// Sums of gradients and of their squared norms over samples, in a few blocks: a [`GradientSink`] for the samples of
/// one task.
///
/// No product is multiplied out: not more is held than the sums of the blocks, and the gradients of a batch in the form
/// in which they came until it is committed.
#[derive(Debug, Clone)]
pub struct GradientMoments {
    weight: SampleWeight,
    /// Clusters that were seen, a sample without one being one of its own: they go to the blocks in turn.
    units: usize,
    /// The block of every cluster that has a name.
    clusters: HashMap<String, usize>,
    blocks: Vec<Block>,
    /// The batch that was begun, and `|g_i|²` of its samples once they are known.
    pending: Option<GradientBatch>,
    squares: Option<Vec<f64>>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    count: usize,
    /// `Σ g_i` by parameter.
    sums: BTreeMap<String, Tensor<1>>,
    /// `Σ |g_i|²`
    squares: f64,
}

/// An estimate and its standard error, where that is defined. Both are finite.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NoiseEstimate {
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
/// `tr Σ = n (S − |ḡ|²) / (n − 1)` and `|G|² = |ḡ|² − tr Σ / n`.
///
/// What is estimated is the inverse, `r = |G|² / tr Σ`: it is always a number, where the estimate of `B` is none or
/// anything as soon as noise drowns the gradient. `B` is given as the inverse of `r`'s interval.
///
/// Standard errors are of the jackknife that leaves out one block of samples at a time, clusters whole:
/// `√((K − 1)/K Σ_k a_k²)`, with `a_k = r_k − r̄`. With few blocks they are themselves rough.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NoiseScale {
    /// `n`.
    pub samples: usize,
    /// `tr Σ`. Never below 0: of equal gradients it is 0, and rounding that leaves less is cut off.
    pub covariance_trace: NoiseEstimate,
    /// `|G|²`. Below 0 where noise drowns it.
    pub squared_gradient: NoiseEstimate,
    /// `r = |G|² / tr Σ`, signal over noise of one sample's gradient; below 0 where noise drowns the signal. `None` where
    /// there is no noise.
    pub signal: Option<NoiseEstimate>,
    /// 95 % for `B`; `None` where `r` or its error is, as from so few samples that a block holds them all.
    pub interval: Option<NoiseInterval>,
    /// `B = 1/r` and its error by the delta method, only where the ends of the interval are within a factor of 2. To
    /// average or plot these alone would pick what came out well: use [`NoiseScale::signal`] and
    /// [`NoiseScale::interval`]. ± 1.96 errors held `B` in 88-90 % of simulated cases where tails are light; where
    /// they are heavy it was given in less than a fifth of them, and held it in less than half of those.
    pub scale: Option<NoiseEstimate>,
}

/// An interval of the noise scale, in samples: the inverse of `r ± t · se`, the upper end from `r` or 0 if that is larger.
///
/// Student's `t` has `ν = max(1, n_eff − 1)` degrees of freedom, `n_eff = (Σ a_k²)² / Σ a_k⁴` the blocks that make the error:
/// `K − 1` degrees hold the truth in 83-90 % of cases where gradients have heavy tails, these in 93-100 %, and are wider by half where
/// tails are light.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NoiseInterval {
    /// The lower end.
    pub at_least: f64,
    /// The upper end; `None` where the gradient cannot be told from 0, so that there is none.
    pub at_most: Option<f64>,
}

impl fmt::Display for NoiseInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at_most {
            Some(at_most) => write!(f, "{:.0} to {at_most:.0}", self.at_least),
            None => write!(f, "at least {:.0}", self.at_least),
        }
    }
}

impl GradientSink for GradientMoments {
    fn wants(&self, _path: &str) -> bool {
        true
    }

    fn begin(&mut self, _task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        self.pending = Some(GradientBatch::new(samples.to_vec()));
        self.squares = None;
        Ok(())
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        let pending = self.pending.as_mut().ok_or(CoreError::NoBatch)?;
        if pending.get(path).is_some() {
            return Err(CoreError::ParameterTwice {
                parameter: path.into(),
            });
        }
        if !matches!(gradient, SampleGradient::Zero { .. }) {
            pending.insert(path, gradient);
        }
        Ok(())
    }

    /// # Errors
    /// [`fisher_core::Error::NonFinite`] for a gradient that is NaN or infinite,
    /// [`fisher_core::Error::Device`].
    fn prepare(&mut self) -> fisher_core::Result<()> {
        let batch = self.pending.take().ok_or(CoreError::NoBatch)?;
        if self.squares.is_none() {
            let norms = batch.iter();
            let norms = norms.map(|(path, gradient)| (path, squared_norms(gradient)));
            self.squares = Some(self.squares_of(batch.samples(), &norms.collect())?);
        }
        self.pending = Some(batch);
        Ok(())
    }

    fn forget(&mut self) {
        self.pending = None;
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        self.prepare()?;
        let pending = self.pending.take().zip(self.squares.take());
        let (batch, squares) = pending.ok_or(CoreError::NoBatch)?;
        let samples = batch.samples().to_vec();
        let blocks: Vec<usize> = samples.iter().map(|sample| self.block_of(sample)).collect();
        for (path, gradient) in batch {
            self.add(&samples, &blocks, &path, &gradient);
        }
        self.count(&blocks, &squares);
        Ok(())
    }
}

impl GradientMoments {
    /// The block of a sample: that of its cluster, or the next.
    fn block_of(&mut self, sample: &Sample) -> usize {
        let known = sample.cluster().and_then(|name| self.clusters.get(name));
        if let Some(block) = known {
            return *block;
        }
        let block = self.units % self.blocks.len();
        self.units += 1;
        if let Some(name) = sample.cluster() {
            self.clusters.insert(name.to_owned(), block);
        }
        block
    }

    fn add(&mut self, samples: &[Sample], of: &[usize], path: &str, gradient: &SampleGradient) {
        for (k, block) in self.blocks.iter_mut().enumerate() {
            let chosen = (0..samples.len()).filter(|i| of[*i] == k);
            let chosen: Vec<usize> = chosen.collect();
            if chosen.is_empty() {
                continue;
            }
            let weights = chosen.iter().map(|&i| self.weight.of(&samples[i]));
            let weights: Vec<f64> = weights.collect();
            let before = block.sums.remove(path);
            let sum = gradient.add_to(before, &chosen, &weights);
            block.sums.insert(path.to_owned(), sum);
        }
    }

    /// `|g_i|²` of every sample, in one transfer.
    fn squares_of(
        &self,
        samples: &[Sample],
        norms: &BTreeMap<&str, SquaredNorms>,
    ) -> fisher_core::Result<Vec<f64>> {
        let mut squares = vec![0.0; samples.len()];
        if norms.is_empty() || samples.is_empty() {
            return Ok(squares);
        }
        let columns = norms.values().flat_map(|of| {
            let dtype = of.squares.dtype();
            let scales = of.scales.iter().map(move |scale| scale.clone().cast(dtype));
            std::iter::once(of.squares.clone()).chain(scales)
        });
        let values = read(Tensor::cat(columns.collect(), 0))?;
        for (path, of_path) in norms.keys().zip(values.chunks_exact(3 * samples.len())) {
            for (i, sum) in squares.iter_mut().enumerate() {
                let column = |at: usize| of_path[at * samples.len() + i];
                let root = column(1) * column(2) * self.weight.of(&samples[i]);
                *sum += column(0) * root * root;
                if !sum.is_finite() {
                    return Err(CoreError::NonFinite {
                        sample: samples[i].id().into(),
                        parameter: (*path).to_owned(),
                    });
                }
            }
        }
        Ok(squares)
    }

    fn count(&mut self, blocks: &[usize], squares: &[f64]) {
        for (block, square) in blocks.iter().zip(squares) {
            let block = &mut self.blocks[*block];
            block.count += 1;
            block.squares += square;
        }
    }

    /// Take in what another accumulator of as many blocks has seen: other samples of the same model. A cluster that
    /// both have seen may be in two blocks then.
    ///
    /// # Errors
    /// [`fisher_core::Error::Incompatible`] when weight or blocks differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.alike(other)?;
        self.units += other.units;
        for (name, block) in &other.clusters {
            self.clusters.entry(name.clone()).or_insert(*block);
        }
        for (block, theirs) in self.blocks.iter_mut().zip(&other.blocks) {
            block.count += theirs.count;
            block.squares += theirs.squares;
            for (path, sum) in &theirs.sums {
                let sum = match block.sums.remove(path) {
                    Some(before) => before + sum.clone(),
                    None => sum.clone(),
                };
                block.sums.insert(path.clone(), sum);
            }
        }
        Ok(())
    }

    fn alike(&self, other: &Self) -> Result<()> {
        let describe = |m: &Self| format!("{:?} in {} blocks", m.weight, m.blocks.len());
        let (ours, theirs) = (describe(self), describe(other));
        if ours == theirs {
            return Ok(());
        }
        Err(Error::Core(CoreError::Incompatible {
            what: "the noise scale".into(),
            ours,
            theirs,
        }))
    }

    /// The noise scale; `None` for fewer than two samples.
    ///
    /// # Errors
    /// [`fisher_core::Error::Device`] when the device does not give the sums.
    pub fn read(&self) -> Result<Option<NoiseScale>> {
        Self::pooled(&[self])
    }

    /// The noise scale over the samples of all these together, as if they had been merged.
    pub(crate) fn pooled(all: &[&Self]) -> Result<Option<NoiseScale>> {
        let Some((first, others)) = all.split_first() else {
            return Ok(None);
        };
        others.iter().try_for_each(|other| first.alike(other))?;
        let blocks = (0..first.blocks.len()).map(|k| all.iter().map(|m| &m.blocks[k]).collect());
        let blocks: Vec<Vec<&Block>> = blocks.collect();
        let count = |block: &Vec<&Block>| block.iter().map(|b| b.count).sum::<usize>();
        let blocks: Vec<Vec<&Block>> = blocks.into_iter().filter(|b| count(b) > 0).collect();
        let counts: Vec<usize> = blocks.iter().map(count).collect();
        let squares = blocks
            .iter()
            .map(|block| block.iter().map(|b| b.squares).sum());
        let squares: Vec<f64> = squares.collect();
        Ok(estimate(&counts, &squares, &products(&blocks)?))
    }
}

/// From the number of samples, `Σ |g_i|²` and `⟨Σ_k g, Σ_l g⟩` of blocks.
fn estimate(counts: &[usize], squares: &[f64], products: &[Vec<f64>]) -> Option<NoiseScale> {
    let n: usize = counts.iter().sum();
    let square: f64 = squares.iter().sum();
    let all: f64 = products.iter().flatten().sum();
    let whole = Moments::of(n, square, all)?;
    let without = (0..counts.len()).map(|left| {
        let row: f64 = products[left].iter().sum();
        let sum = all - 2.0 * row + products[left][left];
        Moments::of(n - counts[left], square - squares[left], sum)
    });
    let without: Option<Vec<Moments>> = without.collect();
    let jackknife = |of: fn(&Moments) -> Option<f64>| {
        let values: Option<Vec<f64>> = without.as_ref()?.iter().map(of).collect();
        Jackknife::of(&values?)
    };
    let estimate = |value, jackknife: Option<Jackknife>| NoiseEstimate {
        value,
        standard_error: jackknife.map(|of| of.error),
    };
    let of_signal = jackknife(Moments::signal);
    let signal = whole.signal().map(|signal| estimate(signal, of_signal));
    let known = whole.signal().zip(of_signal);
    let interval = known.and_then(|(signal, of)| of.interval(signal));
    let narrow = interval.and_then(|of| Some(of.at_most? <= NARROW * of.at_least));
    let scale = known.filter(|_| narrow == Some(true));
    let scale = scale.map(|(signal, of)| NoiseEstimate {
        value: signal.recip(),
        standard_error: Some(of.error / signal.powi(2)),
    });
    Some(NoiseScale {
        samples: n,
        covariance_trace: estimate(whole.trace, jackknife(|m| Some(m.trace))),
        squared_gradient: estimate(whole.squared, jackknife(|m| Some(m.squared))),
        signal,
        interval,
        scale,
    })
}

/// How far apart the ends of an interval may be where its middle is told.
const NARROW: f64 = 2.0;
const LEVEL: f64 = 0.95;

/// A standard error by leaving out blocks, and the blocks that make it.
#[derive(Debug, Clone, Copy)]
struct Jackknife {
    error: f64,
    degrees: f64,
}

impl Jackknife {
    /// From the estimates without each block; `None` for fewer than two.
    fn of(values: &[f64]) -> Option<Self> {
        let k = values.len() as f64;
        let mean = values.iter().sum::<f64>() / k;
        // Of one size, so that fourth powers stay in range.
        let largest = values.iter().fold(0.0, |m: f64, x| m.max((x - mean).abs()));
        let off = |x: &f64| {
            if largest > 0.0 {
                (x - mean) / largest
            } else {
                0.0
            }
        };
        let squares: f64 = values.iter().map(|x| off(x).powi(2)).sum();
        let fourths: f64 = values.iter().map(|x| off(x).powi(4)).sum();
        let error = ((k - 1.0) / k * squares).sqrt() * largest;
        let effective = if fourths > 0.0 {
            squares * squares / fourths
        } else {
            k
        };
        let degrees = (effective - 1.0).clamp(1.0, (k - 1.0).max(1.0));
        (values.len() > 1 && error.is_finite()).then_some(Self { error, degrees })
    }

    fn interval(self, signal: f64) -> Option<NoiseInterval> {
        let t = StudentsT::new(0.0, 1.0, self.degrees).ok()?;
        let half = t.inverse_cdf(0.5 + LEVEL / 2.0) * self.error;
        let at_least = (signal.max(0.0) + half).recip();
        let at_most = (signal - half > 0.0).then(|| (signal - half).recip());
        let at_most = at_most.filter(|at_most| at_most.is_finite());
        at_least
            .is_finite()
            .then_some(NoiseInterval { at_least, at_most })
    }
}

/// `tr Σ` and `|G|²`, finite.
struct Moments {
    trace: f64,
    squared: f64,
}

impl Moments {
    /// From `n`, `Σ |g_i|²` and `|Σ g_i|²`; `None` for fewer than two samples, or beyond float64.
    fn of(n: usize, squares: f64, sum_squared: f64) -> Option<Self> {
        let n = (n > 1).then_some(n as f64)?;
        let mean = sum_squared / (n * n);
        let trace = n / (n - 1.0) * (squares / n - mean);
        let finite = trace.is_finite() && mean.is_finite();
        finite.then(|| {
            let trace = trace.max(0.0);
            let squared = mean - trace / n;
            Self { trace, squared }
        })
    }

    fn signal(&self) -> Option<f64> {
        let signal = (self.trace > 0.0).then(|| self.squared / self.trace);
        signal.filter(|signal| signal.is_finite())
    }
}

/// Elements of a parameter that are multiplied at a time.
const RUN: usize = 1 << 18;

/// `⟨Σ_k g, Σ_l g⟩` of every two blocks, each of which comes in parts that are added up.
fn products(blocks: &[Vec<&Block>]) -> Result<Vec<Vec<f64>>> {
    let k = blocks.len();
    let mut sums = vec![vec![0.0; k]; k];
    let all = || blocks.iter().flatten();
    let paths: BTreeSet<&String> = all().flat_map(|block| block.sums.keys()).collect();
    for path in paths {
        let Some(like) = all().find_map(|block| block.sums.get(path)) else {
            continue;
        };
        let [elements] = like.dims();
        let dtype = accumulation_dtype(&like.device());
        let mut parts: Vec<Tensor<1>> = Vec::new();
        for piece in pieces(elements, RUN) {
            let cut = |sum: &Tensor<1>| sum.clone().narrow(0, piece.start, piece.len());
            // A block whose samples do not reach the parameter has zeros.
            let rows = blocks.iter().map(|block| {
                let sums = block.iter().filter_map(|part| part.sums.get(path)).map(cut);
                let sum = sums.reduce(|sum, part| sum + part);
                sum.unwrap_or_else(|| cut(like).zeros_like())
            });
            let (unit, scales) = unit_rows(Tensor::stack(rows.collect(), 0));
            let unit = unit.cast(dtype);
            let product = unit.clone().matmul(unit.transpose());
            parts.extend([product.flatten(0, 1), scales.flatten(0, 1).cast(dtype)]);
        }
        // Multiplied out here: a device without float64 has not the range.
        for part in read(Tensor::cat(parts, 0))?.chunks_exact(k * k + k) {
            let (product, scales) = part.split_at(k * k);
            let rows = sums.iter_mut().zip(product.chunks_exact(k)).zip(scales);
            for ((row, of_row), x) in rows {
                for ((sum, product), y) in row.iter_mut().zip(of_row).zip(scales) {
                    *sum += product * x * y;
                }
            }
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of a report are finite or absent, whatever the sums are.
    #[test]
    fn what_is_no_number_is_absent() {
        // No noise but what rounding leaves, and less than none.
        let noise = estimate(
            &[1, 1],
            &[1.0, 1.0],
            &[vec![1.0, 1.0], vec![1.0, 1.0 + 1e-9]],
        );
        let noise = noise.expect("two samples");
        assert_eq!(noise.covariance_trace.value, 0.0);
        assert_eq!(
            (noise.signal, noise.interval, noise.scale),
            (None, None, None)
        );
        // Noise so small that the ratio is beyond float64.
        let noise = Moments {
            trace: f64::MIN_POSITIVE,
            squared: 1e300,
        };
        assert_eq!(noise.signal(), None);
        assert!(Moments::of(2, f64::INFINITY, 1.0).is_none());
        assert!(Moments::of(2, 1.0, f64::NAN).is_none());
        assert!(Jackknife::of(&[f64::MAX, -f64::MAX, f64::MAX, -f64::MAX]).is_none());
        assert!(Jackknife::of(&[1.0]).is_none());
    }

    /// One block that makes the whole error counts as one; equal ones count as they are.
    #[test]
    fn blocks_that_make_the_error_are_counted() {
        let degrees = |values: &[f64]| Jackknife::of(values).expect("blocks").degrees;
        assert_eq!(degrees(&[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]), 7.0);
        assert!(degrees(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0]) < 1.0 + 0.5);
        let one = Jackknife {
            error: 1.0,
            degrees: 1.0,
        };
        let interval = one.interval(-5.0).expect("an interval");
        assert!((interval.at_least - 1.0 / 12.706).abs() < 1e-4 && interval.at_most.is_none());
    }
}
