//! Statistics as a sink of gradients.

use burn::tensor::Device;

use super::accumulators::Statistics;
use super::pending::{Pending, Prepared};
use super::task::TaskStatistics;
use super::writer::Writer;
use crate::error::{Error, Result, list};
use crate::gradient::{ContributionUnit, GradientBatch, GradientSink, SampleGradient};
use crate::grouping::Grouping;
use crate::host::is_host;
use crate::kind::FisherKind;
use crate::read::read;
use crate::sample::Sample;
use crate::squares::{Wanted, Way};

/// The gradients are squared per sample, reduced to groups and accumulated when the batch is committed.
///
/// What is wrong with a batch is found before anything is changed, but for one thing: whether the
/// elements of products ([`SampleGradient::Outer`]; on devices of CubeCL also vectors) are finite is only
/// known once they are accumulated. Then [`commit`](GradientSink::commit) fails with [`Error::NonFinite`], half a batch
/// stays, and such statistics are not saved, merged or filled any more ([`Error::HalfBatch`]).
impl<C: ContributionUnit> GradientSink for Statistics<C> {
    fn wants(&self, path: &str) -> bool {
        self.plan.parameters.contains_key(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        Some(self.provenance.kind).filter(|kind| *kind != found)
    }

    fn takes_from(&self) -> Option<&Device> {
        Some(&self.device)
    }

    /// # Errors
    /// [`Error::SampleTwice`] when a sample has been seen before or is twice in the batch,
    /// [`Error::HalfBatch`] when an earlier batch did not end well.
    fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<()> {
        self.pending = None;
        self.check_whole()?;
        self.check_new(task, samples)?;
        self.pending = Some(Pending::new(task, samples));
        Ok(())
    }

    /// # Errors
    /// [`Error::UnknownParameter`] when the statistics do not have it, [`Error::ParameterTwice`] when
    /// it has come before, [`Error::Shape`] when the gradients are not of its shape or lie elsewhere,
    /// [`Error::NoBatch`] when none was begun.
    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        let Some(plan) = self.plan.parameters.get(path) else {
            return Err(self.unknown(path));
        };
        self.check_device(path, &gradient.device())?;
        let pending = self.pending.as_mut().ok_or(Error::NoBatch)?;
        gradient.check(path, pending.samples.len(), &plan.shape)?;
        if pending.gradients.contains_key(path) {
            return Err(Error::ParameterTwice {
                parameter: path.into(),
            });
        }
        pending.gradients.insert(path.into(), gradient);
        Ok(())
    }

    /// # Errors
    /// [`Error::MissingParameter`] when one has not come, [`Error::NonFinite`] when a square is NaN or
    /// infinite, [`Error::Device`] when the device does not give values, [`Error::NoBatch`] when no
    /// batch was begun.
    fn prepare(&mut self) -> Result<()> {
        let mut pending = self.pending.take().ok_or(Error::NoBatch)?;
        if pending.prepared.is_some() {
            self.pending = Some(pending);
            return Ok(());
        }
        let gradients = std::mem::take(&mut pending.gradients);
        let mut paths = self.plan.parameters.keys();
        if let Some(path) = paths.find(|path| !gradients.contains_key(*path)) {
            return Err(Error::MissingParameter {
                parameter: path.clone(),
            });
        }
        let samples = pending.samples.clone();
        let mut writer = Writer::new(samples, &self.plan, &self.device, self.ghost);
        let mut reduced = Vec::new();
        if !pending.samples.is_empty() {
            for (path, gradient) in gradients {
                let wanted = self.wanted(&path).unwrap_or_default();
                let shape = self.shape(&path).unwrap_or_default();
                let of_path = writer.reduce(&path, shape, wanted, gradient)?;
                reduced.push((path, of_path));
            }
            writer.check_finite()?;
        }
        pending.prepared = Some(Prepared { writer, reduced });
        self.pending = Some(pending);
        Ok(())
    }

    /// # Errors
    /// Those of [`prepare`](GradientSink::prepare), and [`Error::NonFinite`] as above.
    fn commit(&mut self) -> Result<()> {
        self.finish().map(|_| ())
    }

    fn forget(&mut self) {
        self.pending = None;
    }

    /// # Errors
    /// [`Error::SampleTwice`] when the sample has been seen before.
    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> Result<()> {
        Statistics::skip(self, task, sample, parameter)
    }
}

impl<C: ContributionUnit> Statistics<C> {
    /// Take in a batch of samples of `task`, which begins to exist with its first batch.
    ///
    /// # Errors
    /// Those of the statistics as a [`GradientSink`]; also for a parameter that they do not have.
    pub fn push(&mut self, task: &str, batch: GradientBatch) -> Result<()> {
        let unknown = batch.iter().map(|(path, _)| path);
        if let Some(path) = unknown.into_iter().find(|path| !self.wants(path)) {
            return Err(self.unknown(path));
        }
        self.push_batch(task, batch)
    }

    fn unknown(&self, path: &str) -> Error {
        Error::UnknownParameter {
            parameter: path.into(),
            known: list(self.plan.parameters.keys()),
        }
    }

    /// [Commit](GradientSink::commit) the batch that was begun, and say how the squares of each
    /// parameter were taken.
    ///
    /// # Errors
    /// Those of [`commit`](GradientSink::commit).
    #[doc(hidden)]
    pub fn finish(&mut self) -> Result<Vec<(String, Way)>> {
        if is_host(&self.device) {
            // On one of the threads that the work is shared by: to wake them from outside, each
            // time there is some, takes longer than many a parameter.
            rayon::scope(|_| self.finish_here())
        } else {
            self.finish_here()
        }
    }

    fn finish_here(&mut self) -> Result<Vec<(String, Way)>> {
        self.prepare()?;
        let pending = self.pending.take().ok_or(Error::NoBatch)?;
        let Pending {
            task,
            samples,
            prepared:
                Some(Prepared {
                    mut writer,
                    reduced,
                }),
            ..
        } = pending
        else {
            return Err(Error::NoBatch);
        };
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        self.half = true;
        let (plan, device) = (&self.plan, &self.device);
        let of_task = self.tasks.entry(task);
        let of_task = of_task.or_insert_with(|| TaskStatistics::new(plan, device));
        let (totals, reduction) = (&plan.totals, self.provenance.reduction);
        let mut ways = Vec::new();
        for (path, reduced) in reduced {
            let Some(into) = of_task.parameters.get_mut(&path) else {
                continue; // every task has the plan's parameters
            };
            let shape = &plan.parameters[&path].shape;
            let way = writer.write(&path, shape, reduced, totals, reduction, into)?;
            ways.push((path, way));
        }
        writer.check_finite()?;
        of_task.push(&samples, &read(writer.totals.finish())?);
        self.half = false;
        Ok(ways)
    }

    /// What the statistics need of the parameter at `path`; `None` when they do not have it.
    pub(crate) fn wanted(&self, path: &str) -> Option<Wanted> {
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
