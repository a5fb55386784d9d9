//! `fisher measure`: read, measure, analyze, write.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use fisher_core::model::Catalogue;
use serde_json::json;

use crate::finish::{Work, done, load, phases};
use crate::measure::{
    COMMAND, Forecast, GRADIENTS, Inputs, Kind, MeasureArgs, Reader, Result, STATISTICS, Selection,
    TaskData, Text, check_second, collect, write,
};
use crate::models::Checkpoint;

/// Measure a model on one or two tasks.
///
/// # Errors
/// Whatever kept it from being done, in words.
pub(crate) fn measure(run: &MeasureArgs) -> Result {
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
    if keep && run.kind != Kind::Empirical {
        return Err(
            "gradients that are kept are those of the data's labels, and --kind is not empirical: leave phases 5 \
             and 6, --scale and --save-gradients out (--phases 1-4)"
                .into(),
        );
    }
    possible(run, &phases, &checkpoint, &data, &device)?;
    Forecast::of(run, &phases, &checkpoint, &data, keep)?.tell(run, &checkpoint)?;
    let inputs = Inputs::of(&checkpoint.config, &data);
    // What is asked for now, on top of what was: a run may go on with fewer samples.
    let inputs = if there(run).any(|path| path.exists()) {
        Inputs::read(&run.out)?.and(inputs)?
    } else {
        inputs.write(&run.out)?;
        inputs
    };
    write(&run.out, COMMAND, &run.command)?;
    let collection = collect(&checkpoint, &data, &inputs, run, keep, &device)?;
    let settings = json!({
        "kind": run.kind,
        "draws": run.draws,
        "samples": run.samples,
        "part": run.part,
        "params": run.params,
        "elements": run.elements,
        "compare": run.compare,
        "precision": run.precision,
        "batch_tokens": run.tokens(&checkpoint),
        "skip_bad": run.skip_bad,
    });
    let work = Work {
        checkpoint: &checkpoint,
        collection: &collection,
        analysis: &run.analysis,
        phases: &phases,
        data: Some((&data, run.tokens(&checkpoint))),
        settings,
    };
    work.finish(&run.out, &device)?;
    done(&run.out, start);
    Ok(())
}

/// What would fail after hours of work, before it.
fn possible(
    run: &MeasureArgs,
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
        let own = run.analysis.merge_run.as_deref();
        let own = own.map(|own| (own, &*task.name));
        check_second(folder, own, checkpoint, device)?;
    }
    Ok(())
}

/// What a run leaves in its folder.
fn there(run: &MeasureArgs) -> impl Iterator<Item = PathBuf> {
    let files = [STATISTICS, GRADIENTS, "report.json"];
    files.into_iter().map(|file| run.out.join(file))
}

/// A folder of its own, unless an earlier run is to go on.
fn claim(run: &MeasureArgs) -> Result {
    let out = run.out.display();
    if !run.resume && there(run).any(|path| path.exists()) {
        return Err(format!(
            "{out} holds a run already: go on with it by --resume, or give another folder"
        )
        .into());
    }
    std::fs::create_dir_all(&run.out).map_err(|e| format!("cannot make {out}: {e}").into())
}

fn read(run: &MeasureArgs, checkpoint: &Checkpoint) -> Result<Vec<TaskData>> {
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
