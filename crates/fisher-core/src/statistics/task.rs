//! The accumulators of one task, and of a parameter in it.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device};

use super::plan::{ParameterPlan, Plan};
use crate::error::{Error, Result, list};
use crate::grouping::Grouping;
use crate::moments::Welford;
use crate::sample::{SampleRecord, Seen};

/// The accumulators of one task.
#[derive(Debug, Clone)]
pub struct TaskStatistics {
    pub(super) samples: Seen,
    pub(super) parameters: BTreeMap<String, ParameterStatistics>,
    pub(super) layers: Welford,
    pub(super) heads: Welford,
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
            layers: welford(plan.totals.layers().len()),
            heads: welford(plan.totals.heads().len()),
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.layers.merge(&other.layers);
        self.heads.merge(&other.heads);
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

    fn counted(&self) -> impl Iterator<Item = &SampleRecord> {
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

    /// Traces of whole layers: see [`Totals`](crate::grouping::Totals).
    pub fn layers(&self) -> &Welford {
        &self.layers
    }

    /// Traces of whole heads: see [`Totals`](crate::grouping::Totals).
    pub fn heads(&self) -> &Welford {
        &self.heads
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
        let parameters = parameters.flat_map(ParameterStatistics::accumulators_mut);
        [&mut self.layers, &mut self.heads]
            .into_iter()
            .chain(parameters)
    }
}

impl ParameterStatistics {
    fn accumulators_mut(&mut self) -> impl Iterator<Item = &mut Welford> {
        let groups = self.groups.iter_mut().map(|(_, welford)| welford);
        self.elementwise.iter_mut().chain(groups)
    }
}
