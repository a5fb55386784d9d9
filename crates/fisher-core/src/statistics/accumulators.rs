//! The accumulators of several tasks, with all that says what they are.

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;

use burn::tensor::Device;

use super::pending::Pending;
use super::plan::{ParameterPlan, Plan};
use super::task::TaskStatistics;
use crate::error::{Error, Result, list};
use crate::gradient::{ContributionUnit, PerToken};
use crate::grouping::{Grouping, Totals};
use crate::model::Role;
use crate::provenance::Provenance;
use crate::sample::{Sample, SampleRecord, check_new};

/// The Fisher statistics of several tasks of one model.
///
/// `C` is the unit of the contributions, [`PerToken`] unless said otherwise. Saved with
/// [`Statistics::save`], loaded with [`Statistics::load`], joined with [`Statistics::merge`].
#[derive(Debug, Clone)]
pub struct Statistics<C: ContributionUnit = PerToken> {
    pub(super) provenance: Provenance,
    pub(super) plan: Plan,
    pub(super) tasks: BTreeMap<String, TaskStatistics>,
    pub(super) device: Device,
    /// Whether sums over sides may be taken by products of positions.
    pub(super) ghost: bool,
    pub(super) pending: Option<Pending<C>>,
    /// Whether a batch began to be accumulated and did not end: see [`Error::HalfBatch`].
    pub(super) half: bool,
    pub(super) unit: PhantomData<C>,
}

impl<C: ContributionUnit> Statistics<C> {
    /// # Errors
    /// [`Error::HalfBatch`]
    pub(super) fn check_whole(&self) -> Result<()> {
        if self.half {
            Err(Error::HalfBatch)
        } else {
            Ok(())
        }
    }

    /// Record that a sample of `task` was left out because of its gradient in `parameter`.
    ///
    /// # Errors
    /// [`Error::SampleTwice`] when the sample has been seen before.
    pub fn skip(
        &mut self,
        task: &str,
        sample: &Sample,
        parameter: impl Into<String>,
    ) -> Result<()> {
        self.check_new(task, [sample])?;
        self.pending = None;
        let (plan, device) = (&self.plan, &self.device);
        let task = self.tasks.entry(task.to_owned());
        let task = task.or_insert_with(|| TaskStatistics::new(plan, device));
        task.samples.push(SampleRecord {
            skipped: Some(parameter.into()),
            ..sample.into()
        });
        Ok(())
    }

