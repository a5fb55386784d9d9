//! `fisher join`: the results of several runs as those of one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use fisher_core::gradient::PerToken;
use fisher_core::statistics::Statistics;
use fisher_core::store::GradientStore;
use serde_json::{Value, json};

use crate::finish::{Work, done, load, phases};
use crate::measure::{
    Collection, GRADIENTS, Inputs, JoinArgs, Measured, Phases, Result, STATISTICS, key, model,
    only_measured, said,
};
use crate::out::Out;
use crate::runs::{Run, Unfinished, commands};
use crate::say::say;
use crate::words::count;

/// The runs that are joined, as one.
struct Joined {
    folders: Vec<PathBuf>,
    left_out: Vec<PathBuf>,
    inputs: Inputs,
    tasks: Vec<Measured>,
    /// The files of each task.
    files: BTreeMap<String, BTreeSet<String>>,
}

/// Join the runs and analyze them together.
///
/// # Errors
/// When a run is of another model or measured otherwise, is not finished, a sample is in two runs, or a file
/// cannot be read or written.
pub(crate) fn join(merge: &JoinArgs) -> Result {
    let start = Instant::now();
    let out = &merge.out;
    apart(merge)?;
    let _held = Out::claim(out, merge.resume)?;
    let device = merge.analysis.device.device()?;
    let checkpoint = load(&merge.model, &merge.loaded, &device)?;
    let joined = look(merge, &checkpoint.hash()?, model(&checkpoint.config))?;
    let files = joined.files();
    let tasks = joined.tasks;
    let phases = phases(&merge.analysis, tasks.len())?;
    let wanted = merge.analysis.keeps_gradients(&phases);
    let without = |run: &&PathBuf| !run.join(GRADIENTS).exists();
    if let (true, Some(run)) = (wanted, joined.folders.iter().find(without)) {
        return Err(format!(
            "{} kept no gradients to compare samples by; give --phases 1-4, or measure it with --keep-gradients",
            run.display()
        )
        .into());
    }
    let saved = joined.folders.iter().map(|run| run.join(STATISTICS));
    let saved: Vec<PathBuf> = saved.collect();
    Statistics::<PerToken>::join_files(&saved, out.join(STATISTICS), &device)?;
    joined.inputs.write(out)?;
    let statistics = Statistics::load(out.join(STATISTICS), &device)?;
    let store = if wanted {
        let store = match earlier(merge, &statistics, &tasks) {
            Some(store) => store,
            None => gradients(out, &joined.folders)?,
        };
        let store = store.with_heads(checkpoint.heads.clone());
        Some(store.with_device(&device))
    } else {
        None
    };
    for task in &tasks {
        only_measured(&statistics, store.as_ref(), &task.name, out)?;
    }
    say!(
        "Joined {} in {:.1} s.",
        count(joined.folders.len(), "run"),
        start.elapsed().as_secs_f64()
    );
    let collection = Collection {
        tasks,
        statistics,
        store,
    };
    let names = |folders: &[PathBuf]| -> Vec<String> {
        let names = folders.iter().filter_map(|run| run.file_name());
        names.map(|name| name.to_string_lossy().into()).collect()
    };
    let work = Work {
        checkpoint: &checkpoint,
        collection: &collection,
        analysis: &merge.analysis,
        phases: &phases,
        data: None,
        tokens: &[],
        settings: json!({
            "merged": names(&joined.folders),
            "left_out": names(&joined.left_out),
        }),
        files,
        start,
    };
    work.finish(out, &device)?;
    done(out, start);
    Ok(())
}

/// What is joined may not take the place of what it is joined from.
fn apart(merge: &JoinArgs) -> Result {
    let place = |path: &Path| path.canonicalize().ok();
    let out = place(&merge.out);
    let same = |run: &&PathBuf| out.is_some() && place(run) == out;
    match merge.runs.iter().find(same) {
        None => Ok(()),
        Some(run) => Err(format!(
            "{} is one of the runs: what is merged would take its place; give another folder",
            run.display()
        )
        .into()),
    }
}

