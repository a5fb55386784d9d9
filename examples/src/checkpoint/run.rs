//! A run of `checkpoint`: read, measure, analyse, write.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use fisher_core::{Catalogue, GradientStore, Statistics};
use serde_json::{Value, json};

use super::Result;
use super::analysis::{Findings, Plan};
use super::args::{Analysis, Cli, Phases, Run, Selection};
use super::collect::{Collection, GRADIENTS, STATISTICS, collect};
use super::inputs::Inputs;
use super::join::join;
use super::jsonl::{Reader, TaskData};
use super::measured::Measured;
use super::page::Page;
use super::results::{Tensors, report};
use super::text::Text;
use super::uses::{MERGED, own_statistics, second, uses};
use crate::decoder::{Architecture, Checkpoint};
use crate::memory::resident;

/// What the command line says.
///
/// # Errors
/// Whatever kept it from being done, in words.
pub fn run(cli: &Cli) -> Result {
    match cli {
        Cli::Run(run) => measure(run),
        Cli::Merge(merge) => join(merge),
    }
}

fn measure(run: &Run) -> Result {
    let start = Instant::now();
    let phases = phases(&run.analysis, run.tasks.len())?;
    let mut names: Vec<&str> = run.tasks.iter().map(|task| &*task.name).collect();
    names.dedup();
    if names.len() < run.tasks.len() || run.tasks.len() > 2 {
        return Err("give one task, or two with different names".into());
    }
    claim(run)?;
    let device = run.analysis.device.device()?;
    let checkpoint = load(&run.model, &device)?;
    let data = read(run, &checkpoint)?;
    let keep = run.analysis.keeps_gradients(&phases);
    possible(run, &phases, &checkpoint, &data, &device)?;
    let inputs = Inputs::of(&checkpoint.config, &data);
    // What is asked for now, on top of what was: a run may go on with fewer samples.
    let inputs = if there(run).any(|path| path.exists()) {
        Inputs::read(&run.out)?.and(inputs)?
    } else {
        inputs.write(&run.out)?;
        inputs
    };
    println!(
        "Measuring, in batches of up to {} tokens.",
        run.batch_tokens
    );
    let collection = collect(&checkpoint, &data, &inputs, run, keep, &device)?;
    let settings = json!({
        "samples": run.samples,
        "part": run.part,
        "params": run.params,
        "elements": run.elements,
        "compare": run.compare,
        "batch_tokens": run.batch_tokens,
        "skip_bad": run.skip_bad,
    });
    let work = Work {
        checkpoint: &checkpoint,
        collection: &collection,
        analysis: &run.analysis,
        phases: &phases,
        settings,
    };
    work.finish(&run.out, &device)?;
    done(&run.out, start);
    Ok(())
}

pub(super) fn done(out: &Path, start: Instant) {
    let peak = resident("VmHWM:").map_or(String::new(), |gb| {
        format!(", at most {gb:.1} GB of memory")
    });
    println!(
        "Wrote {} in {:.0} s{peak}.",
        out.join("report.html").display(),
        start.elapsed().as_secs_f64()
    );
}

/// The phases wanted, or all that there are tasks for.
pub(super) fn phases(analysis: &Analysis, tasks: usize) -> Result<Vec<u8>> {
    let uses = analysis.merge_with.is_some() || !analysis.scale.is_empty();
    if tasks != 2 && analysis.merge_with.is_some() {
        return Err(
            format!("--merge-with weighs each model by a task: give two, not {tasks}").into(),
        );
    }
    let last = if tasks == 2 { 6 } else { 3 };
    let possible: Vec<u8> = (1..=last).chain(uses.then_some(7)).collect();
    let Some(Phases(phases)) = &analysis.phases else {
        return Ok(possible);
    };
    match phases.iter().find(|phase| !possible.contains(phase)) {
        None => Ok(phases.clone()),
        Some(7) => Err("phase 7 needs --merge-with or --scale".into()),
        Some(phase) => {
            Err(format!("phase {phase} compares two tasks, and there are {tasks}").into())
        }
    }
}

