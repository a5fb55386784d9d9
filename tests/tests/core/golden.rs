//! The golden numbers of statistics, on every backend.

use fisher_core::gradient::PerToken;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rstest::rstest;

/// Gradients through contributions, default groups, heads and Welford, in batches of `size`.
fn collect(golden: &Golden, size: usize, device: &burn::tensor::Device) -> Statistics<PerToken> {
    let mut statistics = golden.statistics(&StatisticsConfig::new(), device);
    for task in TASKS {
        let count = golden.samples(task).len();
        for start in (0..count).step_by(size) {
            let batch = golden.batch(task, start..count.min(start + size), device);
            statistics.push(task, batch).expect("gradients");
        }
    }
    statistics
}

#[rstest]
fn means_and_deviations_agree(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1, 4)] size: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let statistics = collect(&golden, size, &device);
        let mut compared = 0;
        for task in TASKS {
            let of_task = statistics.task(task).expect("a task");
            let n = golden.samples(task).len();
            assert_eq!(of_task.count(), n);
            assert_eq!(
                of_task.tokens(),
                golden.samples(task).iter().map(|s| s.tokens()).sum::<u64>()
            );
            for (kind, m2_kind) in [("mean", "m2"), ("group_mean", "group_m2")] {
                for name in golden.names(&format!("{task}/{kind}/")) {
                    let (label, path) = match kind {
                        "mean" => ("", name),
                        _ => name.split_once('/').expect("a label and a path"),
                    };
                    let parameter = of_task.parameter(path).expect("a parameter");
                    let welford = match kind {
                        "mean" => parameter.elementwise(),
                        _ => parameter.group(label),
                    };
                    let read = welford.expect("an accumulator").read().expect("values");
                    let variance = read.variance.expect("two samples");
                    let m2: Vec<f64> = variance.iter().map(|v| v * (n - 1) as f64).collect();
                    let expected = |kind: &str| golden.values(&format!("{task}/{kind}/{name}"));
                    let named = |kind: &str| format!("{case} {task} {kind} {name}");
                    // Elements a millionth of the tensor's largest are held to that absolutely.
                    let (mean, floor) = (read.mean.expect("samples"), 1e-6);
                    assert_close(&named(kind), &mean, expected(kind), GOLDEN, floor);
                    assert_close(&named(m2_kind), &m2, expected(m2_kind), GOLDEN, floor);
                    compared += 1;
                }
            }
        }
        assert!(
            compared >= 2 * 2 * 20,
            "only {compared} tensors compared in {case}"
        );
    }
}

#[test]
fn layer_and_head_totals_are_sums_of_their_parts() {
    let device = Backend::Flex.device().expect("a CPU");
    let golden = Golden::load("llama-gqa");
    let statistics = collect(&golden, 3, &device);
    let totals = statistics.totals();
    let task = statistics.task("alpha").expect("a task");

    let layers = task.layers().mean.expect("samples");
    for (layer, found) in totals.layers().iter().zip(&layers) {
        let inside = |path: &str| path.starts_with(&format!("{layer}."));
        let numbered = layer.contains("layers.");
        let expected: f64 = golden
            .names("alpha/mean/")
            .filter(|path| inside(path) && (numbered || !path.contains("layers.")))
            .flat_map(|path| golden.values(&format!("alpha/mean/{path}")))
            .sum();
        assert_close(layer, &[*found], &[expected], GOLDEN, 0.0);
    }
    let names = [
        "lm_head",
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
    ];
    assert_eq!(totals.layers(), names);

    // Q and O of head 3 and half of K and V of kv head 1, which two heads share, in sums over
    // their 4 × 16 elements.
    let heads = task.heads().mean.expect("samples");
    let index = totals
        .heads()
        .iter()
        .position(|key| key.attention == "model.layers.1.self_attn" && key.head == 3);
    let group = |block: &str, projection: &str, head: usize| {
        let name = format!("model.layers.1.self_attn.{projection}.weight");
        golden.values(&format!("alpha/group_mean/head.{block}/{name}"))[head] * 64.0
    };
    let expected = group("Q", "q_proj", 3)
        + group("K", "k_proj", 1) / 2.0
        + group("V", "v_proj", 1) / 2.0
        + group("O", "o_proj", 3);
    assert_close(
        "head 3",
        &[heads[index.expect("a head")]],
        &[expected],
        GOLDEN,
        0.0,
    );
}
