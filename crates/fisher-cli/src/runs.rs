//! What a run left in its folder, and what makes up for one that is not finished.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use fisher_core::statistics::SavedSamples;
use fisher_core::store::GradientStore;
use serde::Deserialize;

use crate::measure::{
    COMMAND, GRADIENTS, INPUTS, Inputs, Measured, REPORT, Result, STATISTICS, key,
};
use crate::samples::Part;

/// A run that is finished.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) tasks: Vec<Measured>,
    pub(crate) inputs: Inputs,
    /// The hash of the model's weights.
    pub(crate) model: String,
    /// The file of each task, or the files where runs were joined.
    pub(crate) files: BTreeMap<String, Vec<String>>,
}

/// A run that is not, and why.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub(crate) folder: PathBuf,
    reason: String,
    inputs: Option<Inputs>,
}

/// What of a report says what was measured.
#[derive(Deserialize)]
struct Report {
    order: Vec<String>,
    tasks: BTreeMap<String, Measured>,
    run: About,
}

#[derive(Deserialize)]
struct About {
    files: Option<BTreeMap<String, Files>>,
}

/// One file or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    One(String),
    Several(Vec<String>),
}

impl From<Files> for Vec<String> {
    fn from(files: Files) -> Self {
        match files {
            Files::One(file) => vec![file],
            Files::Several(files) => files,
        }
    }
}

impl Run {
    /// Look at a run; if its gradients are wanted and it kept any, at these as well.
    ///
    /// # Errors
    /// Why it is not finished.
    pub(crate) fn of(folder: &Path, gradients: bool) -> std::result::Result<Self, Unfinished> {
        let unfinished = |e: Box<dyn std::error::Error>| Unfinished {
            folder: folder.into(),
            reason: e.to_string(),
            inputs: Inputs::read(folder).ok(),
        };
        Self::read(folder, gradients).map_err(unfinished)
    }

    /// A run that something is to be made of.
    ///
    /// # Errors
    /// When the folder is no run, or one that is not finished.
    pub(crate) fn finished(folder: &Path) -> Result<Self> {
        let no_run = |why: &str| {
            format!(
                "{} is no run: {why}; give what --out of `fisher measure` or `fisher join` was",
                folder.display()
            )
        };
        if !folder.exists() {
            return Err(no_run("there is no such folder").into());
        }
        let mut files = [INPUTS, STATISTICS, COMMAND].iter();
        if !files.any(|file| folder.join(file).exists()) {
            return Err(no_run(&format!("it has neither {INPUTS} nor {STATISTICS}")).into());
        }
        Self::of(folder, false).map_err(|run| run.to_string().into())
    }

    fn read(folder: &Path, gradients: bool) -> Result<Self> {
        if !folder.is_dir() {
            return Err("there is no such folder".into());
        }
        let inputs = Inputs::read(folder).map_err(|e| format!("it never began to measure: {e}"))?;
        let statistics = folder.join(STATISTICS);
        let all: usize = inputs.tasks.values().map(BTreeMap::len).sum();
        if !statistics.exists() {
            return Err(format!("0 of {all} samples are counted").into());
        }
        let statistics = SavedSamples::read(statistics)?;
        if !folder.join(REPORT).exists() {
            let counted = statistics.count();
            return Err(
                format!("{counted} of {all} samples are counted, and it has no report").into(),
            );
        }
        let (tasks, files) = report(&folder.join(REPORT))?;
        let store = if gradients && folder.join(GRADIENTS).exists() {
            Some(GradientStore::open(folder.join(GRADIENTS))?)
        } else {
            None
        };
        for task in &tasks {
            complete(&statistics, store.as_ref(), task)?;
        }
        // What a later call has begun is not in the report of the one before.
        let told = |name: &str| tasks.iter().any(|task| task.name == name);
        for (name, all) in inputs.tasks.iter().filter(|(name, _)| !told(name)) {
            let counted = statistics.samples(name).len();
            if (1..all.len()).contains(&counted) {
                return Err(format!(
                    "{counted} of {} samples of task `{name}` are counted, and its report has none",
                    all.len()
                )
                .into());
            }
        }
        Ok(Self {
            tasks,
            inputs,
            model: statistics.provenance().model.clone(),
            files,
        })
    }
}

