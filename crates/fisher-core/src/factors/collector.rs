//! Factors as a sink of gradients.

use std::collections::BTreeMap;

use super::block::{Block, Form, Layout};
use super::positions::Positions;
use super::task::TaskFactors;
use crate::error::{Error, Result, list};
use crate::gradient::{ContributionUnit, GradientSink, PerToken, SampleGradient};
use crate::kind::FisherKind;
use crate::provenance::Provenance;
use crate::read::read;
use crate::sample::{Sample, SampleRecord, check_new};

/// Factors of several tasks: a [`GradientSink`].
#[derive(Debug, Clone)]
pub struct Factors {
    pub(super) provenance: Provenance,
    pub(super) positions: Positions,
    pub(super) layouts: BTreeMap<String, Layout>,
    pub(super) tasks: BTreeMap<String, TaskFactors>,
    pub(super) pending: Option<Pending>,
}

/// A batch that was begun.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    task: String,
    samples: Vec<Sample>,
    gradients: BTreeMap<String, SampleGradient>,
    prepared: bool,
}

impl Factors {
    /// Where they come from. Their unit is `per_token`.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// What a layer's positions are taken to be to each other.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// The parameters that have factors, and their shapes.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let layouts = self.layouts.iter();
        layouts.map(|(path, layout)| (&**path, &*layout.shape))
    }

    /// Names of the tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The factors of a task.
    ///
    /// # Errors
    /// [`Error::UnknownTask`]
    pub fn task(&self, task: &str) -> Result<&TaskFactors> {
        self.tasks.get(task).ok_or_else(|| Error::UnknownTask {
            task: task.into(),
            known: list(self.tasks.keys()),
        })
    }

    /// Take in what others have seen: other samples of the same parameters of the same model. Sums are added.
    ///
    /// # Errors
    /// [`Error::Incompatible`] when kind, model, parameters, positions or what gradients were made of differ,
    /// [`Error::DuplicateSample`] when a sample is in both. Nothing is changed then.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        self.provenance.compatible(&other.provenance)?;
        let differs = |what: &str, ours: String, theirs: String| Error::Incompatible {
            what: what.into(),
            ours,
            theirs,
        };
        if self.positions != other.positions {
            let [ours, theirs] = [self.positions, other.positions].map(|of| of.name().to_owned());
            return Err(differs("what positions are to each other", ours, theirs));
        }
        if self.layouts != other.layouts {
            let [ours, theirs] = [&self.layouts, &other.layouts].map(|of| list(of.keys()));
            return Err(differs("the parameters and their sides", ours, theirs));
        }
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
            for (path, block) in &theirs.blocks {
                let ours = ours.blocks.get(path).and_then(|block| block.form);
                if let (Some(ours), Some(theirs)) = (ours, block.form)
                    && ours != theirs
                {
                    let what = format!("what the gradients of `{path}` were found as");
                    return Err(differs(&what, ours.name().into(), theirs.name().into()));
                }
            }
        }
        self.provenance.absorb(other.provenance);
        for (name, theirs) in other.tasks {
            let ours = self.tasks.entry(name).or_default();
            ours.count += theirs.count;
            ours.samples.extend(theirs.samples);
            for (path, block) in theirs.blocks {
                match ours.blocks.get_mut(&path) {
                    Some(ours) => ours.merge(&block),
                    None => {
                        ours.blocks.insert(path, block);
                    }
                }
            }
        }
        Ok(())
    }

    fn check_new(&self, task: &str, samples: &[Sample]) -> Result<()> {
        let seen = self.tasks.get(task).map(|of_task| &of_task.samples);
        check_new(task, samples, |id| {
            seen.is_some_and(|seen| seen.contains(None, id))
        })
    }

    fn of_task(&mut self, task: String) -> &mut TaskFactors {
        let layouts = &self.layouts;
        self.tasks.entry(task).or_insert_with(|| {
            let block = |(path, layout): (&String, &Layout)| (path.clone(), Block::new(layout));
            TaskFactors {
                blocks: layouts.iter().map(block).collect(),
                ..TaskFactors::default()
            }
        })
    }
}

