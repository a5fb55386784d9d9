//! The Fisher of both tasks while they are learnt, and what it costs to look.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use burn::module::ParamGroup;
use burn::tensor::Device;
use fisher_core::grouping::AttentionConfig;
use fisher_core::statistics::StatisticsConfig;
use fisher_metrics::picture::Picture;
use fisher_train::monitor::{
    FisherHook, History, HookConfig, NoiseScaleConfig, Reading, SampleWeight, Schedule, TaskReading,
};

use crate::chapters::heading;
use crate::model::{CausalTransformer, CausalTransformerConfig};
use crate::tasks::{Data, Task, TaskBatch};
use crate::training::{Lesson, Pupil, loader, train};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Samples of each task that a capture looks at.
const PROBES: usize = 64;

/// Captures of groups, heads and layers every `steps` batches.
pub fn grouped(steps: u64) -> HookConfig {
    HookConfig::new(Schedule::new().with_every_steps(Some(steps)))
}

/// Captures of all there is: every element too, the gradient noise scale, cosines across tasks.
pub fn everything(steps: u64) -> HookConfig {
    // The training loss is the mean over samples of their mean over tokens.
    let noise = NoiseScaleConfig::new().with_weight(SampleWeight::TokenMean);
    grouped(steps)
        .with_statistics(StatisticsConfig::new())
        .with_noise(Some(noise))
        .with_compare(Some(ParamGroup::all()))
}

/// A hook that looks at samples of both tasks while `model` is trained.
///
/// # Errors
/// What did not fit.
pub fn watch(
    model: &CausalTransformer,
    config: &CausalTransformerConfig,
    data: &Data,
    device: &Device,
    hook: &HookConfig,
) -> Result<FisherHook<TaskBatch>> {
    let pupil = Pupil::new(model.clone(), None);
    let mut probes = Vec::new();
    for task in Task::ALL {
        let items = data.probe(task);
        let items = &items[..items.len().min(PROBES)];
        let batches = loader(items, &device.clone().autodiff());
        let batches: std::result::Result<Vec<_>, _> = batches.iter().collect();
        probes.push((task.name().to_owned(), batches.map_err(|e| e.to_string())?));
    }
    let attention = AttentionConfig::new(config.heads);
    let statistics = hook.statistics.clone().with_attention(Some(attention));
    let hook = hook.clone().with_statistics(statistics);
    Ok(hook.init(&pupil, probes)?)
}

/// What a hook found, as a table, and a picture in `folder`.
///
/// # Errors
/// What kept the picture from being written.
pub fn tell(history: &History, folder: &Path) -> Result<()> {
    heading("In the course of training: what 64 samples of each task say");
    let [induction, maximum] = Task::ALL.map(Task::name);
    println!(
        "{:>7}  {:>25}  {:>25}  {:>19}  {:>14}",
        "", induction, maximum, "noise scale", "across tasks"
    );
    println!(
        "{:>7}  {:>7} {:>9} {:>7}  {:>7} {:>9} {:>7}  {:>19}  {:>6} {:>7}",
        "batches",
        "loss",
        "trace",
        "top",
        "loss",
        "trace",
        "top",
        "samples, 95 %",
        "cosine",
        "cos < 0"
    );
    for reading in history.readings() {
        let of_tasks: Vec<String> = [induction, maximum]
            .iter()
            .filter_map(|task| reading.tasks.get(*task).map(row))
            .collect();
        let noise = reading.noise.and_then(|noise| noise.interval);
        let noise = noise.map_or("–".into(), |interval| interval.to_string());
        let across = reading.across.map_or("–".into(), |across| {
            let rate = 100.0 * across.conflict_rate;
            format!("{:>+6.2} {rate:>5.0} %", across.mean_cosine)
        });
        println!(
            "{:>7}  {}  {noise:>19}  {across}",
            reading.step,
            of_tasks.join("  ")
        );
    }
    println!("  top: the share of the largest head in the trace\n");
    if let Some(sentence) = circuit(history, induction) {
        println!("{sentence}");
    }
    let maps = [induction, maximum].into_iter();
    let maps = maps.filter_map(|task| history.picture(task));
    let maps = maps.flat_map(|picture| picture.maps).collect();
    let picture = Picture {
        title: "Share of each attention head in the Fisher trace, as training goes".into(),
        note: format!("From {PROBES} samples of each task at each capture."),
        maps,
    };
    picture.save(folder.join("history.svg"))?;
    Ok(())
}

