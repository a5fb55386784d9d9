//! What captures found, over the course of training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fisher_core::moments::SampleMoments;
use fisher_core::statistics::Statistics;
use fisher_metrics::picture::{ColorScale, HeatMap, Picture};
use fisher_metrics::report::{finite, if_finite};
use serde::{Deserialize, Serialize};

use super::cosine::AcrossTasks;
use super::folder::{failed, parse};
use super::lines::Lines;
use super::noise_scale::NoiseScale;
use super::schedule::TrainingPoint;
use crate::error::{Error, Result};

/// The version of the lines that this library writes and reads.
pub const HISTORY_SCHEMA: u64 = 1;

/// What one capture found: a line of the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// [`HISTORY_SCHEMA`].
    pub schema: u64,
    /// Batches that the weights were trained on.
    pub step: u64,
    /// Epochs that were over.
    pub epoch: u64,
    /// By the name of the task.
    pub tasks: BTreeMap<String, TaskReading>,
    /// The noise scale over the samples of all tasks, where that was asked for.
    pub noise: Option<NoiseScale>,
    /// How gradients of different tasks lie to each other, where that was asked for.
    pub across: Option<AcrossTasks>,
}

/// What one capture found of one task. Fisher numbers are means over samples of `g²/T`, summed over
/// the elements they span.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskReading {
    /// Samples counted.
    pub samples: usize,
    /// Samples left out because their gradient was not finite.
    pub skipped: usize,
    /// Active tokens of the samples counted.
    pub tokens: u64,
    /// The loss of an active token, in nats; `None` when no sample was counted, or it is no number.
    pub loss: Option<f64>,
    /// The Fisher of all parameters together; `None` likewise.
    pub trace: Option<f64>,
    /// Whole layers.
    pub layers: Vec<PartReading>,
    /// Whole attention heads.
    pub heads: Vec<PartReading>,
    /// Groups, where that was asked for: path to label to means (in the statistics' reduction).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
    /// The noise scale, where that was asked for.
    pub noise: Option<NoiseScale>,
}

/// The Fisher of a layer or head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartReading {
    /// Its name.
    pub name: String,
    /// Its Fisher.
    pub fisher: f64,
    /// The standard error over samples; `None` for fewer than two, or beyond the range of what it was
    /// accumulated in.
    pub standard_error: Option<f64>,
}

impl TaskReading {
    /// `loss` is summed over samples.
    pub(crate) fn of(
        statistics: &Statistics,
        task: &str,
        loss: f64,
        groups: bool,
        noise: Option<NoiseScale>,
    ) -> Result<Self> {
        let of_task = statistics.task(task)?;
        let totals = statistics.totals();
        let layers = parts(totals.layers().iter().cloned(), of_task.layers())?;
        let names = totals.heads().iter();
        let names = names.map(|key| format!("{} head {}", key.attention, key.head));
        let heads = parts(names, of_task.heads())?;
        let (samples, tokens) = (of_task.count(), of_task.tokens());
        let mut of_groups = BTreeMap::new();
        for (path, parameter) in of_task.parameters().filter(|_| groups) {
            let mut labels = BTreeMap::new();
            for (grouping, welford) in parameter.groups() {
                let means = welford.read()?.mean.unwrap_or_default();
                labels.insert(grouping.label().to_owned(), means);
            }
            of_groups.insert(path.to_owned(), labels);
        }
        Ok(Self {
            samples,
            skipped: of_task.samples().len() - samples,
            tokens,
            loss: (tokens > 0)
                .then(|| loss / tokens as f64)
                .filter(|loss| loss.is_finite()),
            trace: (samples > 0).then(|| layers.iter().map(|layer| layer.fisher).sum()),
            layers,
            heads,
            groups: of_groups,
            noise,
        })
    }

    /// The largest share that one of `parts` has of the trace, and which.
    pub(crate) fn top(&self, parts: &[PartReading]) -> Option<f64> {
        let trace = self.trace.filter(|trace| *trace > 0.0)?;
        let top = parts.iter().map(|part| part.fisher).reduce(f64::max);
        top.map(|top| top / trace)
    }
}

fn parts(names: impl Iterator<Item = String>, read: SampleMoments) -> Result<Vec<PartReading>> {
    let Some(means) = read.mean else {
        return Ok(Vec::new());
    };
    let part = |(i, name): (usize, String)| {
        let errors = read.standard_error.as_ref();
        Ok(PartReading {
            fisher: finite(means[i], &name)?,
            standard_error: errors.and_then(|errors| if_finite(errors[i])),
            name,
        })
    };
    names.enumerate().map(part).collect()
}

/// The readings of a run of training, in the order they were taken.
///
/// In a file it is JSON, one [`Reading`] a line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    readings: Vec<Reading>,
}

impl History {
    /// The readings.
    pub fn readings(&self) -> &[Reading] {
        &self.readings
    }

    pub(crate) fn push(&mut self, reading: Reading) {
        self.readings.push(reading);
    }

