//! Losses and per-sample gradients of the tasks.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use fisher_core::model::hash_weights;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_train::batch::SampleLoss;
use fisher_train::capture::NonFinite;
use fisher_train::collect::{CheckpointConfig as SavePoint, CollectorConfig};
use fisher_train::kinds::DrawSpread;

use super::args::MeasureArgs;
use super::command::COMMAND;
use super::inputs::Inputs;
use super::measured::Measured;
use super::outcome::Result;
use super::progress::Progress;
use crate::interrupt::{Interrupted, Unhurried, asked};
use crate::models::{Checkpoint, Sequence, Sequences};
use crate::samples::{TaskData, batches};
use crate::say::say;
use crate::words::count;

/// Gradients of single samples, in a run's folder.
pub const GRADIENTS: &str = "gradients";
/// Statistics, in a run's folder. While it goes on, what an interrupted run goes on from.
pub const STATISTICS: &str = "statistics.safetensors";

/// What a run measured.
#[derive(Debug)]
pub struct Collection {
    /// The tasks, in the order they were given.
    pub tasks: Vec<Measured>,
    /// Their statistics.
    pub statistics: Statistics,
    /// Gradients of single samples, if they are wanted.
    pub store: Option<GradientStore>,
}

/// Measure every task, or go on where an earlier run stopped. `inputs` are written once it is sure
/// that the run can go on.
///
/// # Errors
/// What the library refused: see [`fisher_train::collect::Collector::collect_batches`].
pub fn collect(
    checkpoint: &Checkpoint,
    data: &[TaskData],
    inputs: &Inputs,
    run: &MeasureArgs,
    keep: bool,
    device: &Device,
) -> Result<Collection> {
    let model = &checkpoint.model;
    let _unhurried = Unhurried::begin();
    let batch_tokens = run.tokens(checkpoint);
    let hash = hash_weights(model)?;
    let fresh = statistics(checkpoint, run, hash.clone(), device)?;
    let non_finite = if run.skip_bad {
        NonFinite::Skip
    } else {
        NonFinite::Error
    };
    let save_point = SavePoint::new(run.out.join(STATISTICS), run.save_every);
    let collector = CollectorConfig::new()
        .with_non_finite(non_finite)
        .with_fisher(run.kind.fisher(run.draws, run.analysis.seed))
        .with_checkpoint(Some(save_point))
        .with_progress(false)
        .init()?
        .with_names(checkpoint.naming.names());
    let mut statistics = collector.resume(fresh)?;
    let ended = |statistics: &Statistics| interrupted(run, data, statistics);
    let mut store = if keep {
        Some(store(checkpoint, run, hash, device)?)
    } else {
        None
    };
    // A run that cannot go on leaves the folder as it was.
    inputs.write(&run.out)?;
    let mut tasks = Vec::new();
    for task in data {
        let losses = losses_of(checkpoint, task, batch_tokens, device);
        let losses = losses.map_err(|e| {
            if e.is::<Interrupted>() {
                ended(&statistics)
            } else {
                e
            }
        })?;
        if complete(&statistics, store.as_ref(), task) {
            say!(
                "  {}: all there before ({})",
                task.name,
                count(task.samples.len(), "sample")
            );
        } else {
            let start = Instant::now();
            let tracked = device.clone().autodiff();
            let there = statistics.task(&task.name).map_or(0, |t| t.samples().len());
            let mut progress = Progress::new(&task.name, tokens(&task.samples));
            let (mut position, mut done) = (0, 0);
            let all = batches(&task.samples, batch_tokens).into_iter();
            // Asked for the next batch, the last one is done.
            let batches = all.map_while(|samples| {
                if position <= there {
                    progress.skip(done);
                } else {
                    progress.advance(done);
                }
                // What an earlier run has is passed over first: it is compared with what is here.
                if asked() && position >= there {
                    return None;
                }
                position += samples.len();
                done = tokens(&samples);
                Some(Sequences::new(&samples, &tracked))
            });
            let collected = match &mut store {
                Some(store) => {
                    let into = (&mut statistics, store);
                    collector.collect_batches(model, &task.name, batches, into)
                }
                None => collector.collect_batches(model, &task.name, batches, &mut statistics),
            };
            let collected = collected.map_err(|e| in_words(e, run))?;
            progress.finish();
            if asked() {
                return Err(ended(&statistics));
            }
            let resumed = match collected.resumed {
                0 => String::new(),
                n => format!("; {n} there before"),
            };
            say!(
                "  {}: gradients of {}, {}, in {:.1} s{resumed}",
                task.name,
                count(collected.samples, "sample"),
                count(collected.tokens as usize, "token"),
                start.elapsed().as_secs_f64(),
            );
            if let Some(line) = collected.draws.as_ref().and_then(draws) {
                say!("  {}: {line}", task.name);
            }
        }
        only_measured(&statistics, store.as_ref(), &task.name, &run.out)?;
        let samples = task.ids.iter().cloned().zip(losses);
        let measured = Measured::of(&statistics, &task.name, samples, task.bad.clone())?;
        if measured.ids.is_empty() {
            return Err(
                format!("task `{}` has no sample with a finite gradient", task.name).into(),
            );
        }
        tasks.push(measured);
    }
    if asked() {
        return Err(ended(&statistics));
    }
    Ok(Collection {
        tasks,
        statistics,
        store,
    })
}

