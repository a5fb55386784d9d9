//! What every command begins and ends with: a model is loaded, what was measured is analyzed and
//! written.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use fisher_core::statistics::Statistics;
use fisher_core::store::GradientStore;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::date::now;
use crate::measure::{
    Analyses, AnalysisArgs, Beginnings, Change, Collection, Findings, LoadArgs, MERGED, Measured,
    Phases, REPORT, RESULTS, Result, SampleTokens, Saved, Tensors, TokenLoss, beginnings, changes,
    report, uses, write,
};
use crate::memory::resident;
use crate::models::{Adapter, Checkpoint};
use crate::page::{PAGE, Page};
use crate::samples::TaskData;
use crate::say::say;
use crate::words::{self, amount, count, size};

/// What was measured, and what is to be made of it.
pub(crate) struct Work<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) collection: &'a Collection,
    pub(crate) analysis: &'a AnalysisArgs,
    pub(crate) phases: &'a [u8],
    /// The samples of the tasks, where they are at hand, and how many tokens a batch may have.
    pub(crate) data: Option<(&'a [TaskData], usize)>,
    /// Samples token by token.
    pub(crate) tokens: &'a [SampleTokens],
    /// What else was asked for.
    pub(crate) settings: Value,
    /// The file of each task, where samples were read from files.
    pub(crate) files: Value,
    /// When work began.
    pub(crate) start: Instant,
}

impl Work<'_> {
    /// Analyze and write.
    pub(crate) fn finish(&self, out: &Path, device: &Device) -> Result {
        let Collection {
            tasks,
            statistics,
            store,
        } = self.collection;
        let mut findings = self.analyze(tasks, statistics, store.as_ref())?;
        if self.phases.contains(&7) {
            findings.uses = uses(self.analysis, self.checkpoint, tasks, statistics, out)?;
            if let Some(merged) = &mut findings.uses.merged {
                merged.measured = self.changes(&out.join(MERGED), device)?;
            }
        }
        let run = self.about(tasks, statistics)?;
        let before = reported(&out.join(REPORT));
        write(
            out,
            REPORT,
            &serde_json::to_string(&report(run.clone(), tasks, &findings))?,
        )?;
        let beginnings = match self.data {
            Some((data, _)) => beginnings(&self.checkpoint.folder, data, tasks, statistics)?,
            None => Beginnings::new(),
        };
        let page = Page {
            run: &run,
            outcomes: self.checkpoint.config.outcomes(),
            tasks,
            statistics,
            findings: &findings,
            tokens: self.tokens,
            beginnings: &beginnings,
        };
        write(out, PAGE, &page.html())?;
        let phase = |phase| self.phases.contains(&phase);
        let saved = Saved {
            groups: phase(1),
            elements: phase(1) && self.analysis.save_elements,
            gradients: self.analysis.save_gradients,
            pairs: self.analysis.save_pairs,
            scaled: if phase(7) { &self.analysis.scale } else { &[] },
        };
        let tensors = Tensors::of(statistics, store.as_ref(), tasks, &findings, &saved)?;
        tensors.save(&out.join(RESULTS))?;
        let gone = |phase: &u8| *phase > 1 && !self.phases.contains(phase);
        let gone: Vec<u8> = before.into_iter().filter(gone).collect();
        if !gone.is_empty() {
            say!(
                "The report is of {} now. What it had of {} is in none of its files any more: --resume without \
                 --phases brings all back.",
                words::phases(self.phases),
                words::phases(&gone)
            );
        }
        Ok(())
    }

    /// What the tasks lose by the model merged into `folder`, where their samples are at hand.
    fn changes(&self, folder: &Path, device: &Device) -> Result<Vec<Change>> {
        let (Some((data, tokens)), Some(other)) = (self.data, &self.analysis.merge_with) else {
            return Ok(Vec::new());
        };
        let Ok(data) = data.try_into() else {
            return Ok(Vec::new());
        };
        changes(self.checkpoint, [other, folder], data, tokens, device)
    }

    fn analyze(
        &self,
        tasks: &[Measured],
        statistics: &Statistics,
        store: Option<&GradientStore>,
    ) -> Result<Findings> {
        let settings = self.analysis.settings().into_iter();
        let interference = settings.map(|settings| (settings.text, settings.config));
        let analyses = Analyses {
            phases: self.phases.to_vec(),
            sparsities: self.analysis.sparsity.clone(),
            interference: interference.collect(),
            memory: self.analysis.half(),
            seed: self.analysis.seed,
            progress: true,
            pairs: self.analysis.save_pairs,
        };
        let names: Vec<String> = tasks.iter().map(|task| task.name.clone()).collect();
        let reader = self.checkpoint.reader();
        let weights = |path: &str, _| Ok(reader.read(path)?);
        Ok(analyses.run(&names, statistics, &weights, store)?)
    }

    /// What was run, for the record.
    fn about(&self, tasks: &[Measured], statistics: &Statistics) -> Result<Value> {
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
        let mut losses = Map::new();
        for task in tasks {
            losses.insert(task.name.clone(), json!(TokenLoss::of(task, statistics)?));
        }
        Ok(json!({
            "program": concat!("fisher ", env!("CARGO_PKG_VERSION")),
            "model": {
                "name": folder.file_name().map(|name| name.to_string_lossy()),
                "type": config.kind,
                "layers": config.layers(),
                "heads": heads,
                "kv_heads": kv_heads,
                "head_width": head_width,
                "vocabulary": config.vocabulary(),
                "classes": config.class_count(),
                "experts": config.shape.experts.map(|of| json!({"count": of.count, "chosen": of.chosen})),
                "weights": elements.sum::<usize>(),
            },
            "provenance": statistics.provenance(),
            "phases": self.phases,
            "sparsity": analysis.sparsity,
            "interference": analysis.settings().iter().map(|s| &s.text).collect::<Vec<_>>(),
            "merge_with": analysis.merge_with,
            "merge_run": analysis.merge_run,
            "merge_scale": analysis.merge_scale,
            "scale": analysis.scale.iter().map(|s| &s.text).collect::<Vec<_>>(),
            "seed": analysis.seed,
            "memory": analysis.memory.0,
            "device": format!("{:?}", analysis.device).to_lowercase(),
            "collection": self.settings,
            "files": self.files,
            "loss_per_token": losses,
            "date": now(),
            "seconds": self.start.elapsed().as_secs_f64(),
        }))
    }
}

