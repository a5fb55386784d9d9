//! The accumulators of one task, and of a parameter in it.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{DType, Device};

use super::plan::{ParameterPlan, Plan};
use super::rows::{Rows, UnitSums};
use crate::error::{Error, Result, list};
use crate::grouping::Grouping;
use crate::moments::{SampleMoments, Skewed, Welford};
use crate::sample::{Sample, SampleRecord, Seen};

/// The accumulators of one task.
#[derive(Debug, Clone)]
pub struct TaskStatistics {
    pub(super) samples: Seen,
    pub(super) parameters: BTreeMap<String, ParameterStatistics>,
    /// Of layers and then of heads.
    pub(super) totals: Skewed,
    pub(super) rows: Rows,
    layers: usize,
}

impl TaskStatistics {
    pub(super) fn new(plan: &Plan, device: &Device) -> Self {
        Self::with(plan, |elements| {
            if plan.compensated {
                Welford::compensated(elements, device)
            } else {
                Welford::new(elements, device)
            }
        })
    }

    /// The accumulators that `plan` asks for, each made by `welford` for its number of elements.
    pub(super) fn with(plan: &Plan, welford: impl Fn(usize) -> Welford) -> Self {
        let parameter = |plan: &ParameterPlan| ParameterStatistics {
            elementwise: plan.elementwise.then(|| {
                let welford = welford(plan.shape.iter().product());
                if plan.variance {
                    welford
                } else {
                    welford.without_variance()
                }
            }),
            groups: plan
                .groupings
                .iter()
                .map(|g| (g.clone(), welford(g.groups())))
                .collect(),
        };
        Self {
            samples: Seen::default(),
            parameters: plan
                .parameters
                .iter()
                .map(|(path, plan)| (path.clone(), parameter(plan)))
                .collect(),
            totals: Skewed::new(plan.totals.values()),
            rows: Rows::new(plan.totals.values()),
            layers: plan.totals.layers().len(),
        }
    }

    /// Take in samples whose totals are `values`, of layers and then of heads.
    pub(super) fn push(&mut self, samples: &[Sample], values: &[f64]) {
        let width = self.rows.columns().max(1);
        for (sample, values) in samples.iter().zip(values.chunks(width)) {
            self.totals.push(values);
            self.rows.push(sample.cluster(), values);
            self.samples.push(sample.into());
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.totals.merge(&other.totals);
        self.rows.merge(other.rows);
        for (ours, theirs) in self.parameters.values_mut().zip(other.parameters.values()) {
            if let (Some(ours), Some(theirs)) = (&mut ours.elementwise, &theirs.elementwise) {
                ours.merge(theirs);
            }
            for ((_, ours), (_, theirs)) in ours.groups.iter_mut().zip(&theirs.groups) {
                ours.merge(theirs);
            }
        }
    }

    /// The samples seen, in order, those that were skipped included.
    pub fn samples(&self) -> &[SampleRecord] {
        self.samples.records()
    }

    /// The number of samples in the statistics, `n`.
    pub fn count(&self) -> usize {
        self.counted().count()
    }

    /// Whether the samples are ones that collection could have seen: for what comes from a file.
    pub(super) fn check_samples(&self) -> Result<u64, String> {
        let samples = self.samples();
        let tokens = samples
            .iter()
            .try_fold(0u64, |sum, s| sum.checked_add(s.tokens));
        match tokens {
            Some(_) if samples.iter().all(|s| s.tokens > 0) => Ok(self.count() as u64),
            _ => Err("a sample has no tokens, or all have too many".into()),
        }
    }

    /// The number of active tokens in the statistics.
    pub fn tokens(&self) -> u64 {
        let tokens = self.counted().map(|s| s.tokens);
        tokens.fold(0, u64::saturating_add)
    }

    pub(super) fn counted(&self) -> impl Iterator<Item = &SampleRecord> {
        self.samples().iter().filter(|s| s.skipped.is_none())
    }

    /// The accumulators of the parameter at `path`.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn parameter(&self, path: &str) -> Result<&ParameterStatistics> {
        self.parameters
            .get(path)
            .ok_or_else(|| Error::UnknownParameter {
                parameter: path.into(),
                known: list(self.parameters.keys()),
            })
    }

