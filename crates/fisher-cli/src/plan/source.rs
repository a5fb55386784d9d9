//! What a finished run offers to a plan.

use std::path::Path;

use burn::tensor::Device;
use fisher_core::clusters::cluster_numbers;
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::statistics::Statistics;
use fisher_core::store::GradientStore;

use crate::measure::{GRADIENTS, Progress, Result, STATISTICS, Selection, only_measured};
use crate::models::Checkpoint;

/// Statistics, and gradients of single samples where the run kept them.
#[derive(Debug)]
pub struct Source {
    /// Statistics.
    pub statistics: Statistics,
    /// Gradients of single samples.
    pub store: Option<GradientStore>,
    /// The tasks whose loss counts, all alike.
    pub tasks: Vec<String>,
    /// The matrices that are planned for.
    pub matrices: Vec<Parameter>,
}

/// F of the elements of a matrix.
#[derive(Debug, Clone)]
pub struct Elements {
    /// The mean over tasks of F.
    pub mean: Vec<f64>,
    /// Its standard errors, if variances were kept.
    pub errors: Option<Vec<f64>>,
}

impl Source {
    /// Read a run, and what of it is of the matrices meant.
    ///
    /// # Errors
    /// When the run is of another model than `checkpoint`, has no such task, or nothing is left to plan for.
    pub fn open(
        run: &Path,
        checkpoint: Option<&Checkpoint>,
        task: Option<&str>,
        params: &Selection,
        device: &Device,
    ) -> Result<Self> {
        let statistics: Statistics = Statistics::load(run.join(STATISTICS), device)?;
        let (catalogue, heads) = match checkpoint {
            Some(checkpoint) if checkpoint.hash()? != statistics.provenance().model => {
                let [run, model] = [run, &*checkpoint.folder].map(Path::display);
                return Err(format!(
                    "{run} is not a run of {model} in float32: its weights differ, or it was measured with another \
                     --dtype"
                )
                .into());
            }
            Some(checkpoint) => (checkpoint.catalogue.clone(), checkpoint.heads.clone()),
            None => (catalogue(&statistics)?, HeadLayout::none()),
        };
        let tasks: Vec<String> = match task {
            Some(task) => {
                statistics.task(task)?;
                vec![task.into()]
            }
            None => statistics.tasks().map(str::to_owned).collect(),
        };
        let group = params.of(&catalogue, &heads)?;
        let group = group.ok_or("--params none leaves nothing to plan for")?;
        let matrices: Vec<Parameter> = catalogue
            .filter(&group)?
            .parameters()
            .iter()
            .filter(|p| p.role() == Role::Matrix && p.shape().len() == 2)
            .filter(|p| statistics.shape(p.path()).is_some())
            .cloned()
            .collect();
        if matrices.is_empty() {
            return Err("no matrix that was measured is among --params".into());
        }
        let store = store(run, &statistics, &tasks, &matrices)?;
        Ok(Self {
            statistics,
            store,
            tasks,
            matrices,
        })
    }

    /// Of work on one matrix after the other.
    pub(super) fn progress(&self, what: &str) -> Progress {
        let weights = self.matrices.iter().map(|matrix| matrix.elements() as u64);
        Progress::of(what, weights.sum(), "weights")
    }

