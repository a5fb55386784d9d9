//! The memory that a batch takes, measured in a process of its own.

#![cfg(target_os = "linux")]

use std::process::Command;

use burn::module::ParamGroup;
use burn::nn::{EmbeddingConfig, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use fisher_core::{HeadLayout, Sample, Scheme, Statistics, StatisticsConfig};
use rstest::rstest;

const MEASURED: &str = "FISHER_MEASURED";
const MIB: usize = 1 << 20;

/// The most that this process has held, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    1024 * kib.unwrap_or_else(|| panic!("no peak in {status}"))
}

/// By how much `work` raises the peak, in a process that runs the test `name` only; in bytes, with
/// its seconds.
fn measured(name: &str, work: impl FnOnce()) -> (usize, f64) {
    if std::env::var(MEASURED).as_deref() == Ok(name) {
        let before = peak();
        let start = std::time::Instant::now();
        work();
        let seconds = start.elapsed().as_secs_f64();
        println!("MEASURED {} {seconds}", peak() - before);
        std::process::exit(0);
    }
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args([name, "--exact", "--nocapture", "--test-threads", "1"])
        .env(MEASURED, name)
        .output()
        .expect("a process");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|l| l.split_once("MEASURED "));
    let (_, line) = line.unwrap_or_else(|| panic!("{output:?}"));
    let (bytes, seconds) = line.split_once(' ').expect("two numbers");
    let found = (
        bytes.parse().expect("bytes"),
        seconds.parse().expect("seconds"),
    );
    println!("{name}: {} MiB, {:.2} s", found.0 / MIB, found.1);
    found
}

fn samples(count: usize) -> Vec<Sample> {
    let sample = |i| Sample::new(format!("{i}"), 1).expect("tokens");
    (0..count).map(sample).collect()
}

/// Gradients of the batch would be 128 MiB in float32 and 256 MiB in float64.
#[rstest]
#[case::buckets(Scheme::Buckets { size: 1000 })]
#[case::custom(Scheme::Custom { ids: (0..1 << 20).map(|e| e % 777).collect() })]
fn scattered_groups_need_no_gradients(#[case] scheme: Scheme) {
    let case = match scheme {
        Scheme::Buckets { .. } => "case_1_buckets",
        _ => "case_2_custom",
    };
    let name = format!("scattered_groups_need_no_gradients::{case}");
    let (bytes, _) = measured(&name, || {
        let device = Device::flex();
        let model = LinearConfig::new(1024, 1024).with_bias(false);
        let config = StatisticsConfig::new()
            .with_elementwise(false)
            .with_schemes(vec![(ParamGroup::all(), scheme)]);
        let model = model.init(&device.clone().autodiff());
        let mut statistics: Statistics = config.init(&model, &HeadLayout::none()).expect("some");
        let side = Tensor::<3>::ones([32, 2, 1024], &device);
        let mut stream = statistics.stream("task", samples(32)).expect("new samples");
        let pushed = stream.product("weight", side.clone(), side, true);
        pushed.expect("factors of the parameter");
        stream.finish().expect("finite squares");
    });
    assert!(bytes < 100 * MIB, "{} MiB", bytes / MIB);
}

/// Pairs of positions would be 256 MiB in float32.
#[test]
fn a_lookup_needs_no_pairs_of_positions() {
    let (bytes, _) = measured("a_lookup_needs_no_pairs_of_positions", || {
        let device = Device::flex();
        let model = EmbeddingConfig::new(1000, 16).init(&device.clone().autodiff());
        let heads = HeadLayout::none();
        let mut statistics: Statistics = StatisticsConfig::new().init(&model, &heads).expect("one");
        let ids = Tensor::<1, Int>::arange(0..8192, &device).remainder_scalar(1000);
        let delta = Tensor::<3>::ones([1, 8192, 16], &device);
        let mut stream = statistics.stream("task", samples(1)).expect("a new sample");
        let pushed = stream.lookup("weight", ids.reshape([1, 8192]), delta);
        pushed.expect("rows of the table");
        stream.finish().expect("finite squares");
    });
    assert!(bytes < 64 * MIB, "{} MiB", bytes / MIB);
}