/// What would fail after hours of work, before it.
fn possible(
    run: &Run,
    phases: &[u8],
    checkpoint: &Checkpoint,
    data: &[TaskData],
    device: &Device,
) -> Result {
    let Checkpoint {
        catalogue, heads, ..
    } = checkpoint;
    let kept = match run.compare.of(catalogue, heads)? {
        Some(kept) => catalogue.filter(&kept)?,
        None if run.analysis.keeps_gradients(phases) => {
            return Err(
                "--compare none leaves nothing to compare; leave phases 5 and 6 out".into(),
            );
        }
        None => Catalogue::new(Vec::new())?,
    };
    let compares = phases.iter().any(|phase| [5, 6].contains(phase));
    let single = data.iter().find(|task| task.samples.len() < 2);
    if let (true, Some(task)) = (compares, single) {
        return Err(format!(
            "phases 5 and 6 compare samples, and task `{}` has one; leave them out: --phases 1-4",
            task.name
        )
        .into());
    }
    if phases.contains(&6) {
        let mut paths = heads.attention().iter().flat_map(|layer| layer.paths());
        if let Some(path) = paths.find(|path| kept.get(path).is_none()) {
            return Err(format!(
                "phase 6 compares samples in all of the attention, and --compare leaves `{path}` out; \
                 give --compare attention, or leave the phase out: --phases 1-5"
            )
            .into());
        }
    }
    if run.analysis.save_gradients {
        let elements: usize = kept.parameters().iter().map(|p| p.elements()).sum();
        let samples: usize = data.iter().map(|task| task.samples.len()).sum();
        let bytes = 8 * elements * samples;
        if bytes > run.analysis.memory.0 {
            return Err(format!(
                "--save-gradients gathers {:.1} GB, more than --memory allows: raise it, or narrow \
                 --compare",
                bytes as f64 / 1e9
            )
            .into());
        }
    }
    if !phases.contains(&7) {
        return Ok(());
    }
    if run.params != Selection::All || run.elements != Selection::All {
        return Err(
            "phase 7 needs the Fisher of every element: leave --params and --elements at all"
                .into(),
        );
    }
    if let (Some(folder), [_, task]) = (&run.analysis.merge_with, data) {
        let other = second(folder, checkpoint, device)?;
        if let Some(own) = &run.analysis.merge_run {
            own_statistics(own, &other, device)?.task(&task.name)?;
        }
    }
    Ok(())
}

/// What a run leaves in its folder.
fn there(run: &Run) -> impl Iterator<Item = PathBuf> {
    let files = [STATISTICS, GRADIENTS, "report.json"];
    files.into_iter().map(|file| run.out.join(file))
}

/// A folder of its own, unless an earlier run is to go on.
fn claim(run: &Run) -> Result {
    let out = run.out.display();
    if !run.resume && there(run).any(|path| path.exists()) {
        return Err(format!(
            "{out} holds a run already: go on with it by --resume, or give another folder"
        )
        .into());
    }
    std::fs::create_dir_all(&run.out).map_err(|e| format!("cannot make {out}: {e}").into())
}

pub(super) fn load(folder: &Path, device: &Device) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::load(folder, &device.clone().autodiff())?;
    let [heads, kv_heads, width] = checkpoint.config.heads();
    let parameters = checkpoint.catalogue.parameters().iter();
    println!(
        "{}: {}, {} layers of {heads} heads of width {width} ({kv_heads} key/value), {:.1} million \
         weights",
        folder.display(),
        checkpoint.config.kind,
        layers(&checkpoint),
        parameters.map(|p| p.elements()).sum::<usize>() as f64 / 1e6
    );
    Ok(checkpoint)
}

fn layers(checkpoint: &Checkpoint) -> usize {
    match &checkpoint.config.architecture {
        Architecture::Llama(config) => config.layers,
        Architecture::Gpt2(config) => config.layers,
    }
}

fn read(run: &Run, checkpoint: &Checkpoint) -> Result<Vec<TaskData>> {
    let reader = Reader {
        config: &checkpoint.config,
        text: Text::read(&run.model),
        skip_bad: run.skip_bad,
        samples: run.samples,
        part: run.part,
    };
    let mut tasks = Vec::new();
    for file in &run.tasks {
        let task = reader.read(file)?;
        let tokens: usize = task.samples.iter().map(|sample| sample.active()).sum();
        println!(
            "{}: {} samples, {tokens} active tokens",
            task.name,
            task.samples.len()
        );
        if let Some(first) = task.bad.first() {
            let (count, line, reason) = (task.bad.len(), first.line, &first.reason);
            println!("  {count} bad lines left out, the first is line {line}: {reason}");
        }
        tasks.push(task);
    }
    Ok(tasks)
}

/// What was measured, and what is to be made of it.
pub(super) struct Work<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) collection: &'a Collection,
    pub(super) analysis: &'a Analysis,
    pub(super) phases: &'a [u8],
    /// What else was asked for.
    pub(super) settings: Value,
}

