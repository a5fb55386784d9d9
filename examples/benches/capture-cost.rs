//! What a capture and a checkpoint of the hook cost after 1, 10, 100 and 1000 captures: a capture
//! the same, a checkpoint what was captured since the last.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use fisher_examples::model::CausalTransformerConfig;
use fisher_examples::tasks::{CONTEXT, Data, Task, VOCABULARY};
use fisher_examples::training::loader;
use fisher_train::monitor::{HookConfig, HookSource, Schedule};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex().autodiff();
    device.seed(0);
    let data = Data::generate([128, 0, 64], 0);
    let config = CausalTransformerConfig::new(VOCABULARY, CONTEXT)
        .with_d_model(16)
        .with_d_ff(16)
        .with_layers(1);
    let model = config.init(&device);
    let batches = |items| -> Result<Vec<_>, String> {
        let batches = loader(items, &device);
        let batches = batches.iter().collect::<Result<Vec<_>, _>>();
        batches.map_err(|e| e.to_string())
    };
    let task = Task::ALL[0];
    let probes = vec![(task.name().to_owned(), batches(data.probe(task))?)];
    let batch = batches(&data.train)?.swap_remove(0);
    let folder = std::env::temp_dir().join(format!("capture-cost-{}", std::process::id()));
    let hook = HookConfig::new(Schedule::new().with_every_steps(Some(1)))
        .with_folder(Some(folder.clone()))
        .with_checkpoints(Some(folder.join("checkpoint")))
        .init(&model, HookSource::Probes(probes))?;
    println!("captures  ms a capture  ms a checkpoint  bytes of its state  bytes of all captures");
    let start = Instant::now();
    let mut recent = Vec::new();
    for captures in 1..=1000usize {
        let before = spent(start);
        hook.step(&model, &batch)?;
        recent.push(spent(start) - before);
        if [1, 10, 100, 1000].contains(&captures) {
            // Of the last half, the one in the middle.
            let mut last = recent.split_off(recent.len() / 2);
            last.sort();
            recent.clear();
            let before = spent(start);
            hook.save_checkpoint(captures)?;
            let checkpoints = folder.join("checkpoint");
            println!(
                "{captures:>8}  {:>12.2}  {:>15.2}  {:>18}  {:>21}",
                milliseconds(last[last.len() / 2]),
                milliseconds(spent(start) - before),
                bytes(&checkpoints.join(format!("fisher-{captures}")))?,
                bytes(&checkpoints)?,
            );
        }
    }
    Ok(std::fs::remove_dir_all(folder)?)
}

/// How long this thread has run, without what others took meanwhile where the system tells.
fn spent(start: Instant) -> Duration {
    let own = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let own = own.and_then(|text| text.split_whitespace().next()?.parse().ok());
    own.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Of the files in a folder, not of those in folders inside.
fn bytes(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let about = entry?.metadata()?;
        bytes += if about.is_file() { about.len() } else { 0 };
    }
    Ok(bytes)
}