/// The phases that a report is of; none where there is no report.
fn reported(path: &Path) -> Vec<u8> {
    #[derive(Deserialize)]
    struct Report {
        run: Of,
    }
    #[derive(Deserialize)]
    struct Of {
        phases: Vec<u8>,
    }
    let read = |file| serde_json::from_reader::<_, Report>(BufReader::new(file)).ok();
    let report = File::open(path).ok().and_then(read);
    report.map_or_else(Vec::new, |report| report.run.phases)
}

/// The phases wanted, or all that there are tasks for.
pub(crate) fn phases(analysis: &AnalysisArgs, tasks: usize) -> Result<Vec<u8>> {
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
            let there = match tasks {
                1 => "there is one".into(),
                tasks => format!("there are {tasks}"),
            };
            Err(format!("phase {phase} compares two tasks, and {there}").into())
        }
    }
}

pub(crate) fn load(folder: &Path, loaded: &LoadArgs, device: &Device) -> Result<Checkpoint> {
    let loading = loaded.loading();
    let tracked = device.clone().autodiff();
    let checkpoint = Checkpoint::load_with(folder, &loading, &tracked)?;
    let [heads, kv_heads, width] = checkpoint.config.heads();
    let parameters = checkpoint.catalogue.parameters().iter();
    say!(
        "{}: {}, {} of {} of width {width} ({kv_heads} key/value), {} weights",
        folder.display(),
        checkpoint.config.kind,
        count(checkpoint.config.layers(), "layer"),
        count(heads, "head"),
        amount(parameters.map(|p| p.elements()).sum())
    );
    if let Some(Adapter { folder, merged }) = &loading.adapter {
        let how = if *merged {
            "taken into the weights"
        } else {
            "all that is measured"
        };
        say!("Adapter {}: {how}.", folder.display());
    }
    Ok(checkpoint)
}

pub(crate) fn done(out: &Path, start: Instant) {
    let peak = resident("VmHWM:").map_or(String::new(), |gb| {
        format!(", at most {} of memory", size((1e9 * gb) as u64))
    });
    say!(
        "Wrote {} in {:.0} s{peak}.",
        out.join(PAGE).display(),
        start.elapsed().as_secs_f64()
    );
}