impl Work<'_> {
    /// Analyse and write.
    pub(super) fn finish(&self, out: &Path, device: &Device) -> Result {
        let Collection {
            tasks,
            statistics,
            store,
        } = self.collection;
        let findings = self.analyse(tasks, statistics, store.as_ref(), device)?;
        let run = self.about(statistics);
        write(
            out,
            "report.json",
            &serde_json::to_string(&report(run.clone(), tasks, &findings))?,
        )?;
        let page = Page {
            run: &run,
            tasks,
            statistics,
            findings: &findings,
        };
        write(out, "report.html", &page.html())?;
        let gradients = store.as_ref().filter(|_| self.analysis.save_gradients);
        let moments = Some(statistics).filter(|_| self.phases.contains(&1));
        let tensors = Tensors::of(moments, gradients, tasks, &findings)?;
        tensors.save(&out.join("results.safetensors"))?;
        if let Some(merged) = &findings.uses.merged {
            let folder = out.join(MERGED);
            let saved = merged.save(self.checkpoint, &folder);
            saved.map_err(|e| format!("cannot write {}: {e}", folder.display()))?;
            println!("The merged model is in {}.", folder.display());
        }
        Ok(())
    }

    fn analyse(
        &self,
        tasks: &[Measured],
        statistics: &Statistics,
        store: Option<&GradientStore>,
        device: &Device,
    ) -> Result<Findings> {
        let interference = self.analysis.settings().into_iter().map(|settings| {
            let relabellings = self.analysis.significance.then_some(1000);
            (
                settings.text,
                settings.config.with_relabellings(relabellings),
            )
        });
        let plan = Plan {
            phases: self.phases.to_vec(),
            sparsities: self.analysis.sparsity.clone(),
            interference: interference.collect(),
            relabellings: 1000,
            memory: self.analysis.memory.0,
            seed: self.analysis.seed,
            progress: true,
        };
        let names: Vec<String> = tasks.iter().map(|task| task.name.clone()).collect();
        let weights = match self.phases.contains(&3) {
            true => self.checkpoint.weights()?,
            false => Default::default(),
        };
        let heads = &self.checkpoint.heads;
        let mut findings = plan.run(&names, statistics, &weights, store, heads, device)?;
        if self.phases.contains(&7) {
            let (analysis, checkpoint) = (self.analysis, self.checkpoint);
            findings.uses = uses(analysis, checkpoint, tasks, statistics, store, device)?;
        }
        Ok(findings)
    }

    /// What was run, for the record.
    fn about(&self, statistics: &Statistics) -> Value {
        let Checkpoint {
            config,
            folder,
            catalogue,
            ..
        } = self.checkpoint;
        let [heads, kv_heads, head_width] = config.heads();
        let analysis = self.analysis;
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        let elements = catalogue.parameters().iter().map(|p| p.elements());
        json!({
            "program": concat!("checkpoint ", env!("CARGO_PKG_VERSION")),
            "model": {
                "name": folder.file_name().map(|name| name.to_string_lossy()),
                "type": config.kind,
                "layers": layers(self.checkpoint),
                "heads": heads,
                "kv_heads": kv_heads,
                "head_width": head_width,
                "vocabulary": config.vocabulary(),
                "weights": elements.sum::<usize>(),
            },
            "provenance": statistics.provenance(),
            "phases": self.phases,
            "sparsity": analysis.sparsity,
            "interference": analysis.settings().iter().map(|s| &s.text).collect::<Vec<_>>(),
            "significance": analysis.significance,
            "merge_with": analysis.merge_with,
            "merge_run": analysis.merge_run,
            "scale": analysis.scale.iter().map(|s| &s.text).collect::<Vec<_>>(),
            "seed": analysis.seed,
            "memory": analysis.memory.0,
            "device": format!("{:?}", analysis.device).to_lowercase(),
            "collection": self.settings,
        })
    }
}

/// Write a text in place of an old one: see [`replace`].
pub(super) fn write(out: &Path, file: &str, text: &str) -> Result {
    let path = out.join(file);
    let written = replace(&path, |beside| Ok(std::fs::write(beside, text)?));
    written.map_err(|e| format!("cannot write {}: {e}", path.display()).into())
}

/// Have a file written beside the old one and put in its place once it is on the disk, so that
/// there is never half of it.
pub(super) fn replace(path: &Path, write: impl FnOnce(&Path) -> Result) -> Result {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    write(Path::new(&beside))?;
    File::options().write(true).open(&beside)?.sync_all()?;
    Ok(std::fs::rename(&beside, path)?)
}