/// Whether statistics and store are of the same samples: what is compared must be what is counted.
///
/// # Errors
/// When one has more than the other.
pub fn only_measured(
    statistics: &Statistics,
    store: Option<&GradientStore>,
    task: &str,
    folder: &Path,
) -> Result {
    let Some(store) = store else { return Ok(()) };
    let counted = statistics.task(task)?.samples().iter();
    let counted = counted.filter(|sample| sample.skipped.is_none());
    let counted: HashSet<&str> = counted.map(|sample| &*sample.id).collect();
    let stored: HashSet<&str> = store.samples(task).iter().map(|s| s.id()).collect();
    if counted == stored {
        Ok(())
    } else {
        Err(format!(
            "{} holds gradients of {} of task `{task}`, and {} are counted: it is half of another run; go on \
             with that one, or give another folder",
            folder.join(GRADIENTS).display(),
            count(stored.len(), "sample"),
            counted.len()
        )
        .into())
    }
}

fn statistics(
    checkpoint: &Checkpoint,
    run: &MeasureArgs,
    hash: String,
    device: &Device,
) -> Result<Statistics> {
    let Checkpoint {
        catalogue, heads, ..
    } = checkpoint;
    let params = run.params.of(catalogue, heads)?;
    let params = params.ok_or("--params none leaves nothing to measure")?;
    let catalogue = catalogue.filter(&params)?;
    let elements = run.elements.of(&catalogue, heads)?;
    let fisher = run.kind.fisher(run.draws, run.analysis.seed);
    let config = StatisticsConfig::new()
        .with_kind(fisher.kind().unwrap_or_default())
        .with_seed(fisher.kind().map(|_| run.analysis.seed))
        .with_elementwise(elements.is_some())
        .with_elementwise_only(elements);
    Ok(config.init_for(&catalogue, heads, hash, device)?)
}

fn store(
    checkpoint: &Checkpoint,
    run: &MeasureArgs,
    hash: String,
    device: &Device,
) -> Result<GradientStore> {
    let only = run.compare.of(&checkpoint.catalogue, &checkpoint.heads)?;
    let only = only.ok_or("--compare none leaves nothing to compare; leave phases 5 and 6 out")?;
    let config = GradientStoreConfig::new(run.analysis.half())
        .with_folder(Some(run.out.join(GRADIENTS)))
        .with_precision(run.precision.into())
        .with_only(Some(only));
    let store = config.init_for(&checkpoint.catalogue, hash)?;
    let store = store
        .with_heads(checkpoint.heads.clone())
        .with_device(device);
    Ok(store)
}

/// What draws are of the error bars, in a line; `None` where each sample had one.
fn draws(spread: &DrawSpread) -> Option<String> {
    let shares = spread.layers.iter().filter_map(|layer| layer.share);
    let largest = shares.reduce(f64::max)?;
    let (draws, samples) = (spread.draws, spread.samples);
    let percent = 100.0 * largest.min(1.0);
    Some(format!(
        "{} of labels for each of {} are up to {percent:.0} % of the variance of a layer's trace",
        count(draws, "draw"),
        count(samples as usize, "sample")
    ))
}

