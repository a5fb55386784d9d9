//! Train a small transformer on two tasks and say which heads and layers each depends on.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use fisher_core::gates::GatesConfig;
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::Catalogue;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_examples::chapters::Setting;
use fisher_examples::device::Backend;
use fisher_examples::model::CausalTransformerConfig;
use fisher_examples::tasks::{CONTEXT, Data, Task, VOCABULARY};
use fisher_examples::training::{LEARNT, Lesson, loader, marks, train};
use fisher_examples::truth::Seen;
use fisher_examples::{chapters, chart, collisions, course, groups, seeds, tasks};
use fisher_metrics::importance::{ImportanceConfig, ImportanceReport};
use fisher_train::capture::Engine;
use fisher_train::collect::CollectorConfig;
use tracing_subscriber::EnvFilter;

/// Train a small causal transformer on two algorithmic tasks, then measure which attention heads
/// and layers each task depends on.
///
/// While it is trained, samples of each task are looked at every 25 batches: what their Fisher says of
/// heads, gradient noise and conflicts is printed and saved (history.jsonl, history.svg).
///
/// Then what follows from it, as experiments: overlap of the tasks, pruning, ablation of heads,
/// collisions of samples in heads, merging of two specialists, learning one task after the other
/// with and without EWC.
///
/// Tasks: induction (a run of symbols is repeated) and maximum (the largest of a list). Writes to
/// the folder of --out: statistics.safetensors (mean and variance of the diagonal empirical
/// Fisher, by element and by group, for each task), gates.safetensors (what taking out layers, heads and channels is
/// predicted to cost), importance.json (the rankings), conflicts.json
/// and interference.json (which samples collide, and in which heads), and pictures of all three. The same seed on the same device gives the same numbers.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    device: Backend,
    /// Seed of data, weights and order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for the results
    #[arg(long, default_value = "out/two-tasks")]
    out: PathBuf,
    /// Few samples and little training: shows that everything runs, learns nothing
    #[arg(long)]
    quick: bool,
    /// Show Burn's dashboard during the first training; built with the feature `tui`
    #[arg(long)]
    dashboard: bool,
    /// Only time training with captures against training without
    #[arg(long)]
    overhead: bool,
    /// Only train, ablate and prune, from so many seeds on, and print medians and ranges
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Pairs of runs for --overhead
    #[arg(long, default_value_t = 5, requires = "overhead")]
    pairs: usize,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    if arguments.dashboard && !cfg!(feature = "tui") {
        return Err(
            "this program was built without the dashboard; build it with `--features tui`".into(),
        );
    }
    let device = arguments.device.device()?;
    let (sizes, epochs) = if arguments.quick {
        ([256, 32, 16], 1)
    } else {
        ([4000, 1024, 4096], 12)
    };
    let [trained_on, held_out, _] = sizes;
    std::fs::create_dir_all(&arguments.out)?;

    if arguments.seeds > 1 {
        let seeds = arguments.seed..arguments.seed + arguments.seeds;
        return seeds::compare(seeds, (sizes, epochs), &device, &arguments.out);
    }
    let data = Data::generate(sizes, arguments.seed);
    device.seed(arguments.seed);
    let config = CausalTransformerConfig::new(VOCABULARY, CONTEXT);
    let fresh = config.init(&device.clone().autodiff());
    let lesson = Lesson {
        data: &data,
        tasks: &Task::ALL,
        epochs,
        rate: 3e-3,
        seed: arguments.seed,
        ewc: None,
        hook: None,
        dashboard: arguments.dashboard,
    };
    if arguments.overhead {
        let lesson = Lesson {
            epochs: epochs.min(4),
            ..lesson
        };
        return course::overhead(&config, &lesson, &arguments.out, &device, arguments.pairs);
    }
    println!(
        "Training: {} layers of {} heads, width {}, on {trained_on} samples of each task.",
        config.layers, config.heads, config.d_model
    );
    let every = if arguments.quick { 2 } else { 25 };
    let hook_config = course::everything(every).with_folder(Some(arguments.out.clone()));
    let hook = course::watch(&fresh, &config, &data, &device, &hook_config)?;
    let watched = Lesson {
        hook: Some(&hook),
        ..lesson
    };
    let (model, took) = train(fresh.clone(), &watched, &arguments.out, &device)?;
    for (task, mark) in Task::ALL.into_iter().zip(marks(&model, &data, &device)?) {
        let verdict = if mark.accuracy >= LEARNT {
            "learnt"
        } else {
            "not learnt"
        };
        println!(
            "  {:<10} {:.1} % of {held_out} held-out samples right: {verdict}",
            task.name(),
            100.0 * mark.accuracy
        );
    }
    println!("  {took} epochs, {:.0} s", start.elapsed().as_secs_f64());
    course::tell(&hook.history(), &arguments.out)?;
    println!();

    let catalogue = Catalogue::of(&model)?;
    let heads = HeadLayout::recognize(&catalogue, &AttentionConfig::new(config.heads))?;
    let statistics_config = StatisticsConfig::new().with_seed(Some(arguments.seed));
    let mut statistics: Statistics = statistics_config.init_with_heads(&model, &heads)?;
    let mut gates = GatesConfig::new().init_with_heads(&model, &heads)?;
    let collector = CollectorConfig::new().init()?;
    println!("Collecting per-sample gradients of other held-out samples, a batch at a time.");
    for task in Task::ALL {
        let batches = loader(data.probe(task), &device.clone().autodiff());
        let into = (&mut statistics, &mut gates);
        let collected = collector.collect(&model, task.name(), &*batches, into)?;
        println!(
            "  {:<10} {} samples, {} active tokens, loss {:.4} a token, {:.1} s",
            task.name(),
            collected.samples,
            collected.tokens,
            collected.loss / collected.tokens as f64,
            collected.elapsed.as_secs_f64()
        );
    }
    let task = Task::ALL[0];
    let mut by_loop: Statistics = statistics_config.init_with_heads(&model, &heads)?;
    let batches = loader(data.probe(task), &device.clone().autodiff());
    let slow = CollectorConfig::new().with_engine(Engine::Loop).init()?;
    let slow = slow.collect(&model, task.name(), &*batches, &mut by_loop)?;
    println!(
        "  {:<10} one backward pass a sample instead: {:.1} s",
        task.name(),
        slow.elapsed.as_secs_f64()
    );
    let statistics_path = arguments.out.join("statistics.safetensors");
    statistics.save(&statistics_path)?;
    gates
        .scores()
        .save(arguments.out.join("gates.safetensors"))?;

    let importance = ImportanceConfig::new().init()?;
    let mut reports: Vec<ImportanceReport> = Vec::new();
    for task in Task::ALL {
        let report = importance.forward(&statistics, task.name())?;
        println!("\n{report}");
        reports.push(report);
    }
    let json = arguments.out.join("importance.json");
    std::fs::write(&json, serde_json::to_string_pretty(&reports)?)?;
    let picture = arguments.out.join("importance.svg");
    chart::importance(&picture, &reports)?;

    let setting = Setting {
        data: &data,
        heads: &heads,
        device: &device,
        seed: arguments.seed,
        folder: &arguments.out,
        epochs: epochs.min(5),
    };
    let seen = Seen {
        statistics,
        gates: gates.into_scores(),
    };
    chapters::overlap(&seen.statistics)?;
    chapters::prune(&setting, &model, &seen.statistics)?;
    let ablated = groups::ablate(&setting, &model, &seen)?;
    groups::prune(&setting, &model, &seen)?;
    collisions::collide(&setting, &model, &ablated)?;
    let beginning = Lesson {
        epochs: 1,
        dashboard: false,
        ..lesson
    };
    let (beginning, _) = train(fresh.clone(), &beginning, &arguments.out, &device)?;
    chapters::merge(&setting, &beginning)?;
    chapters::sequence(&setting, &fresh)?;
    println!(
        "\nWrote {}, {} and {} in {:.0} s ({} symbols, seed {}).",
        statistics_path.display(),
        json.display(),
        picture.display(),
        start.elapsed().as_secs_f64(),
        tasks::SYMBOLS,
        arguments.seed
    );
    Ok(())
}