/// Look at all runs, and tell everything that is wrong with them at once.
fn look(merge: &JoinArgs, hash: &str, config: String) -> Result<Joined> {
    let asked = merge.analysis.phases.as_ref();
    let gradients = asked.is_none_or(|Phases(phases)| merge.analysis.keeps_gradients(phases));
    let mut joined = Joined {
        folders: Vec::new(),
        left_out: Vec::new(),
        inputs: Inputs::empty(config),
        tasks: Vec::new(),
        files: BTreeMap::new(),
    };
    let mut seen: Seen = HashMap::new();
    let mut unfinished: Vec<Unfinished> = Vec::new();
    for folder in &merge.runs {
        let run = match Run::of(folder, gradients) {
            Ok(run) => run,
            Err(run) => {
                unfinished.push(run);
                continue;
            }
        };
        if run.model != hash {
            let [run, model] = [folder, &merge.model].map(|path| path.display());
            return Err(
                format!("{run} is of another model than {model}: its weights differ").into(),
            );
        }
        joined = joined.with(folder, run, &mut seen)?;
    }
    let mut wrong: Vec<String> = unfinished.iter().map(Unfinished::to_string).collect();
    wrong.extend(joined.missing(&unfinished));
    if joined.folders.is_empty() || !wrong.is_empty() && !merge.partial {
        let advice = match joined.folders.len() {
            0 => "There is nothing to join.".into(),
            n => format!(
                "The finished runs ({n} of {}) can be joined without the rest by --partial.",
                merge.runs.len()
            ),
        };
        return Err(format!("{}\n{advice}", wrong.join("\n")).into());
    }
    for wrong in &wrong {
        say!("  left out: {wrong}");
    }
    joined.left_out = unfinished.into_iter().map(|run| run.folder).collect();
    Ok(joined)
}

/// Ids of the samples that were seen of each task.
type Seen = HashMap<String, HashSet<String>>;

impl Joined {
    /// And a run, whose samples are in none before it.
    fn with(mut self, folder: &Path, run: Run, seen: &mut Seen) -> Result<Self> {
        let inputs = self.inputs.and(run.inputs);
        self.inputs = inputs.map_err(|e| format!("{}: {e}", folder.display()))?;
        for task in run.tasks {
            let seen = seen.entry(task.name.clone()).or_default();
            if let Some(twice) = task.ids.iter().map(key).find(|id| !seen.insert(id.clone())) {
                return Err(format!(
                    "sample `{twice}` of task `{}` is in {} and in a run before it; counting it twice would \
                     shrink the error bars",
                    task.name,
                    folder.display()
                )
                .into());
            }
            match self.tasks.iter_mut().find(|known| known.name == task.name) {
                Some(known) => extend(known, task),
                None => self.tasks.push(task),
            }
        }
        for (task, files) in run.files {
            self.files.entry(task).or_default().extend(files);
        }
        self.folders.push(folder.into());
        Ok(self)
    }

    /// The parts that no run measured. What is not finished is missing for that reason, and is told of anyway.
    fn missing(&self, unfinished: &[Unfinished]) -> Vec<String> {
        let mut missing = Vec::new();
        for (task, mut parts) in self.inputs.missing() {
            parts.retain(|part| !unfinished.iter().any(|run| run.is(task, *part)));
            if !parts.is_empty() {
                let what = if parts.len() == 1 { "part" } else { "parts" };
                let commands = commands(&self.folders, task, &parts);
                let again = match &*commands {
                    [] => "; measure it as the others were: fisher measure .. --part INDEX/OF --out DIR".into(),
                    [one] => format!("; it is measured by\n    {one}"),
                    many => {
                        let more = if parts.len() > many.len() { "\n    .." } else { "" };
                        format!("; they are measured by\n    {}{more}", many.join("\n    "))
                    }
                };
                missing.push(format!(
                    "of task `{task}` there is no run of {what} {}{again}",
                    said(&parts)
                ));
            }
        }
        missing
    }

    /// The file of each task, or a list where there are several.
    fn files(&self) -> Value {
        let files = self.files.iter().map(|(task, files)| {
            let mut all = files.iter();
            let value = match (all.next(), all.next()) {
                (Some(one), None) => json!(one),
                _ => json!(files),
            };
            (task.clone(), value)
        });
        Value::Object(files.collect())
    }
}

fn extend(task: &mut Measured, other: Measured) {
    task.ids.extend(other.ids);
    task.tokens.extend(other.tokens);
    task.losses.extend(other.losses);
    task.bad_lines.extend(other.bad_lines);
    task.skipped.extend(other.skipped);
}

/// The gradients that an earlier call has joined; what it left half done is removed.
fn earlier(merge: &JoinArgs, statistics: &Statistics, tasks: &[Measured]) -> Option<GradientStore> {
    let folder = merge.out.join(GRADIENTS);
    let store = GradientStore::open(&folder).ok();
    let whole = |store: &GradientStore| {
        let mut tasks = tasks.iter();
        tasks.all(|t| only_measured(statistics, Some(store), &t.name, &merge.out).is_ok())
    };
    let store = store.filter(whole);
    if store.is_none() && folder.exists() {
        tracing::warn!(folder = %folder.display(), "half of a store: joined anew");
    }
    store
}

/// The gradients of all runs, in one store.
fn gradients(out: &Path, runs: &[PathBuf]) -> Result<GradientStore> {
    let folder = out.join(GRADIENTS);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .map_err(|e| format!("cannot remove {}: {e}", folder.display()))?;
    }
    let runs: Vec<PathBuf> = runs.iter().map(|run| run.join(GRADIENTS)).collect();
    Ok(GradientStore::join_folders(&runs, folder)?)
}
