//! `checkpoint merge`: the results of several runs as those of one.

use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::{Gradient, GradientBatch, GradientStore, Statistics, StoreConfig};
use serde_json::{Value, json};

use super::Result;
use super::args::Merge;
use super::collect::{Collection, GRADIENTS, STATISTICS};
use super::measured::Measured;
use super::run::{Work, done, load, phases};

/// Join the runs and analyse them together.
///
/// # Errors
/// When a run is of another model or measured otherwise, a sample is in two runs, or a file cannot be
/// read or written.
pub fn join(merge: &Merge) -> Result {
    let start = Instant::now();
    let out = &merge.out;
    if [STATISTICS, GRADIENTS]
        .iter()
        .any(|file| out.join(file).exists())
    {
        return Err(format!("{} holds a run already: give another folder", out.display()).into());
    }
    std::fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
    let device = merge.analysis.device.device()?;
    let checkpoint = load(&merge.model, &device)?;

    let mut statistics: Option<Statistics> = None;
    let mut tasks: Vec<Measured> = Vec::new();
    for run in &merge.runs {
        let of_run = Statistics::load(run.join(STATISTICS), &device)?;
        for task in measured(run)? {
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
    let hash = checkpoint.hash()?;
    if statistics.provenance().model != hash {
        let model = merge.model.display();
        return Err(
            format!("the runs are of another model than {model}: its weights differ").into(),
        );
    }
    statistics.save(out.join(STATISTICS))?;

    let phases = phases(&merge.analysis, tasks.len())?;
    let kept = merge.runs.iter().all(|run| run.join(GRADIENTS).exists());
    let wanted = merge.analysis.keeps_gradients(&phases);
    if wanted && !kept {
        return Err("a run kept no gradients to compare samples by; give --phases 1-4".into());
    }
    let store = match wanted {
        true => Some(gradients(merge, &tasks)?),
        false => None,
    };
    println!("Joined {} runs.", merge.runs.len());
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

fn extend(task: &mut Measured, other: Measured) {
    task.ids.extend(other.ids);
    task.tokens.extend(other.tokens);
    task.losses.extend(other.losses);
    task.bad_lines.extend(other.bad_lines);
    task.skipped.extend(other.skipped);
}

/// The gradients of all runs, in one store.
fn gradients(merge: &Merge, tasks: &[Measured]) -> Result<GradientStore> {
    let mut joined: Option<GradientStore> = None;
    for run in &merge.runs {
        let store = GradientStore::open(run.join(GRADIENTS))?;
        let mut into = match joined.take() {
            Some(joined) if joined.catalogue() == store.catalogue() => joined,
            Some(_) => return Err("the runs kept gradients of different parameters".into()),
            None => {
                let config = StoreConfig::new(merge.analysis.memory.0);
                let config = config.with_folder(Some(merge.out.join(GRADIENTS)));
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