/// Tasks, and the files of each.
type Told = (Vec<Measured>, BTreeMap<String, Vec<String>>);

/// The tasks of a run and their files, as its report has them.
fn report(path: &Path) -> Result<Told> {
    let read = || -> Result<Told> {
        let mut report: Report = serde_json::from_reader(BufReader::new(File::open(path)?))?;
        let of = |task: &String| report.tasks.remove(task);
        let tasks: Option<Vec<Measured>> = report.order.iter().map(of).collect();
        let files = report.run.files.into_iter().flatten();
        let files = files.map(|(task, files)| (task, files.into()));
        Ok((tasks.ok_or("a task is not in it")?, files.collect()))
    };
    read().map_err(|e| format!("{} is not a report: {e}", path.display()).into())
}

/// The commands that measure `parts` of a task (the first 20) as one of these runs measured another part of it: none
/// where no run has its own.
pub(crate) fn commands(runs: &[PathBuf], task: &str, parts: &[Part]) -> Vec<String> {
    let of = |folder: &&PathBuf| {
        let inputs = Inputs::read(folder).ok();
        let ours = inputs.and_then(|mut inputs| inputs.parts.remove(task));
        let like = |part: &Part| parts.iter().any(|other| other.of == part.of);
        folder.join(COMMAND).exists() && ours.is_some_and(|ours| ours.iter().any(like))
    };
    let Some(folder) = runs.iter().find(of) else {
        return Vec::new();
    };
    let config = folder.join(COMMAND);
    let written = std::fs::read_to_string(&config).unwrap_or_default();
    let placed = written.contains("{part}");
    let command = |part: &Part| {
        let out = match placed {
            true => String::new(),
            false => format!(" --out {}-part-{}", folder.display(), part.index),
        };
        format!(
            "fisher measure --config {} --part {part}{out}",
            config.display()
        )
    };
    const SHOWN: usize = 20;
    parts.iter().take(SHOWN).map(command).collect()
}

/// Whether a run's report is of all that its statistics count and its store has.
fn complete(statistics: &SavedSamples, store: Option<&GradientStore>, task: &Measured) -> Result {
    let counted = statistics.samples(&task.name).iter();
    let counted = counted.filter(|sample| sample.skipped.is_none());
    let counted: HashSet<&str> = counted.map(|sample| &*sample.id).collect();
    let told: Vec<String> = task.ids.iter().map(key).collect();
    if counted != told.iter().map(String::as_str).collect() {
        return Err(format!(
            "its statistics count {} samples of task `{}`, its report {}",
            counted.len(),
            task.name,
            told.len()
        )
        .into());
    }
    if let Some(store) = store {
        let stored = store.samples(&task.name);
        if stored.len() != counted.len() || stored.iter().any(|s| !counted.contains(s.id())) {
            return Err(format!(
                "its statistics count {} samples of task `{}`, and it holds gradients of {}",
                counted.len(),
                task.name,
                stored.len()
            )
            .into());
        }
    }
    Ok(())
}

impl Unfinished {
    /// Whether this is what was to measure a part of a task.
    pub(crate) fn is(&self, task: &str, part: Part) -> bool {
        let parts = self
            .inputs
            .as_ref()
            .and_then(|inputs| inputs.parts.get(task));
        parts.is_some_and(|parts| parts.contains(&part))
    }

    /// The command by which it goes on.
    fn again(&self) -> String {
        let config = self.folder.join(COMMAND);
        if config.exists() {
            return format!("fisher measure --config {} --resume", config.display());
        }
        let parts = self
            .inputs
            .iter()
            .flat_map(|inputs| inputs.parts.values().flatten());
        let part = parts.take(1).map(|part| format!("--part {part} "));
        format!(
            "fisher measure .. {}--out {} --resume",
            part.collect::<String>(),
            self.folder.display()
        )
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} was not finished: {}; it goes on by\n    {}",
            self.folder.display(),
            self.reason,
            self.again()
        )
    }
}