/// Whether everything of a task is there, in the same order.
fn complete(statistics: &Statistics, store: Option<&GradientStore>, task: &TaskData) -> bool {
    let Ok(there) = statistics.task(&task.name) else {
        return false;
    };
    let batches = batches(&task.samples, usize::MAX);
    let ids = batches.iter().flatten().map(|sample| &*sample.id);
    let kept = |id: &str| store.is_none_or(|store| store.contains(&task.name, id));
    let mut counted = there.samples().iter().filter(|s| s.skipped.is_none());
    ids.eq(there.samples().iter().map(|s| &*s.id)) && counted.all(|s| kept(&s.id))
}

/// `L_i` of every sample, in the order of the file.
///
/// # Errors
/// When the device does not give them; [`Interrupted`] when the end was asked for.
pub(crate) fn losses_of(
    checkpoint: &Checkpoint,
    task: &TaskData,
    batch_tokens: usize,
    device: &Device,
) -> Result<Vec<f64>> {
    let model = checkpoint.model.valid();
    let mut progress = Progress::new(&format!("{}, losses", task.name), tokens(&task.samples));
    let mut found = HashMap::new();
    for samples in batches(&task.samples, batch_tokens) {
        if asked() {
            return Err(Box::new(Interrupted("interrupted".into())));
        }
        let batch = Sequences::new(&samples, device);
        let sums = model.sample_losses(&batch).sums().clone().try_into_data();
        let sums = sums.map_err(|e| format!("the device did not give the losses: {e}"))?;
        let ids = samples.iter().map(|sample| sample.id.clone());
        found.extend(ids.zip(sums.iter::<f64>().collect::<Vec<_>>()));
        progress.advance(tokens(&samples));
    }
    progress.finish();
    let loss = |sample: &Sequence| found.get(&sample.id).copied();
    let losses: Option<Vec<f64>> = task.samples.iter().map(loss).collect();
    Ok(losses.ok_or("a sample got no loss")?)
}

/// Tokens of samples, without padding.
fn tokens(samples: &[Sequence]) -> u64 {
    samples.iter().map(|s| s.tokens.len() as u64).sum()
}

/// What an interrupted run has, and how it goes on.
fn interrupted(run: &MeasureArgs, data: &[TaskData], statistics: &Statistics) -> Box<dyn Error> {
    let of = |task: &TaskData| {
        let there = statistics.task(&task.name);
        let there = there.map_or(0, |task| task.samples().len());
        [there, task.samples.len()]
    };
    let tasks = data.iter().map(|task| (&*task.name, of(task)));
    let has = counted(&tasks.collect::<Vec<_>>());
    let out = run.out.display();
    Box::new(Interrupted(format!(
        "interrupted: {has} in {out}; go on by the same command with --resume, or by fisher measure --config \
         {out}/{COMMAND} --resume"
    )))
}

/// What there is of tasks, by their name, of how many samples each.
fn counted(tasks: &[(&str, [usize; 2])]) -> String {
    let of = |&(name, [there, all]): &(&str, [usize; 2])| match there {
        0 => format!("no sample of task `{name}`"),
        1 if all == 1 => format!("the one sample of task `{name}`"),
        n if n == all => format!("all {n} samples of task `{name}`"),
        n => format!("{n} of {all} samples of task `{name}`"),
    };
    let parts: Vec<String> = tasks.iter().map(of).collect();
    let verb = match tasks {
        [(_, [0 | 1, _])] => "is",
        _ => "are",
    };
    format!("{} {verb}", parts.join(" and "))
}

/// An error of the library in the program's words, where those differ.
fn in_words(error: fisher_train::Error, run: &MeasureArgs) -> Box<dyn Error> {
    match error {
        fisher_train::Error::OtherData {
            task,
            expected,
            found,
            ..
        } => {
            let now = match &*found {
                "the end of the data" => "there is none".into(),
                found => format!("there is `{found}`"),
            };
            format!(
                "{} holds other samples of task `{task}`: where it has `{expected}` {now} now; give the same samples \
                 in the same order, or another --out",
                run.out.display()
            )
            .into()
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_to_come_is_told() {
        assert_eq!(
            counted(&[("a", [3, 12])]),
            "3 of 12 samples of task `a` are"
        );
        assert_eq!(
            counted(&[("a", [6, 6]), ("b", [0, 12])]),
            "all 6 samples of task `a` and no sample of task `b` are"
        );
    }
}