    /// F of every element of a matrix, each task alike.
    ///
    /// # Errors
    /// When it was not measured by element.
    pub fn elements(&self, path: &str) -> Result<Elements> {
        let count = self.tasks.len() as f64;
        let mut all: Option<Elements> = None;
        for task in &self.tasks {
            let parameter = self.statistics.task(task)?.parameter(path)?;
            let moments = parameter.elementwise().map(|of| of.read()).transpose()?;
            let found = moments.and_then(|moments| {
                let errors = moments.standard_error;
                Some((moments.mean?, errors))
            });
            let (mean, errors) = found.ok_or_else(|| {
                format!(
                    "a plan needs F of every element of {path}, which this run did not keep: measure with --params \
                     all and --elements all, or plan without it by --params"
                )
            })?;
            let squares = errors.map(|errors| errors.iter().map(|e| e * e).collect::<Vec<f64>>());
            all = Some(match all {
                None => Elements {
                    mean,
                    errors: squares,
                },
                Some(before) => Elements {
                    mean: add(before.mean, &mean),
                    errors: before.errors.zip(squares).map(|(a, b)| add(a, &b)),
                },
            });
        }
        let all = all.ok_or("the run has no task")?;
        Ok(Elements {
            mean: all.mean.iter().map(|sum| sum / count).collect(),
            errors: all
                .errors
                .map(|squares| squares.iter().map(|sum| sum.sqrt() / count).collect()),
        })
    }

    /// Show the gradient of every sample of a matrix with the weight of its squares in F, times the number of all samples:
    /// `1/T_i` where there is one task. In the order of [`Source::clusters`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn each_sample(
        &self,
        store: &GradientStore,
        path: &str,
        mut see: impl FnMut(usize, f64, &[f32]),
    ) -> Result {
        let elements = store.catalogue().require(path)?.elements();
        let all: usize = self
            .tasks
            .iter()
            .map(|task| store.samples(task).len())
            .sum();
        let mut at = 0;
        for task in &self.tasks {
            let samples = store.samples(task);
            let share = all as f64 / (self.tasks.len() * samples.len()) as f64;
            for (number, sample) in samples.iter().enumerate() {
                let row = store.row(task, number, path, 0..elements)?;
                see(at, share / sample.tokens() as f64, &row);
                at += 1;
            }
        }
        Ok(())
    }

    /// The cluster of each sample of the store, task by task.
    pub fn clusters(&self, store: &GradientStore) -> Vec<usize> {
        let mut all: Vec<usize> = Vec::new();
        for task in &self.tasks {
            let before = all.iter().max().map_or(0, |last| last + 1);
            let of_task = cluster_numbers(store.samples(task).iter().map(|s| s.cluster()));
            all.extend(of_task.into_iter().map(|cluster| before + cluster));
        }
        all
    }

    /// Samples of all tasks in the statistics.
    ///
    /// # Errors
    /// When a task is not there.
    pub fn samples(&self) -> Result<usize> {
        let counts = self
            .tasks
            .iter()
            .map(|task| Ok(self.statistics.task(task)?.count()));
        counts.sum()
    }
}

fn add(mut sums: Vec<f64>, values: &[f64]) -> Vec<f64> {
    sums.iter_mut()
        .zip(values)
        .for_each(|(sum, value)| *sum += value);
    sums
}

/// The gradients that the run kept, if it did of all these matrices.
fn store(
    run: &Path,
    statistics: &Statistics,
    tasks: &[String],
    matrices: &[Parameter],
) -> Result<Option<GradientStore>> {
    let folder = run.join(GRADIENTS);
    if !folder.exists() {
        return Ok(None);
    }
    let store = GradientStore::open(&folder)?;
    let ours = store.model() == statistics.provenance().model
        && store.kind() == statistics.provenance().kind;
    let mut kept = matrices.iter();
    if !ours || !kept.all(|matrix| store.catalogue().get(matrix.path()).is_some()) {
        return Ok(None);
    }
    for task in tasks {
        only_measured(statistics, Some(&store), task, run)?;
    }
    Ok(Some(store))
}

/// The parameters of statistics. On which side their inputs are is not known, and does not matter to ranks.
fn catalogue(statistics: &Statistics) -> Result<Catalogue> {
    let parameters = statistics.paths().map(|path| {
        let shape = statistics.shape(path).unwrap_or_default();
        let role = statistics.role(path).unwrap_or(Role::Vector);
        Parameter::new(path, shape, role, Orientation::OutputInput)
    });
    Ok(Catalogue::new(parameters.collect())?)
}