    /// # Errors
    /// [`Error::SampleTwice`] when one of `samples` has been seen before, or comes twice.
    pub(super) fn check_new<'a>(
        &self,
        task: &str,
        samples: impl IntoIterator<Item = &'a Sample>,
    ) -> Result<()> {
        let seen = self.tasks.get(task).map(|of_task| &of_task.samples);
        check_new(task, samples, |id| {
            seen.is_some_and(|seen| seen.contains(None, id))
        })
    }

    /// Join with the statistics of other samples: the result is that of one pass over all.
    ///
    /// # Errors
    /// Those of [`Statistics::mergeable`]. Nothing is changed then.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        self.mergeable(&other)?;
        self.pending = None;
        for (name, theirs) in other.tasks {
            match self.tasks.get_mut(&name) {
                Some(ours) => ours.merge(theirs),
                None => {
                    let dtype = self.plan.dtype(&self.device);
                    self.tasks.insert(name, theirs.on(&self.device, dtype));
                }
            }
        }
        self.provenance.absorb(other.provenance);
        Ok(())
    }

    /// Whether [`Statistics::merge`] takes `other`.
    ///
    /// # Errors
    /// [`Error::Incompatible`], naming the difference, when model, unit, kind, parameters or
    /// groups differ, or the statistics lie on different devices;
    /// [`Error::DuplicateSample`] when a sample is in both; [`Error::HalfBatch`].
    pub fn mergeable(&self, other: &Self) -> Result<()> {
        self.check_whole()?;
        other.check_whole()?;
        self.compatible(other)?;
        for (name, theirs) in &other.tasks {
            let Some(ours) = self.tasks.get(name) else {
                continue;
            };
            if let Some(twice) = ours.samples.shared(&theirs.samples) {
                return Err(Error::DuplicateSample {
                    task: name.clone(),
                    sample: twice.id.clone(),
                });
            }
        }
        Ok(())
    }

    /// Whether `other` is of the same model, unit, kind, parameters and groups.
    ///
    /// # Errors
    /// [`Error::Incompatible`], naming the first difference.
    pub fn compatible(&self, other: &Self) -> Result<()> {
        self.provenance.compatible(&other.provenance)?;
        let differs = |what: String, ours: String, theirs: String| {
            Err(Error::Incompatible { what, ours, theirs })
        };
        if self.device != other.device {
            let (ours, theirs) = (format!("{:?}", self.device), format!("{:?}", other.device));
            return differs("the device".into(), ours, theirs);
        }
        let (ours, theirs) = (&self.plan.parameters, &other.plan.parameters);
        let paths: HashSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let mut paths: Vec<&String> = paths.into_iter().collect();
        paths.sort();
        for path in paths {
            let (a, b) = (ours.get(path), theirs.get(path));
            if a != b {
                let describe = |plan: Option<&ParameterPlan>| {
                    plan.map_or("absent".into(), ParameterPlan::describe)
                };
                return differs(format!("parameter `{path}`"), describe(a), describe(b));
            }
        }
        if self.plan.totals != other.plan.totals {
            let describe = |t: &Totals| format!("{} heads", t.heads().len());
            let (ours, theirs) = (describe(&self.plan.totals), describe(&other.plan.totals));
            return differs("the head layout".into(), ours, theirs);
        }
        Ok(())
    }

    /// Whether `other` was begun with the same configuration, seed and precision included: then
    /// one can go on where the other stopped.
    ///
    /// # Errors
    /// [`Error::Incompatible`], naming the first difference.
    pub fn same_configuration(&self, other: &Self) -> Result<()> {
        self.compatible(other)?;
        let describe = |s: &Self| {
            let precision = if s.plan.compensated {
                "compensated float32"
            } else {
                "the device's float64"
            };
            format!("seeds {:?}, {precision}", s.provenance.seeds)
        };
        let (ours, theirs) = (describe(self), describe(other));
        if ours == theirs {
            Ok(())
        } else {
            Err(Error::Incompatible {
                what: "the configuration".into(),
                ours,
                theirs,
            })
        }
    }

    /// The same statistics, that take squares from products of positions as `other` does: that is
    /// not in a file.
    #[must_use]
    pub fn with_ghosts_of(mut self, other: &Self) -> Self {
        self.ghost = other.ghost;
        self
    }

    /// Names of the tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The statistics of one task.
    ///
    /// # Errors
    /// [`Error::UnknownTask`].
    pub fn task(&self, name: &str) -> Result<&TaskStatistics> {
        self.tasks.get(name).ok_or_else(|| Error::UnknownTask {
            task: name.into(),
            known: list(self.tasks()),
        })
    }

    /// Paths of the parameters.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.plan.parameters.keys().map(String::as_str)
    }

    /// The number of groups of all parameters.
    pub fn groups(&self) -> usize {
        let parameters = self.plan.parameters.values();
        let groups = parameters.flat_map(|parameter| &parameter.groupings);
        groups.map(Grouping::groups).sum()
    }

    /// The shape of the parameter at `path`.
    pub fn shape(&self, path: &str) -> Option<&[usize]> {
        self.plan.parameters.get(path).map(|p| &*p.shape)
    }

    /// What the parameter at `path` is for.
    pub fn role(&self, path: &str) -> Option<Role> {
        self.plan.parameters.get(path).map(|p| p.role)
    }

    /// Which layers and heads the totals are of.
    pub fn totals(&self) -> &Totals {
        &self.plan.totals
    }

    /// Elements of every layer, in the order of [`Totals::layers`].
    pub fn layer_elements(&self) -> Vec<f64> {
        let [layers, _] = self.total_elements();
        layers
    }

    /// Elements of every head, in the order of [`Totals::heads`]; those of shared key/value heads in
    /// equal parts.
    pub fn head_elements(&self) -> Vec<f64> {
        let [_, heads] = self.total_elements();
        heads
    }

    fn total_elements(&self) -> [Vec<f64>; 2] {
        let shape = |path: &str| self.shape(path).unwrap_or_default();
        self.plan.totals.elements(shape)
    }

    /// Where the statistics come from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The device the accumulators lie on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// # Errors
    /// [`Error::Shape`] unless gradients on `device` can be accumulated where these statistics lie.
    pub(super) fn check_device(&self, path: &str, device: &Device) -> Result<()> {
        if !device.is_autodiff() && *device == self.device {
            return Ok(());
        }
        Err(Error::Shape {
            parameter: path.into(),
            expected: format!("a gradient on {:?}, without autodiff", self.device),
            found: format!("one on {device:?}"),
        })
    }
    /// The statistics on another device, to go on or to merge them with others there: as pairs of
    /// float32 on one that has no float64 (twice float32's digits, in its range), and in float64 on
    /// one that has it, unless they were configured to be compensated. Both say the same number.
    #[must_use]
    pub fn to_device(mut self, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        if self.device == device {
            return self;
        }
        self.pending = None;
        let dtype = self.plan.dtype(&device);
        let tasks = std::mem::take(&mut self.tasks).into_iter();
        let moved = tasks.map(|(name, task)| (name, task.on(&device, dtype)));
        self.tasks = moved.collect();
        self.device = device;
        self
    }
}