fn row(task: &TaskReading) -> String {
    let number = |x: Option<f64>, digits| x.map_or("–".into(), |x| format!("{x:.digits$}"));
    let trace = task
        .trace
        .map_or("–".into(), |trace| format!("{trace:.2e}"));
    let top = top(task).map(|top| format!("{:.0} %", 100.0 * top.1));
    let top = top.unwrap_or("–".into());
    format!("{:>7} {trace:>9} {top:>7}", number(task.loss, 3))
}

/// The head with the largest share.
fn top(task: &TaskReading) -> Option<(&str, f64)> {
    let shares = task.heads.iter();
    let shares = shares.filter_map(|head| Some((&*head.name, head.fisher / task.trace?)));
    shares.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// When `task` was learnt, and when the head that ends up largest came up.
fn circuit(history: &History, task: &str) -> Option<String> {
    let of_task = |reading: &Reading| Some((reading.step, reading.tasks.get(task)?.clone()));
    let readings: Vec<(u64, TaskReading)> = history.readings().iter().filter_map(of_task).collect();
    let drop = |pair: &&[(u64, TaskReading)]| Some(pair[0].1.loss? - pair[1].1.loss?);
    let order =
        |a: Option<f64>, b: Option<f64>| a.unwrap_or(f64::MIN).total_cmp(&b.unwrap_or(f64::MIN));
    let pairs = readings.windows(2);
    let steepest = pairs.max_by(|a, b| order(drop(a), drop(b)))?;
    let [(from, before), (to, after)] = steepest else {
        return None;
    };
    let highest = readings.iter().max_by(|a, b| order(a.1.trace, b.1.trace))?;

    // The mean share of each head over the last quarter.
    let share = |task: &TaskReading, head: usize| {
        let trace = task.trace.filter(|trace| *trace > 0.0)?;
        Some(task.heads.get(head)?.fisher / trace)
    };
    let last = &readings[readings.len() * 3 / 4..];
    let mean = |head: usize| {
        let shares: Vec<f64> = last.iter().filter_map(|(_, t)| share(t, head)).collect();
        shares.iter().sum::<f64>() / shares.len() as f64
    };
    let heads = &last.first()?.1.heads;
    let largest = (0..heads.len()).max_by(|&a, &b| mean(a).total_cmp(&mean(b)))?;
    let up = |(_, task): &&(u64, TaskReading)| share(task, largest) > Some(0.5 * mean(largest));
    let since = readings.iter().find(up)?.0;
    Some(format!(
        "The loss of {task} falls most between batches {from} and {to}, from {:.2} to {:.2} a token; \
         its trace is highest at batch {} ({:.2e}). Largest in the end is {}, {:.0} % of the trace \
         over the last quarter of captures: it first has half of that at batch {since}.",
        before.loss?,
        after.loss?,
        highest.0,
        highest.1.trace?,
        heads[largest].name,
        100.0 * mean(largest)
    ))
}

/// Train in pairs, without a hook and with one, and print how much longer it takes.
///
/// # Errors
/// What training stopped with.
pub fn overhead(
    config: &CausalTransformerConfig,
    lesson: &Lesson<'_>,
    folder: &Path,
    device: &Device,
    pairs: usize,
) -> Result<()> {
    let settings = [
        ("groups, heads, layers", grouped(50)),
        ("and elements, noise scale, cosines", everything(50)),
    ];
    println!(
        "Time of {} epochs of training with captures of {PROBES} samples of each task every 50 batches, \
         over the time without; {pairs} pairs, each in turn first.\n",
        lesson.epochs
    );
    for (name, hook_config) in settings {
        let mut ratios = Vec::new();
        let mut captures = 0;
        for pair in 0..pairs {
            let mut seconds = [0.0; 2];
            for turn in 0..2 {
                let watched = (pair + turn) % 2;
                device.seed(lesson.seed);
                let model = config.init(&device.clone().autodiff());
                let start = Instant::now();
                let hook = match watched {
                    0 => None,
                    _ => Some(watch(&model, config, lesson.data, device, &hook_config)?),
                };
                let lesson = Lesson {
                    hook: hook.as_ref(),
                    ..*lesson
                };
                train(model, &lesson, folder, device)?;
                seconds[watched] = start.elapsed().as_secs_f64();
                captures = hook.map_or(captures, |hook| hook.history().readings().len());
            }
            let [without, with] = seconds;
            println!(
                "  {name}: {with:.2} s / {without:.2} s = {:.3}",
                with / without
            );
            ratios.push(with / without);
        }
        ratios.sort_by(f64::total_cmp);
        println!(
            "{name}: median {:.3}, {captures} captures\n",
            ratios[ratios.len() / 2]
        );
    }
    Ok(())
}
