//! `fisher join`: the results of several runs as those of one.

use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::statistics::Statistics;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use serde_json::{Value, json};

use crate::finish::{Work, done, load, phases};
use crate::measure::{
    Collection, GRADIENTS, Inputs, JoinArgs, Measured, Result, STATISTICS, key, model,
    only_measured,
};
use crate::out::Out;
use crate::say::say;
use crate::words::count;

/// Join the runs and analyze them together.
///
/// # Errors
/// When a run is of another model or measured otherwise, a sample is in two runs, or a file cannot be
/// read or written.
pub(crate) fn join(merge: &JoinArgs) -> Result {
    let start = Instant::now();
    let out = &merge.out;
    let place = |path: &std::path::Path| path.canonicalize().ok();
    if let Some(run) = merge.runs.iter().find(|run| place(run) == place(out)) {
        return Err(format!(
            "{} is one of the runs: what is merged would take its place; give another folder",
            run.display()
        )
        .into());
    }
    let _held = Out::claim(out, merge.resume)?;
    let device = merge.analysis.device.device()?;
    let checkpoint = load(&merge.model, &device)?;

    let hash = checkpoint.hash()?;
    let mut inputs = Inputs {
        model: model(&checkpoint.config),
        tasks: Default::default(),
    };
    let mut statistics: Option<Statistics> = None;
    let mut tasks: Vec<Measured> = Vec::new();
    for run in &merge.runs {
        let of_run = Statistics::load(run.join(STATISTICS), &device)?;
        if of_run.provenance().model != hash {
            let [run, model] = [run, &merge.model].map(|path| path.display());
            return Err(
                format!("{run} is of another model than {model}: its weights differ").into(),
            );
        }
        inputs = inputs.and(Inputs::read(run)?)?;
        for task in measured(run)? {
            complete(run, &of_run, &task)?;
            match tasks.iter_mut().find(|known| known.name == task.name) {
                Some(known) => extend(known, task),
                None => tasks.push(task),
            }
        }
        match &mut statistics {
            Some(statistics) => statistics.merge(of_run)?,
            None => statistics = Some(of_run),
        }
    }
    let statistics = statistics.ok_or("there is nothing to merge")?;
    let phases = phases(&merge.analysis, tasks.len())?;
    let kept = merge.runs.iter().all(|run| run.join(GRADIENTS).exists());
    let wanted = merge.analysis.keeps_gradients(&phases);
    if wanted && !kept {
        return Err("a run kept no gradients to compare samples by; give --phases 1-4".into());
    }
    statistics.save(out.join(STATISTICS))?;
    inputs.write(out)?;
    let store = if wanted {
        match earlier(merge, &statistics, &tasks) {
            Some(store) => Some(store),
            None => Some(gradients(merge, &tasks)?),
        }
    } else {
        None
    };
    let heads = &checkpoint.heads;
    let store = store.map(|store| store.with_heads(heads.clone()).with_device(&device));
    for task in &tasks {
        only_measured(&statistics, store.as_ref(), &task.name, out)?;
    }
    say!("Joined {}.", count(merge.runs.len(), "run"));
    let collection = Collection {
        tasks,
        statistics,
        store,
    };
    let runs: Vec<_> = merge
        .runs
        .iter()
        .map(|run| run.file_name().map(|n| n.to_string_lossy()))
        .collect();
    let work = Work {
        checkpoint: &checkpoint,
        collection: &collection,
        analysis: &merge.analysis,
        phases: &phases,
        data: None,
        tokens: &[],
        settings: json!({ "merged": runs }),
    };
    work.finish(out, &device)?;
    done(out, start);
    Ok(())
}

/// The tasks of a run, as its report has them.
fn measured(run: &Path) -> Result<Vec<Measured>> {
    let path = run.join("report.json");
    let read = || -> Result<Vec<Measured>> {
        let json: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let order: Vec<String> = serde_json::from_value(json["order"].clone())?;
        let of = |task: &String| Ok(serde_json::from_value(json["tasks"][task].clone())?);
        order.iter().map(of).collect()
    };
    read().map_err(|e| {
        format!(
            "{} is not the report of a finished run: {e}",
            path.display()
        )
        .into()
    })
}

/// Whether a run's report is of all that its statistics count.
fn complete(run: &Path, statistics: &Statistics, task: &Measured) -> Result {
    let counted = statistics.task(&task.name)?.samples().iter();
    let counted: HashSet<&str> = counted
        .filter(|sample| sample.skipped.is_none())
        .map(|sample| &*sample.id)
        .collect();
    let told: Vec<String> = task.ids.iter().map(key).collect();
    if counted == told.iter().map(String::as_str).collect() {
        Ok(())
    } else {
        Err(format!(
            "{} was not finished: its statistics count {} of task `{}`, its report {}; go on with it by \
             --resume",
            run.display(),
            count(counted.len(), "sample"),
            task.name,
            told.len()
        )
        .into())
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
fn gradients(merge: &JoinArgs, tasks: &[Measured]) -> Result<GradientStore> {
    let mut joined: Option<GradientStore> = None;
    let folder = merge.out.join(GRADIENTS);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .map_err(|e| format!("cannot remove {}: {e}", folder.display()))?;
    }
    for run in &merge.runs {
        let store = GradientStore::open(run.join(GRADIENTS))?;
        let mut into = match joined.take() {
            Some(joined) if joined.catalogue() == store.catalogue() => joined,
            Some(_) => return Err("the runs kept gradients of different parameters".into()),
            None => {
                let config = GradientStoreConfig::new(merge.analysis.memory.0);
                let config = config.with_folder(Some(folder.clone()));
                config.init_for(store.catalogue(), store.model().into())?
            }
        };
        for task in tasks {
            for sample in store.samples(&task.name) {
                let mut batch = GradientBatch::new(vec![sample.clone()]);
                for parameter in store.catalogue().parameters() {
                    let path = parameter.path();
                    let row = store.gradient(&task.name, sample.id(), path)?.into_owned();
                    let data = TensorData::new(row, [1, parameter.elements()]);
                    let tensor = Tensor::<2>::from_data(data, &Device::flex());
                    batch.insert(path, Gradient::token_sum(tensor));
                }
                into.push(&task.name, &batch)?;
            }
        }
        joined = Some(into);
    }
    Ok(joined.ok_or("there is nothing to merge")?)
}
