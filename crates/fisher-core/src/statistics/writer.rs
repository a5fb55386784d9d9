//! A batch that comes into statistics parameter by parameter, never whole.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};

use super::accumulators::Statistics;
use super::task::{ParameterStatistics, TaskStatistics};
use crate::error::{Error, Result};
use crate::gradient::{Contribution, ContributionUnit, Gradient, TokenSum};
use crate::grouping::{BatchTotals, Grouping, Margins, Reduction};
use crate::host::{self, give, is_host, sum_columns, take};
use crate::moments::BatchMoments;
use crate::sample::{Sample, Tokens};
use crate::squares::Wanted;

/// Contributions that are held at a time.
const CELLS: usize = 1 << 24;

/// Ranges of samples whose `width` contributions each are held at a time.
fn chunks(samples: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (CELLS / width.max(1)).max(1);
    let starts = (0..samples).step_by(step);
    starts.map(move |start| start..samples.min(start + step))
}

/// A batch on its way into [`Statistics`]: see [`Statistics::stream`].
#[derive(Debug)]
pub struct Stream<'a, C: ContributionUnit> {
    pub(super) statistics: &'a mut Statistics<C>,
    pub(super) task: String,
    pub(super) samples: Vec<Sample>,
    pub(super) dtype: DType,
    totals: BatchTotals,
    /// Of every parameter that has come, `[samples, 1]`.
    sums: BTreeMap<String, Tensor<2>>,
}

impl<C: ContributionUnit> Statistics<C> {
    /// Begin to take in a batch of samples of `task` without ever holding its gradients whole:
    /// each parameter comes as a whole ([`Stream::whole`]), as factors of products
    /// ([`Stream::product`]) or as rows of a table ([`Stream::lookup`]), and [`Stream::finish`] counts
    /// the samples.
    ///
    /// The numbers are those of [`Statistics::push`]. Unlike there, half a batch stays where an error
    /// comes half way or [`Stream::finish`] is not called, and such statistics are not saved, merged
    /// or filled any more ([`Error::HalfBatch`]): make sure beforehand that gradients are finite.
    ///
    /// # Errors
    /// [`Error::SampleTwice`] when a sample has been seen before or is twice in the batch,
    /// [`Error::HalfBatch`] when an earlier batch did not end well. Nothing is changed then.
    pub fn stream(&mut self, task: &str, samples: Vec<Sample>) -> Result<Stream<'_, C>> {
        self.check_whole()?;
        self.check_new(task, &samples)?;
        let (plan, device) = (&self.plan, &self.device);
        self.tasks
            .entry(task.to_owned())
            .or_insert_with(|| TaskStatistics::new(plan, device));
        self.half = true;
        Ok(Stream {
            dtype: plan.dtype(device),
            totals: BatchTotals::new(&plan.totals),
            sums: BTreeMap::new(),
            task: task.into(),
            samples,
            statistics: self,
        })
    }

    /// What is wanted of the parameter at `path`; `None` when it is not part of the statistics.
    pub fn wanted(&self, path: &str) -> Option<Wanted> {
        let plan = self.plan.parameters.get(path)?;
        let heads = self.plan.totals.groupings(path);
        let groupings = plan.groupings.iter().chain(heads);
        let groupings: Vec<&Grouping> = groupings.filter(|g| !g.is_whole()).collect();
        let on = |side: fn(usize) -> bool| groupings.iter().any(|g| g.axis().is_some_and(side));
        Some(Wanted {
            elements: plan.elementwise,
            variance: plan.variance,
            rows: on(|axis| axis == 0),
            columns: on(|axis| axis > 0),
            scattered: groupings.iter().any(|g| g.is_scattered()),
        })
    }
}

