//! How long masks and their overlap take on many elements, beside a sort of as many.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use clap::Parser;
use fisher_cli::memory::resident;
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::pruning::{OverlapConfig, PruningConfig, Scores};

/// Prune half of many elements, compare two such masks, and print the time of each beside that of
/// sorting the same scores.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Elements; takes about 60 bytes each
    #[arg(long, default_value_t = 100_000_000)]
    elements: usize,
    /// Rounds; the medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What `cargo bench` adds to every command line
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let [a, b] = [1, 2].map(|seed| scores(arguments.elements, seed));
    let (a, b) = (a?, b?);
    let pruning = PruningConfig::new(0.5).init()?;
    let overlap = OverlapConfig::new().init()?;
    let mut times: [Vec<f64>; 3] = Default::default();
    // Linux: forget the peak of making the scores. Elsewhere no memory is printed.
    let fresh = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = resident("VmRSS:").filter(|_| fresh);
    for _ in 0..arguments.rounds.max(1) {
        let start = Instant::now();
        let masks = [pruning.forward(&a)?, pruning.forward(&b)?];
        times[0].push(start.elapsed().as_secs_f64() / 2.0);
        let start = Instant::now();
        let report = overlap.forward(&masks[0], &masks[1])?;
        times[1].push(start.elapsed().as_secs_f64());
        assert_eq!(
            report.all.both + report.all.only_a,
            arguments.elements.div_ceil(2)
        );
    }
    let peak = resident("VmHWM:");
    let mut sorted = a.sets()[0].values().to_vec();
    for _ in 0..arguments.rounds.max(1) {
        sorted.copy_from_slice(a.sets()[0].values());
        let start = Instant::now();
        sorted.sort_unstable_by(f64::total_cmp);
        times[2].push(start.elapsed().as_secs_f64());
    }
    let [mask, compare, sort] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!(
        "{} elements, medians of {} rounds",
        arguments.elements, arguments.rounds
    );
    println!("  sort of the scores   {sort:>8.3} s");
    println!(
        "  mask at 50 %         {mask:>8.3} s  {:>5.2} of the sort",
        mask / sort
    );
    println!(
        "  overlap of two       {compare:>8.3} s  {:>5.2} of the sort",
        compare / sort
    );
    if let (Some(before), Some(peak)) = (before, peak) {
        let input = 8.0 * arguments.elements as f64 / 1e9;
        let more = peak - before;
        println!("  memory               {more:>8.2} GB beyond a task's scores of {input:.2} GB");
    }
    Ok(())
}

/// F of one parameter from one sample with random gradients.
fn scores(elements: usize, seed: u64) -> Result<Scores, Box<dyn std::error::Error>> {
    let device = Device::flex();
    device.seed(seed);
    let matrix = Parameter::new("w", [1, elements], Role::Matrix, Orientation::InputOutput);
    let config = StatisticsConfig::new().with_grouped(false);
    let catalogue = Catalogue::new(vec![matrix])?;
    let heads = HeadLayout::none();
    let mut statistics: Statistics =
        config.init_for(&catalogue, &heads, "random".into(), &device)?;
    let mut batch = GradientBatch::new(vec![Sample::new("0", 1)?]);
    let gradient = Tensor::<2>::random([1, elements], Distribution::Default, &device);
    batch.insert("w", Gradient::token_sum(gradient));
    statistics.push("task", batch)?;
    Ok(Scores::elementwise(&statistics, "task")?)
}