    /// The readings of these lines.
    pub(crate) fn parse(lines: &[String]) -> serde_json::Result<Self> {
        let readings = lines.iter().map(|line| serde_json::from_str(line));
        let readings = readings.collect::<serde_json::Result<_>>()?;
        Ok(Self { readings })
    }

    /// Names of the tasks.
    pub fn tasks(&self) -> Vec<&str> {
        let tasks = self
            .readings
            .iter()
            .flat_map(|reading| reading.tasks.keys());
        let mut tasks: Vec<&str> = tasks.map(String::as_str).collect();
        tasks.sort_unstable();
        tasks.dedup();
        tasks
    }

    /// Read a file of lines. A last line that was cut off, as by a program that was killed, is left
    /// out. Numbers may be off in their last digit.
    ///
    /// # Errors
    /// [`fisher_core::Error::Io`] when the file cannot be read, [`fisher_core::Error::Format`]
    /// naming the first line that is no reading, [`fisher_core::Error::Version`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| failed(path, e))?;
        let mut readings = Vec::new();
        for (number, line) in text.split_inclusive('\n').enumerate() {
            let Some(line) = line.strip_suffix('\n') else {
                break;
            };
            let place = format!("line {}: ", number + 1);
            readings.push(parse(path, &place, line.as_bytes(), HISTORY_SCHEMA)?);
        }
        Ok(Self { readings })
    }

    /// How the shares of the attention heads in the trace of `task` move: a row for each head, a
    /// column for each reading (of some of them, where there are many). `None` where nothing was
    /// read of the task, or it has no heads.
    pub fn picture(&self, task: &str) -> Option<Picture> {
        /// Columns that still have room.
        const COLUMNS: usize = 24;
        let of_task = |reading| -> Option<(&Reading, &TaskReading)> {
            let reading: &Reading = reading;
            let of_task = reading.tasks.get(task)?;
            (!of_task.heads.is_empty()).then_some((reading, of_task))
        };
        let all: Vec<_> = self.readings.iter().filter_map(of_task).collect();
        let heads = &all.first()?.1.heads;
        let step = all.len().div_ceil(COLUMNS).max(1);
        // The last reading is always among them.
        let shown: Vec<_> = all.iter().rev().step_by(step).rev().collect();
        let share = |(_, task): &&(_, &TaskReading), head: usize| {
            let trace = task.trace.filter(|trace| *trace > 0.0)?;
            Some(100.0 * task.heads.get(head)?.fisher / trace)
        };
        let row = |head: usize| shown.iter().map(|column| share(column, head)).collect();
        let values: Vec<Vec<Option<f64>>> = (0..heads.len()).map(row).collect();
        let map = HeatMap {
            title: task.to_owned(),
            rows: heads.iter().map(|head| short(&head.name)).collect(),
            columns: shown.iter().map(|(r, _)| r.step.to_string()).collect(),
            axes: ["head".into(), "batches trained on".into()],
            marked: vec![vec![false; shown.len()]; heads.len()],
            values,
            scale: ColorScale::Sequential,
            quantity: "% of the trace".into(),
        };
        let note = match step {
            1 => "Every capture is shown.".into(),
            step => format!("One capture in {step} is shown."),
        };
        Some(Picture {
            title: format!("Share of each attention head in the Fisher trace of {task}"),
            note,
            maps: vec![map],
        })
    }
}

/// `transformer.layers.1.mha head 2` as `layer 1 head 2`.
fn short(name: &str) -> String {
    let numbered = name.split_once("layers.").map(|(_, rest)| rest);
    let layer: Option<&str> = numbered.and_then(|rest| rest.split('.').next());
    match (layer, name.split_once(" head ")) {
        (Some(layer), Some((_, head))) => format!("layer {layer} head {head}"),
        _ => name.to_owned(),
    }
}

/// The file that readings are added to.
#[derive(Debug)]
pub(crate) struct HistoryFile {
    path: PathBuf,
    lines: Option<Lines>,
}

impl HistoryFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, lines: None }
    }

    /// Begin the file anew with these lines. What was there stays where that fails.
    pub(crate) fn begin(&mut self, lines: &[String]) -> Result<()> {
        let begun = Lines::replace(&self.path, lines);
        self.lines = Some(begun.map_err(|e| failed(&self.path, e))?);
        Ok(())
    }

    /// Add a line, whole or not at all.
    pub(crate) fn append(&mut self, line: &str) -> Result<()> {
        let line = [line.to_owned()];
        match &mut self.lines {
            Some(lines) => lines.append(&line).map_err(|e| failed(&self.path, e)),
            None => self.begin(&line),
        }
    }
}

impl Reading {
    pub(crate) fn new(moment: TrainingPoint, tasks: BTreeMap<String, TaskReading>) -> Self {
        Self {
            schema: HISTORY_SCHEMA,
            step: moment.step,
            epoch: moment.epoch,
            tasks,
            noise: None,
            across: None,
        }
    }

    pub(crate) fn line(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Hook {
            reason: format!("a reading cannot be written as JSON: {e}"),
        })
    }
}
