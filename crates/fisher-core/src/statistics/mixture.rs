//! Several gradients a sample, counted as one contribution.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor};

use super::accumulators::Statistics;
use crate::error::{Error, Result, check_argument};
use crate::gradient::{
    Contribution, ContributionUnit, GradientBatch, GradientSink, Raw, SampleGradient,
    at_least_single,
};
use crate::grouping::{BatchTotals, GroupReduction};
use crate::kind::FisherKind;
use crate::moments::accumulation_dtype;
use crate::read;
use crate::sample::Sample;

/// A sink for gradients that come several times for the same samples, such as once for each label that was drawn:
/// what statistics count is `C_i = Σ_r w_ir g_ir ⊙ g_ir / T_i`, one contribution a sample.
///
/// Round by round, [`Mixture::end_round`] takes in the gradients of all samples with their weights. What is left,
/// [`Mixture::into_batch`], are gradients `g̃_i = √(Σ_r w_ir g_ir ⊙ g_ir)`, whose squares are what is to be counted: for
/// statistics of `T_i` tokens each, and for nothing else, since their signs are lost.
///
/// All parameters of all samples are held, `[samples, elements]` in float32 at least: give it few samples at a time. Roots
/// of sums of squares are taken by `hypot`, so that nothing leaves float32's range that the gradients do not.
#[derive(Debug)]
pub struct Mixture<'a, C: ContributionUnit> {
    of: &'a Statistics<C>,
    /// Of which Fisher the gradients of this round have to be.
    kind: FisherKind,
    samples: Vec<Sample>,
    /// The parameter because of which a sample is left out.
    skipped: Vec<Option<String>>,
    begun: Option<GradientBatch>,
    /// What was committed of this round: samples in order.
    round: Vec<GradientBatch>,
    /// `√Σ_r w g²` so far; nothing where all were zeros.
    roots: BTreeMap<String, Tensor<2>>,
}

/// Sums of the contributions of single samples over layers and heads.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleTraces {
    /// Of each sample, over each of [`Totals::layers`](crate::grouping::Totals::layers).
    pub layers: Vec<Vec<f64>>,
    /// Of each sample, over each of [`Totals::heads`](crate::grouping::Totals::heads).
    pub heads: Vec<Vec<f64>>,
}

/// What a mixture leaves.
#[derive(Debug)]
pub struct Mixed {
    /// The roots, of the samples that are not left out.
    pub batch: GradientBatch,
    /// Samples that are left out, each with the parameter because of which.
    pub skipped: Vec<(Sample, String)>,
}

impl<'a, C: ContributionUnit> Mixture<'a, C> {
    /// For these samples, each with its own active tokens, and what `statistics` want of them.
    pub fn new(statistics: &'a Statistics<C>, samples: Vec<Sample>) -> Self {
        Self {
            of: statistics,
            kind: statistics.provenance.kind,
            skipped: vec![None; samples.len()],
            samples,
            begun: None,
            round: Vec::new(),
            roots: BTreeMap::new(),
        }
    }

    /// The same, for a round of gradients of another Fisher, which are looked at and not counted.
    pub fn expect(&mut self, kind: FisherKind) {
        self.kind = kind;
    }

    /// Take in the gradients of this round, which have come for all samples in order, with `weights`, one a sample. Where
    /// all are 0, nothing is counted.
    ///
    /// # Errors
    /// [`Error::Argument`] when a sample's gradients have not come, or weights are not one a sample.
    pub fn end_round(&mut self, weights: &[f64]) -> Result<()> {
        self.check_round(weights.len())?;
        let round = std::mem::take(&mut self.round);
        if weights.iter().all(|weight| *weight == 0.0) {
            return Ok(());
        }
        for path in self.of.plan.parameters.keys() {
            let Some(gradient) = whole(&round, path) else {
                continue;
            };
            let options = (&gradient.device(), gradient.dtype());
            let roots: Vec<f64> = weights.iter().map(|weight| weight.sqrt()).collect();
            let column = Tensor::<1>::from_data(&*roots, options);
            let gradient = gradient.abs() * column.reshape([weights.len(), 1]);
            let root = match self.roots.remove(path) {
                Some(root) => hypot(root, gradient),
                None => gradient,
            };
            self.roots.insert(path.clone(), root);
        }
        Ok(())
    }

    /// What the gradients of this round would contribute to layers and heads by themselves, in the unit of the
    /// statistics: before [`Mixture::end_round`].
    ///
    /// # Errors
    /// [`Error::Argument`] when a sample's gradients have not come, [`Error::Device`].
    pub fn traces(&self) -> Result<SampleTraces> {
        let count = self.samples.len();
        self.check_round(count)?;
        let totals = &self.of.plan.totals;
        let mut sums = BatchTotals::new(totals);
        let dtype = accumulation_dtype(&self.of.device);
        let zeros = |columns| Tensor::<2>::zeros([count, columns], (&self.of.device, dtype));
        for path in self.of.plan.parameters.keys() {
            let squares = whole(&self.round, path).map(|gradient| gradient.cast(dtype).square());
            let sum = squares.clone().map_or_else(|| zeros(1), |s| s.sum_dim(1));
            let heads = totals.groupings(path).map(|grouping| match &squares {
                Some(squares) => {
                    let squares = Contribution::<Raw>::of(squares.clone());
                    let sums = grouping.reduce(&squares, GroupReduction::Sum);
                    sums.tensor().clone()
                }
                None => zeros(grouping.groups()),
            });
            sums.add_sums(totals, path, sum, heads.collect());
        }
        let values = read(sums.finish())?;
        let rows = values
            .chunks_exact(totals.values().max(1))
            .zip(&self.samples);
        let rows = rows.map(|(row, sample)| {
            let unit = C::root(sample.tokens()).powi(2);
            let row = row.iter().map(|sum| sum * unit);
            let mut layers: Vec<f64> = row.collect();
            let heads = layers.split_off(totals.layers().len());
            (layers, heads)
        });
        let (layers, heads) = rows.unzip();
        Ok(SampleTraces { layers, heads })
    }