impl<C: ContributionUnit> Stream<'_, C> {
    /// `√(C_i / g_i²)` for every sample.
    pub fn roots(&self) -> Vec<f64> {
        self.samples.iter().map(|s| C::root(s.tokens())).collect()
    }

    /// The type that contributions are accumulated in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the statistics.
    pub fn device(&self) -> &Device {
        &self.statistics.device
    }

    /// What is wanted of the parameter at `path`: see [`Statistics::wanted`].
    pub fn wanted(&self, path: &str) -> Option<Wanted> {
        self.statistics.wanted(path)
    }

    /// Take in a parameter of zeros, that the loss does not depend on.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when the statistics do not have it, [`Error::ParameterTwice`] when
    /// it has come before.
    pub fn zeros(&mut self, path: &str) -> Result<()> {
        self.check(path, &self.statistics.device)?;
        let missing = || Error::MissingParameter {
            parameter: path.into(),
        };
        let (samples, device, dtype) = (
            self.samples.len(),
            self.statistics.device.clone(),
            self.dtype,
        );
        let shape = self.statistics.shape(path).ok_or_else(missing)?;
        let rows = shape.first().copied().unwrap_or(1);
        let others = shape.iter().skip(1).product::<usize>();
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        if let Some(welford) = &mut statistics.elementwise {
            let zeros = Tensor::<1>::zeros([rows * others], (&device, dtype));
            let moments = BatchMoments {
                m2: welford.keeps_variance().then(|| zeros.clone()),
                rest: None,
                mean: zeros,
            };
            welford.push_moments(samples, &moments);
        }
        self.scatter(path, |grouping, range| {
            let shape = [range.len(), grouping.groups()];
            Ok(Tensor::<2>::zeros(shape, (&device, dtype)))
        })?;
        let side = |length| Tensor::<2>::zeros([samples, length], (&device, dtype));
        let margins = Margins {
            rows: Some(side(rows)),
            columns: Some(side(others)),
        };
        self.margins(path, &margins)
    }

    /// Take in all of a parameter, `[samples, elements]`. Its squares are taken of a few samples at a
    /// time.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when the statistics do not have it, [`Error::ParameterTwice`] when
    /// it has come before, [`Error::Shape`] when the gradient is of another size or lies elsewhere,
    /// [`Error::Device`] when the device does not give values.
    pub fn whole(&mut self, path: &str, gradient: Gradient<TokenSum>) -> Result<()> {
        self.check(path, &gradient.tensor().device())?;
        let shape = self.statistics.shape(path).unwrap_or_default();
        let expected = [self.samples.len(), shape.iter().product()];
        let [samples, elements] = gradient.tensor().dims();
        if samples == 0 || expected != [samples, elements] {
            return Err(Error::Shape {
                parameter: path.into(),
                expected: format!("[samples, elements] = {expected:?}, of at least one sample"),
                found: format!("{:?}", [samples, elements]),
            });
        }
        let gradient = self.rows_of(gradient)?;
        let reduction = self.statistics.provenance.reduction;
        let (mut sums, mut heads) = (Vec::new(), Vec::new());
        for range in chunks(samples, elements) {
            let (contribution, sum) = self.contributions(&gradient, elements, range);
            let totals = &self.statistics.plan.totals;
            let of_heads = totals.groupings(path).map(|grouping| {
                let sums = grouping.reduce(&contribution, Reduction::Sum);
                sums.tensor().clone()
            });
            heads.push(of_heads.collect::<Vec<_>>());
            let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
            for (grouping, welford) in &mut statistics.groups {
                let reduced = grouping.reduce(&contribution, reduction);
                welford.push_batch(reduced.tensor().clone());
            }
            if let Some(welford) = &mut statistics.elementwise {
                welford.push_batch(contribution.tensor().clone());
            }
            sums.push(sum);
        }
        let of_grouping = |at: usize| {
            let parts = heads.iter().map(|heads| heads[at].clone());
            Tensor::cat(parts.collect(), 0)
        };
        let heads = (0..heads[0].len()).map(of_grouping).collect();
        let sums = Tensor::cat(sums, 0);
        let totals = &self.statistics.plan.totals;
        self.totals.add_sums(totals, path, sums.clone(), heads);
        self.sums.insert(path.into(), sums);
        Ok(())
    }

    fn rows_of(&self, gradient: Gradient<TokenSum>) -> Result<Rows> {
        let tensor = gradient.into_tensor();
        if self.on_host() && tensor.dtype() == DType::F32 {
            Ok(Rows::Host(take(tensor)?))
        } else {
            Ok(Rows::Device(Box::new(tensor)))
        }
    }

    /// Contributions of samples `range` and their sums over elements, `[samples, 1]`.
    fn contributions(
        &self,
        gradient: &Rows,
        elements: usize,
        range: Range<usize>,
    ) -> (Contribution<C>, Tensor<2>) {
        match gradient {
            Rows::Host(values) => {
                let device = &self.statistics.device;
                let roots = &self.roots()[range.clone()];
                let part = &values[range.start * elements..range.end * elements];
                let (squares, sums) = host::contributions(part, roots);
                let contribution = give(squares, [range.len(), elements], device);
                (
                    Contribution::of(contribution),
                    give(sums, [range.len(), 1], device),
                )
            }
            Rows::Device(tensor) => {
                let part = Tensor::clone(tensor).narrow(0, range.start, range.len());
                let tokens = Tokens::of(&self.samples[range], &self.statistics.device);
                let gradient = Gradient::token_sum(part);
                let contribution = gradient.contribution_in::<C>(&tokens, self.dtype);
                let sums = contribution.tensor().clone().sum_dim(1);
                (contribution, sums)
            }
        }
    }

    /// Take in groups that are no slices of an axis: `sums` over the groups of some samples,
    /// `[samples, groups]`.
    pub(super) fn scatter(
        &mut self,
        path: &str,
        sums: impl Fn(&Grouping, Range<usize>) -> Result<Tensor<2>>,
    ) -> Result<()> {
        let reduction = self.statistics.provenance.reduction;
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        for (grouping, welford) in &mut statistics.groups {
            if grouping.is_scattered() {
                for range in chunks(self.samples.len(), grouping.groups()) {
                    welford.push_batch(grouping.reduced(sums(grouping, range)?, reduction));
                }
            }
        }
        Ok(())
    }

    /// Whether accumulators are float64 in the host's memory.
    pub(super) fn on_host(&self) -> bool {
        self.dtype == DType::F64 && is_host(&self.statistics.device)
    }

    /// Whether gradients of the parameter at `path`, on `device`, can come now.
    pub(super) fn check(&self, path: &str, device: &Device) -> Result<()> {
        if self.statistics.shape(path).is_none() {
            return Err(Error::MissingParameter {
                parameter: path.into(),
            });
        }
        if self.sums.contains_key(path) {
            return Err(Error::ParameterTwice {
                parameter: path.into(),
            });
        }
        self.statistics.check_device(path, device)
    }

    /// Contributions, summed over one side; all groups but the scattered ones.
    pub(super) fn margins(&mut self, path: &str, margins: &Margins) -> Result<()> {
        let missing = || Error::MissingParameter {
            parameter: path.into(),
        };
        let any = margins.rows.as_ref().or(margins.columns.as_ref());
        let sums = sum_columns(any.ok_or_else(missing)?.clone())?;
        let (plan, reduction) = (&self.statistics.plan, self.statistics.provenance.reduction);
        let totals = &mut self.totals;
        totals
            .add_margins(&plan.totals, path, margins, sums.clone())
            .ok_or_else(missing)?;
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        for (grouping, welford) in &mut statistics.groups {
            if !grouping.is_scattered() {
                let reduced = grouping.reduce_margins(margins, reduction);
                welford.push_batch(reduced.ok_or_else(missing)?);
            }
        }
        self.sums.insert(path.into(), sums);
        Ok(())
    }

    /// `Σ C_i` over all elements of a parameter that has come, for every sample.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not give them.
    pub fn traces(&self) -> Result<BTreeMap<String, Vec<f64>>> {
        if self.sums.is_empty() {
            return Ok(BTreeMap::new());
        }
        let names = self.sums.keys();
        let sums = Tensor::cat(self.sums.values().cloned().collect(), 1).try_into_data();
        let sums = sums.map_err(|e| Error::Device {
            reason: e.to_string(),
        })?;
        let values: Vec<f64> = sums.iter::<f64>().collect();
        let column = |at: usize| values.iter().skip(at).step_by(self.sums.len());
        let column = |(at, name): (usize, &String)| (name.clone(), column(at).copied().collect());
        Ok(names.enumerate().map(column).collect())
    }

    /// Count the samples.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when one has not come, [`Error::NonFinite`] when a square was
    /// NaN or infinite.
    pub fn finish(self) -> Result<()> {
        let mut paths = self.statistics.plan.parameters.keys();
        if let Some(path) = paths.find(|path| !self.sums.contains_key(*path)) {
            return Err(Error::MissingParameter {
                parameter: path.clone(),
            });
        }
        for (parameter, traces) in self.traces()? {
            if let Some(at) = traces.iter().position(|trace| !trace.is_finite()) {
                return Err(Error::NonFinite {
                    sample: self.samples[at].id().into(),
                    parameter,
                });
            }
        }
        let (layers, heads) = self.totals.finish();
        let Some(task) = self.statistics.tasks.get_mut(&self.task) else {
            return Ok(()); // `stream` has put it there
        };
        for (welford, sums) in [(&mut task.layers, layers), (&mut task.heads, heads)] {
            if let Some(sums) = sums {
                welford.push_batch(sums);
            }
        }
        for sample in &self.samples {
            task.samples.push(sample.into());
        }
        self.statistics.half = false;
        Ok(())
    }
}

/// Gradients, `[samples, elements]`, where they are read fastest.
enum Rows {
    Host(Vec<f32>),
    Device(Box<Tensor<2>>),
}

/// The accumulators of a parameter in a task.
pub(super) fn parameter<'a>(
    tasks: &'a mut BTreeMap<String, TaskStatistics>,
    task: &str,
    path: &str,
) -> Result<&'a mut ParameterStatistics> {
    let parameters = tasks.get_mut(task).map(|task| &mut task.parameters);
    let found = parameters.and_then(|parameters| parameters.get_mut(path));
    found.ok_or_else(|| Error::MissingParameter {
        parameter: path.into(),
    })
}