impl GradientSink for Factors {
    fn wants(&self, path: &str) -> bool {
        self.layouts.contains_key(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        Some(self.provenance.kind).filter(|kind| *kind != found)
    }

    /// # Errors
    /// [`Error::SampleTwice`] when a sample has been seen before or is twice in the batch.
    fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<()> {
        self.pending = None;
        self.check_new(task, samples)?;
        self.pending = Some(Pending {
            task: task.into(),
            samples: samples.to_vec(),
            gradients: BTreeMap::new(),
            prepared: false,
        });
        Ok(())
    }

    /// # Errors
    /// [`Error::UnknownParameter`] when it has no factors, [`Error::ParameterTwice`] when it has come before,
    /// [`Error::Shape`] when the gradients are not of its shape, [`Error::Form`] when they were found in another form
    /// before, [`Error::NoBatch`] when none was begun.
    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        let Some(layout) = self.layouts.get(path) else {
            return Err(Error::UnknownParameter {
                parameter: path.into(),
                known: list(self.layouts.keys()),
            });
        };
        let pending = self.pending.as_mut().ok_or(Error::NoBatch)?;
        gradient.check(path, pending.samples.len(), &layout.shape)?;
        if pending.gradients.contains_key(path) {
            return Err(Error::ParameterTwice {
                parameter: path.into(),
            });
        }
        let of_task = self.tasks.get(&pending.task);
        let before = of_task.and_then(|of_task| of_task.blocks.get(path)?.form);
        if let (Some(before), Some(now)) = (before, Form::of(&gradient))
            && before != now
        {
            return Err(Error::Form {
                parameter: path.into(),
                before: before.name(),
                now: now.name(),
            });
        }
        pending.gradients.insert(path.into(), gradient);
        Ok(())
    }

    /// # Errors
    /// [`Error::MissingParameter`] when one has not come, [`Error::NonFinite`] when a gradient is NaN or infinite,
    /// [`Error::Device`] when the device does not give values, [`Error::NoBatch`] when no batch was begun.
    fn prepare(&mut self) -> Result<()> {
        let mut pending = self.pending.take().ok_or(Error::NoBatch)?;
        if !pending.prepared {
            let mut paths = self.layouts.keys();
            if let Some(path) = paths.find(|path| !pending.gradients.contains_key(*path)) {
                return Err(Error::MissingParameter {
                    parameter: path.clone(),
                });
            }
            pending.check_finite()?;
            pending.prepared = true;
        }
        self.pending = Some(pending);
        Ok(())
    }

    /// # Errors
    /// Those of [`prepare`](GradientSink::prepare).
    fn commit(&mut self) -> Result<()> {
        self.prepare()?;
        let pending = self.pending.take().ok_or(Error::NoBatch)?;
        if pending.samples.is_empty() {
            return Ok(());
        }
        let positions = self.positions;
        let root = |sample: &Sample| PerToken::root(sample.tokens());
        let roots: Vec<f64> = pending.samples.iter().map(root).collect();
        // Sums of the batch first: what a device refuses halfway leaves the task as it was.
        let mut sums = Vec::new();
        for (path, gradient) in &pending.gradients {
            let mut block = Block::new(&self.layouts[path]);
            block.push(gradient, &roots, positions)?;
            sums.push((path, block));
        }
        let of_task = self.of_task(pending.task);
        for (path, block) in sums {
            if let Some(ours) = of_task.blocks.get_mut(path) {
                ours.merge(&block);
            }
        }
        of_task.count += pending.samples.len() as u64;
        let records = pending.samples.iter().map(SampleRecord::from);
        records.for_each(|record| of_task.samples.push(record));
        Ok(())
    }

    fn forget(&mut self) {
        self.pending = None;
    }

    /// # Errors
    /// [`Error::SampleTwice`] when the sample has been seen before.
    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> Result<()> {
        self.check_new(task, std::slice::from_ref(sample))?;
        let record = SampleRecord {
            skipped: Some(parameter.into()),
            ..sample.into()
        };
        self.of_task(task.into()).samples.push(record);
        Ok(())
    }
}

impl Pending {
    /// Whether all values are finite.
    fn check_finite(&self) -> Result<()> {
        if self.samples.is_empty() {
            return Ok(());
        }
        for (path, gradient) in &self.gradients {
            for probe in gradient.probes() {
                if read(probe)?[0].is_finite() {
                    continue;
                }
                let sample = self.samples.iter().enumerate().find(|(at, _)| {
                    let probes = gradient.sample(*at).probes().into_iter();
                    probes
                        .map(read)
                        .any(|sum| sum.map_or(true, |sum| !sum[0].is_finite()))
                });
                // Sums of all samples alone may be out of range.
                if let Some((_, sample)) = sample {
                    return Err(Error::NonFinite {
                        sample: sample.id().into(),
                        parameter: path.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}