    /// The roots of what came, and who is left out.
    pub fn into_batch(mut self) -> Mixed {
        let kept: Vec<usize> = (0..self.samples.len())
            .filter(|&row| self.skipped[row].is_none())
            .collect();
        let samples = kept.iter().map(|&row| self.samples[row].clone());
        let mut batch = GradientBatch::new(samples.collect());
        for (path, plan) in &self.of.plan.parameters {
            let gradient = match self.roots.remove(path) {
                Some(root) => SampleGradient::full(root).select(&kept),
                None => self.zeros(kept.len(), plan.shape.iter().product()),
            };
            batch.insert(path, gradient);
        }
        let skipped = self.samples.into_iter().zip(self.skipped);
        let skipped = skipped.filter_map(|(sample, parameter)| Some((sample, parameter?)));
        Mixed {
            batch,
            skipped: skipped.collect(),
        }
    }

    fn zeros(&self, samples: usize, elements: usize) -> SampleGradient {
        SampleGradient::Zero {
            samples,
            elements,
            device: self.of.device.clone(),
        }
    }

    fn check_round(&self, weights: usize) -> Result<()> {
        let came = self.round.iter().flat_map(GradientBatch::samples);
        let whole = came.map(Sample::id).eq(self.samples.iter().map(Sample::id));
        let expected = "gradients and a weight of every sample, in order";
        check_argument(
            whole && weights == self.samples.len(),
            "round",
            expected,
            weights,
        )
    }
}

impl<C: ContributionUnit> GradientSink for Mixture<'_, C> {
    fn wants(&self, path: &str) -> bool {
        self.of.wants(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        Some(self.kind).filter(|kind| *kind != found)
    }

    fn takes_from(&self) -> Option<&Device> {
        self.of.takes_from()
    }

    fn begin(&mut self, _task: &str, samples: &[Sample]) -> Result<()> {
        self.begun = Some(GradientBatch::new(samples.to_vec()));
        Ok(())
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        let Some(plan) = self.of.plan.parameters.get(path) else {
            return Ok(());
        };
        self.of.check_device(path, &gradient.device())?;
        let begun = self.begun.as_mut().ok_or(Error::NoBatch)?;
        gradient.check(path, begun.samples().len(), &plan.shape)?;
        begun.insert(path, gradient);
        begun.check_once()
    }

    /// # Errors
    /// [`Error::MissingParameter`] when one has not come, [`Error::NonFinite`] for a gradient that is NaN or
    /// infinite.
    fn prepare(&mut self) -> Result<()> {
        let begun = self.begun.as_ref().ok_or(Error::NoBatch)?;
        let mut paths = self.of.plan.parameters.keys();
        if let Some(path) = paths.find(|path| begun.get(path).is_none()) {
            return Err(Error::MissingParameter {
                parameter: path.clone(),
            });
        }
        begun.check_finite()
    }

    fn commit(&mut self) -> Result<()> {
        self.prepare()?;
        self.round.extend(self.begun.take());
        Ok(())
    }

    fn forget(&mut self) {
        self.begun = None;
    }

    fn skip(&mut self, _task: &str, sample: &Sample, parameter: &str) -> Result<()> {
        let known = |known: &Sample| known.id() == sample.id();
        if let Some(row) = self.samples.iter().position(known) {
            self.skipped[row] = Some(parameter.into());
        }
        let mut zeros = GradientBatch::new(vec![sample.clone()]);
        for (path, plan) in &self.of.plan.parameters {
            zeros.insert(path, self.zeros(1, plan.shape.iter().product()));
        }
        self.round.push(zeros);
        Ok(())
    }
}

/// The gradients of all samples of a round, `[samples, elements]`; `None` where all are zeros.
fn whole(round: &[GradientBatch], path: &str) -> Option<Tensor<2>> {
    let parts: Vec<&SampleGradient> = round.iter().filter_map(|part| part.get(path)).collect();
    let zero = |part: &&SampleGradient| matches!(part, SampleGradient::Zero { .. });
    if parts.iter().all(zero) {
        return None;
    }
    let parts: Vec<Tensor<2>> = parts
        .into_iter()
        .map(|part| at_least_single(part.to_full()))
        .collect();
    let double = parts.iter().any(|part| part.dtype() == DType::F64);
    let dtype = if double { DType::F64 } else { DType::F32 };
    let parts = parts.into_iter().map(|part| part.cast(dtype));
    Some(Tensor::cat(parts.collect(), 0))
}

/// `√(a² + b²)` of numbers that are not negative, in the range that they have.
fn hypot(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let large = a.clone().max_pair(b.clone());
    let zero = large.clone().equal_scalar(0.0);
    let ratio = a.min_pair(b) / large.clone().mask_fill(zero, 1.0);
    large * (ratio.square() + 1.0).sqrt()
}