    /// All parameters, by path.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &ParameterStatistics)> {
        self.parameters.iter().map(|(path, p)| (&**path, p))
    }

    /// Traces of whole layers: see [`Totals`](crate::grouping::Totals). Where samples name clusters,
    /// errors are those of the sums of clusters.
    pub fn layers(&self) -> SampleMoments {
        self.moments(0..self.layers)
    }

    /// Traces of whole heads, likewise.
    pub fn heads(&self) -> SampleMoments {
        self.moments(self.layers..self.rows.columns())
    }

    /// Traces of whole layers, summed over units of samples: each cluster is one, and each sample
    /// that names none. Where samples times layers and heads are more than a million numbers, neighbouring
    /// units are put together. `None` where those of some samples were not kept: files of older versions,
    /// weights that moved.
    pub fn layer_units(&self) -> Option<UnitSums> {
        self.has_units().then(|| self.rows.units(0..self.layers))
    }

    /// Traces of whole heads, likewise.
    pub fn head_units(&self) -> Option<UnitSums> {
        let heads = self.layers..self.rows.columns();
        self.has_units().then(|| self.rows.units(heads))
    }

    pub(super) fn has_units(&self) -> bool {
        self.rows.samples() == self.totals.count
    }

    /// Whether a sample named its cluster. Errors of elements and groups do not take clusters into
    /// account: they are accumulated sample by sample.
    pub fn has_clusters(&self) -> bool {
        self.rows.has_clusters()
    }

    fn moments(&self, columns: Range<usize>) -> SampleMoments {
        let totals = &self.totals;
        let of = |values: &Vec<f64>| values[columns.clone()].to_vec();
        let (mean, m3) = (of(&totals.mean), totals.m3.as_ref().map(of));
        let mut moments = SampleMoments::of(totals.count, mean, Some(of(&totals.m2)), m3);
        if self.rows.has_clusters() {
            let units = self.has_units().then(|| self.rows.units(columns));
            let mean = moments.mean.as_ref();
            let errors = units.zip(mean).map(|(units, mean)| units.errors(mean));
            // Without the sums of clusters there is no error to be had.
            let errors = errors.unwrap_or_default();
            moments.units = errors.units;
            moments.standard_error = errors.standard_error;
            moments.effective = errors.effective;
            moments.skewness = errors.skewness;
        }
        moments
    }
}

/// The accumulators of one parameter.
#[derive(Debug, Clone)]
pub struct ParameterStatistics {
    pub(super) elementwise: Option<Welford>,
    pub(super) groups: Vec<(Grouping, Welford)>,
}

impl ParameterStatistics {
    /// Every element by itself, flattened, if that was asked for.
    pub fn elementwise(&self) -> Option<&Welford> {
        self.elementwise.as_ref()
    }

    /// The groupings and their accumulators: none, one, or for heads one per block.
    pub fn groups(&self) -> &[(Grouping, Welford)] {
        &self.groups
    }

    /// The groups of one label, such as `head.Q` or `channel`.
    pub fn group(&self, label: &str) -> Option<&Welford> {
        self.groups
            .iter()
            .find_map(|(grouping, welford)| (grouping.label() == label).then_some(welford))
    }
}

impl TaskStatistics {
    /// All accumulators on `device`, in float64 or in pairs of float32.
    pub(super) fn on(mut self, device: &Device, dtype: DType) -> Self {
        for welford in self.accumulators_mut() {
            *welford = welford.on(device, dtype);
        }
        self
    }

    fn accumulators_mut(&mut self) -> impl Iterator<Item = &mut Welford> {
        let parameters = self.parameters.values_mut();
        parameters.flat_map(ParameterStatistics::accumulators_mut)
    }
}

impl ParameterStatistics {
    fn accumulators_mut(&mut self) -> impl Iterator<Item = &mut Welford> {
        let groups = self.groups.iter_mut().map(|(_, welford)| welford);
        self.elementwise.iter_mut().chain(groups)
    }
}
