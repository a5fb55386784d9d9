//! Every family of models against transformers in float64.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use fisher_cli::models::{Checkpoint, Sequence, Sequences};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::golden::folder;
use fisher_train::batch::SampleLoss;
use fisher_train::capture::check;
use fisher_train::collect::CollectorConfig;
use fisher_train::labels::IGNORE;
use rstest::rstest;
use safetensors::SafeTensors;
use serde_json::Value;

/// Relative to the largest element of a parameter: what float32 leaves of gradients and their squares.
const TOLERANCE: f64 = 2e-5;

const TASKS: [&str; 2] = ["alpha", "beta"];

fn families() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(folder("families")).expect("families");
    let folders = folders.map(|entry| entry.expect("a folder").path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn samples(file: &Path) -> Vec<Sequence> {
    let lines = std::fs::read_to_string(file).expect("samples");
    let sample = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let list = |key: &str| -> Option<Vec<i64>> {
            row[key].as_array()?.iter().map(Value::as_i64).collect()
        };
        let tokens = list("input_ids").expect("tokens");
        let class = row["label"].as_u64().map(|class| class as usize);
        let labels = match class {
            Some(_) => vec![IGNORE; tokens.len()],
            None => list("labels").unwrap_or_else(|| tokens.clone()),
        };
        Sequence {
            id: row["id"].as_str().expect("an id").into(),
            document: None,
            tokens,
            labels,
            class,
        }
    };
    lines.lines().map(sample).collect()
}

/// How far numbers are from the oracle's, in units of what is allowed.
#[derive(Debug, Default)]
struct Distance {
    loss: f64,
    mean: f64,
    m2: f64,
    traced: bool,
}

fn measure(folder: &Path, size: usize, device: &Device) -> Result<Distance, String> {
    let tracked = device.clone().autodiff();
    let checkpoint = Checkpoint::load(folder, &tracked).map_err(|e| e.to_string())?;
    let read = |file: &str| std::fs::read(folder.join(file)).expect("a golden file");
    let expected: Value = serde_json::from_slice(&read("expected.json")).expect("JSON");
    let bytes = read("expected.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let Checkpoint {
        catalogue, heads, ..
    } = &checkpoint;
    let config = StatisticsConfig::new();
    let hash = checkpoint.hash().expect("a hash");
    let statistics = config.init_for(catalogue, heads, hash, device);
    let mut statistics: Statistics = statistics.map_err(|e| e.to_string())?;
    let collector = CollectorConfig::new().with_progress(false).init();
    let collector = collector
        .expect("a collector")
        .with_names(checkpoint.naming.names());
    let mut distance = Distance::default();
    for task in TASKS {
        let samples = samples(&folder.join(format!("{task}.jsonl")));
        let batch = |samples: &[Sequence]| Sequences::new(samples, &tracked);
        let batches: Vec<Sequences> = samples.chunks(size).map(batch).collect();
        let losses = batches.iter().flat_map(|batch| {
            let losses = checkpoint.model.sample_losses(batch);
            losses
                .sums()
                .clone()
                .inner()
                .into_data()
                .iter::<f64>()
                .collect::<Vec<_>>()
        });
        for (found, expected) in losses.zip(expected[task]["loss_sum"].as_array().expect("a list"))
        {
            let expected = expected.as_f64().expect("a loss");
            distance.loss = distance.loss.max((found - expected).abs() / expected.abs());
        }
        let checkup = check(&checkpoint.model, &batches[0]).map_err(|e| e.to_string())?;
        if !checkup.is_sound() {
            return Err(checkup.to_string());
        }
        distance.traced = checkup.is_fast();
        collector
            .collect_batches(&checkpoint.model, task, batches, &mut statistics)
            .map_err(|e| e.to_string())?;
        let of_task = statistics.task(task).expect("a task");
        for (path, parameter) in of_task.parameters() {
            let moments = parameter
                .elementwise()
                .expect("elements")
                .read()
                .expect("moments");
            let degrees = (moments.count - 1) as f64;
            let m2: Vec<f64> = moments
                .variance
                .expect("variances")
                .iter()
                .map(|v| v * degrees)
                .collect();
            let found = [("mean", moments.mean.expect("means")), ("m2", m2)];
            for (what, found) in found {
                let expected = tensors.tensor(&format!("{task}/{what}/{path}"));
                let expected = expected.map_err(|e| e.to_string())?;
                let numbers = expected.data().chunks_exact(4);
                let numbers =
                    numbers.map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))));
                let numbers: Vec<f64> = numbers.collect();
                let largest = numbers.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                let away = found
                    .iter()
                    .zip(&numbers)
                    .fold(0.0, |m: f64, (f, e)| m.max((f - e).abs()));
                let away = if away == 0.0 { 0.0 } else { away / largest };
                let worst = if what == "mean" {
                    &mut distance.mean
                } else {
                    &mut distance.m2
                };
                if away > TOLERANCE {
                    eprintln!("{}: {task} {what} of {path}: {away:.1e}", folder.display());
                }
                *worst = worst.max(away);
            }
        }
    }
    Ok(distance)
}

/// Means, M2 and losses of every configuration, at the price of a traced pass.
#[rstest]
#[case(Backend::Flex, 4)]
#[case(Backend::Flex, 1)]
fn families_agree_with_transformers(#[case] backend: Backend, #[case] size: usize) {
    let Some(device) = backend.device() else {
        return;
    };
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for folder in families() {
        let name = folder
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        match measure(&folder, size, &device) {
            Ok(of) => {
                let Distance {
                    loss,
                    mean,
                    m2,
                    traced,
                } = of;
                let _ = writeln!(
                    table,
                    "| {name} | {loss:.0e} | {mean:.0e} | {m2:.0e} | {traced} |"
                );
                if loss.max(mean).max(m2) > TOLERANCE || !traced {
                    wrong.push(name);
                }
            }
            Err(error) => {
                let _ = writeln!(table, "| {name} | {error} |");
                wrong.push(name);
            }
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{wrong:?}");
}
