//! `fisher measure`: read, measure, analyze, write.

use std::time::Instant;

use burn::tensor::Device;
use serde_json::{Value, json};

use crate::finish::{Work, done, load, phases};
use crate::measure::{
    COMMAND, Forecast, Inputs, Kind, MeasureArgs, PerToken, Result, Selection, TOKENS,
    check_second, collect, per_token, write,
};
use crate::models::{Checkpoint, Outcomes};
use crate::out::Out;
use crate::samples::{Form, Reader, TaskData, TaskFile, there};
use crate::say::say;
use crate::words::count;

/// Measure a model on one or two tasks.
///
/// # Errors
/// Whatever kept it from being done, in words.
pub(crate) fn measure(run: &MeasureArgs) -> Result {
    let start = Instant::now();
    let phases = phases(&run.analysis, run.tasks.len())?;
    sensible(run, &phases)?;
    let out = Out::claim(&run.out, run.resume)?;
    if let Some(part) = run.part {
        let source = part
            .source
            .map_or(String::new(), |name| format!(", by {name}"));
        say!(
            "Part {part} of the lines{source}, into {}.",
            run.out.display()
        );
    }
    let device = run.analysis.device.device()?;
    let checkpoint = load(&run.model, &run.loaded, &device)?;
    if !run.per_token.is_empty() {
        PerToken::suits(&checkpoint.config)?;
    }
    let (data, encoding) = read(run, &checkpoint)?;
    run.per_token
        .iter()
        .try_for_each(|which| which.is_in(&data))?;
    let keep = run.analysis.keeps_gradients(&phases);
    possible(run, &phases, &checkpoint, &data, &device)?;
    Forecast::of(run, &phases, &checkpoint, &data, keep)?.tell(run, &checkpoint)?;
    let inputs = Inputs::of(&checkpoint.config, &data, run.part);
    // What is asked for now, on top of what was: a run may go on with fewer samples.
    let inputs = if out.holds_run() {
        Inputs::read(&run.out)?.go_on(inputs)?
    } else {
        inputs.write(&run.out)?;
        inputs
    };
    write(&run.out, COMMAND, &run.command)?;
    let collection = collect(&checkpoint, &data, &inputs, run, keep, &device)?;
    let tokens = per_token(&checkpoint, &data, run, &device)?;
    if !tokens.is_empty() {
        write(&run.out, TOKENS, &serde_json::to_string(&tokens)?)?;
    }
    let settings = json!({
        "kind": run.kind,
        "draws": run.draws,
        "samples": run.samples,
        "part": run.part,
        "params": run.params,
        "elements": run.elements,
        "compare": run.compare,
        "precision": run.precision,
        "dtype": run.loaded.dtype,
        "batch_tokens": run.tokens(&checkpoint),
        "skip_bad": run.skip_bad,
        "encoding": encoding,
    });
    let work = Work {
        checkpoint: &checkpoint,
        collection: &collection,
        analysis: &run.analysis,
        phases: &phases,
        data: Some((&data, run.tokens(&checkpoint))),
        tokens: &tokens,
        settings,
        files: run.tasks.iter().map(file).collect(),
        start,
    };
    work.finish(&run.out, &device)?;
    done(&run.out, start);
    Ok(())
}

/// What is wrong with the flags whatever the model and the samples are.
fn sensible(run: &MeasureArgs, phases: &[u8]) -> Result {
    if let [first, second] = &*run.tasks
        && first.name == second.name
    {
        return Err(format!(
            "both tasks are called `{}`: give them different names",
            first.name
        )
        .into());
    }
    if run.tasks.len() > 2 {
        return Err(format!(
            "a run compares two tasks at most, and --task is given {} times: run each pair by itself, with an \
             --out of its own",
            run.tasks.len()
        )
        .into());
    }
    run.tasks.iter().try_for_each(there)?;
    let keep = run.analysis.keeps_gradients(phases);
    if keep && run.kind != Kind::Empirical {
        return Err(
            "gradients that are kept are those of the data's labels, and --kind is not empirical: leave phases 5 \
             and 6, --scale, --save-gradients and --keep-gradients out (--phases 1-4)"
                .into(),
        );
    }
    if run.params == Selection::None {
        return Err("--params none leaves nothing to measure".into());
    }
    if keep && run.compare == Selection::None {
        return Err("--compare none leaves nothing to compare; leave phases 5 and 6 out".into());
    }
    if phases.contains(&7) && run.loaded.adapter.is_some() && run.analysis.merge_with.is_some() {
        return Err("--merge-with merges folders of whole models: save the adapted model as one, or leave --adapter out".into());
    }
    if phases.contains(&7) && (run.params != Selection::All || run.elements != Selection::All) {
        return Err(
            "phase 7 needs the Fisher of every element: leave --params and --elements at all"
                .into(),
        );
    }
    Ok(())
}

/// A task and its file, for the record.
fn file(task: &TaskFile) -> (String, Value) {
    let path = task
        .path
        .canonicalize()
        .unwrap_or_else(|_| task.path.clone());
    (task.name.clone(), path.display().to_string().into())
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
        Some(kept) => Some(catalogue.filter(&kept)?),
        None => None,
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
    if let (true, Some(kept)) = (phases.contains(&6), &kept) {
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
    if let (Some(folder), [_, task]) = (&run.analysis.merge_with, data) {
        let own = run.analysis.merge_run.as_deref();
        let own = own.map(|own| (own, &*task.name));
        check_second(folder, own, checkpoint, device)?;
    }
    Ok(())
}

/// Read the tasks, and say how text became tokens, if there was any.
fn read(run: &MeasureArgs, checkpoint: &Checkpoint) -> Result<(Vec<TaskData>, Option<String>)> {
    let reader = Reader {
        skip_bad: run.skip_bad,
        samples: run.samples,
        part: run.part,
        ..Reader::new(&checkpoint.config, &run.model)
    };
    let mut tasks = Vec::new();
    for file in &run.tasks {
        let task = reader.read(file)?;
        let tokens: usize = task.samples.iter().map(|sample| sample.active()).sum();
        let samples = count(task.samples.len(), "sample");
        match checkpoint.config.outcomes() {
            Outcomes::Tokens(_) => {
                let tokens = count(tokens, "active token");
                say!("{}: {samples}, {tokens}", task.name);
            }
            Outcomes::Classes(_) => say!("{}: {samples}", task.name),
        }
        if let Some(first) = task.bad.first() {
            let (bad, line, reason) =
                (count(task.bad.len(), "bad line"), first.line, &first.reason);
            say!("  left out: {bad}, the first is line {line}: {reason}");
        }
        tasks.push(task);
    }
    let encoding = encoding(&reader, &tasks);
    if let Some(said) = &encoding {
        say!("Text to tokens: {said}.");
    }
    Ok((tasks, encoding))
}

/// What became of text beside its words.
fn encoding(reader: &Reader, tasks: &[TaskData]) -> Option<String> {
    let used = |form| tasks.iter().any(|task| task.forms.contains(&form));
    let mut said = Vec::new();
    if let (true, Ok(text)) = (used(Form::Text) || used(Form::Completion), &reader.text) {
        said.push(text.added().to_string());
    }
    if let (true, Ok(chat)) = (used(Form::Chat), &reader.chat) {
        said.push(format!(
            "chats are written by the template of {}, and only what the assistant says in them counts",
            chat.source
        ));
    }
    Some(said.join("; ")).filter(|said| !said.is_empty())
}
