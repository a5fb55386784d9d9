//! How long comparing samples with samples takes, and how much memory.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use fisher_cli::memory::resident;
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::AttentionConfig;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_examples::device::Backend;
use fisher_metrics::conflicts::ConflictsConfig;
use fisher_metrics::interference::{InterferenceConfig, Pool, Variant};

use burn::tensor::{Device, Distribution, Tensor};

/// Time interference of attention heads and the relabelling test on random gradients.
///
/// A model of 4 layers, 8 heads (2 key/value heads), width 256; attention only. Prints the median
/// of some rounds, and the memory beyond the gradients themselves.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    device: Backend,
    /// Samples of each task for interference
    #[arg(long, default_value_t = 32)]
    samples: usize,
    /// Keep gradients in a fresh folder inside this one (removed at the end) instead of memory
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Bytes an analysis may work with
    #[arg(long, default_value_t = 256 << 20)]
    memory: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Time the relabelling test too, on 64 samples of each task
    #[arg(long)]
    conflicts: bool,
    /// Seed of the gradients
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What `cargo bench` adds to every command line
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

const WIDTH: usize = 256;
const HEADS: [usize; 2] = [8, 2];

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let device = arguments.device.device()?;
    device.seed(arguments.seed);
    let catalogue = catalogue()?;

    let n = arguments.samples;
    let folder = fresh(arguments, n)?;
    let store = fill(folder.clone(), &catalogue, n, &device)?;
    println!("{n} × {n} samples: {}", store.usage());
    for (name, config) in [
        ("unsigned, pool A (default)", InterferenceConfig::new()),
        (
            "signed, pool B",
            InterferenceConfig::new()
                .with_variant(Variant::Signed)
                .with_pool(Pool::B),
        ),
    ] {
        let config = config.with_memory(arguments.memory).with_progress(false);
        let interference = config.init()?;
        let before = resident("VmRSS:");
        let seconds = median(arguments.rounds, || {
            interference.forward(&store, ["a", "b"])?;
            Ok(())
        })?;
        let pairs = (n * n) as f64;
        println!(
            "  interference, {name:<28} {:>9.4} s  {:>8.3} µs a pair  peak {} beyond",
            seconds,
            1e6 * seconds / pairs,
            beyond(before)
        );
    }
    drop(store);
    remove(folder)?;

    if arguments.conflicts {
        let folder = fresh(arguments, 64)?;
        let store = fill(folder.clone(), &catalogue, 64, &device)?;
        println!("64 × 64 samples: {}", store.usage());
        let mut times = Vec::new();
        for (name, relabellings) in [("1000 relabellings", 1000), ("1 relabelling", 1)] {
            let config = ConflictsConfig::new()
                .with_relabellings(Some(relabellings))
                .with_progress(false);
            let conflicts = config.init()?;
            let seconds = median(arguments.rounds, || {
                conflicts.forward(&store, ["a", "b"])?;
                Ok(())
            })?;
            println!("  conflicts of every parameter, {name:<18} {seconds:>9.4} s");
            times.push(seconds);
        }
        println!(
            "  so 1000 relabellings beyond the cosines {:>9.4} s",
            times[0] - times[1]
        );
        drop(store);
        remove(folder)?;
    }
    Ok(())
}

/// A folder that nothing else is in: what else lies in the one given is not touched.
fn fresh(arguments: &Arguments, count: usize) -> std::io::Result<Option<PathBuf>> {
    let Some(parent) = &arguments.folder else {
        return Ok(None);
    };
    std::fs::create_dir_all(parent)?;
    let folder = parent.join(format!("pairs-speed-{}-{count}", std::process::id()));
    std::fs::create_dir(&folder)?;
    Ok(Some(folder))
}

fn remove(folder: Option<PathBuf>) -> std::io::Result<()> {
    folder.map_or(Ok(()), std::fs::remove_dir_all)
}

fn catalogue() -> fisher_core::Result<Catalogue> {
    let kv = WIDTH * HEADS[1] / HEADS[0];
    let matrix = |layer: usize, name: &str, shape: [usize; 2]| {
        let path = format!("layers.{layer}.attention.{name}.weight");
        Parameter::new(path, shape, Role::Matrix, Orientation::InputOutput)
    };
    let layer = |layer| {
        [
            matrix(layer, "query", [WIDTH, WIDTH]),
            matrix(layer, "key", [WIDTH, kv]),
            matrix(layer, "value", [WIDTH, kv]),
            matrix(layer, "output", [WIDTH, WIDTH]),
        ]
    };
    Catalogue::new((0..4).flat_map(layer).collect())
}

/// Normal gradients of both tasks.
fn fill(
    folder: Option<PathBuf>,
    catalogue: &Catalogue,
    count: usize,
    device: &Device,
) -> Result<GradientStore, Box<dyn std::error::Error>> {
    let memory = if folder.is_some() { 0 } else { usize::MAX };
    let attention = AttentionConfig::new(HEADS[0]).with_kv_heads(Some(HEADS[1]));
    let config = GradientStoreConfig::new(memory)
        .with_folder(folder)
        .with_attention(Some(attention));
    let store = config.init_for(catalogue, "random".into())?;
    let mut store = store.with_device(device);
    for task in ["a", "b"] {
        for start in (0..count).step_by(32) {
            let ids = start..count.min(start + 32);
            let samples = ids.map(|i| Sample::new(i.to_string(), 100));
            let samples: Vec<Sample> = samples.collect::<Result<_, _>>()?;
            let mut batch = GradientBatch::new(samples.clone());
            for parameter in catalogue.parameters() {
                let shape = [samples.len(), parameter.elements()];
                let normal = Distribution::Normal(0.0, 1e-3);
                let gradient = Tensor::<2>::random(shape, normal, device);
                batch.insert(parameter.path(), Gradient::token_sum(gradient));
            }
            store.push(task, &batch)?;
        }
    }
    Ok(store)
}

fn median(
    rounds: usize,
    mut run: impl FnMut() -> Result<(), Box<dyn std::error::Error>>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let mut times = Vec::new();
    for _ in 0..rounds.max(1) {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// The peak so far beyond what was resident before, where the system tells.
fn beyond(before: Option<f64>) -> String {
    match (before, resident("VmHWM:")) {
        (Some(before), Some(peak)) => format!("{:.3} GB", peak - before),
        _ => "unknown".into(),
    }
}
