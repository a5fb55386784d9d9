//! The ranking of layers and heads against the golden numbers.

use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::Error;
use fisher_metrics::importance::{ImportanceConfig, ImportanceReport};
use fisher_tests::backend::Backend;
use fisher_tests::golden::Golden;
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rstest::rstest;

#[rstest]
fn layers_rank_by_their_golden_trace(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let golden = Golden::load("llama-gqa");
    let mut statistics: Statistics = golden.statistics(&StatisticsConfig::new(), &device);
    let batch = golden.batch("alpha", 0..6, &device);
    statistics.push("alpha", batch).expect("gradients");
    let importance = ImportanceConfig::new().init().expect("a level");
    let report = importance.forward(&statistics, "alpha").expect("a report");

    // Per layer the sums of the samples' contributions, from the golden gradients.
    let samples = golden.samples("alpha");
    let of_sample = |layer: &str, sample: &fisher_core::sample::Sample| -> f64 {
        let prefix = format!("alpha/gradient/{}/", sample.id());
        let inside = |path: &&str| {
            if layer.contains("layers.") {
                path.starts_with(&format!("{layer}."))
            } else {
                **path == format!("{layer}.weight")
            }
        };
        let paths = golden.names(&prefix).filter(inside);
        let values = paths.flat_map(|path| golden.values(&format!("{prefix}{path}")));
        values.map(|g| g * g).sum::<f64>() / sample.tokens() as f64
    };
    assert_eq!(report.layers.len(), 5);
    for layer in &report.layers {
        let x: Vec<f64> = samples.iter().map(|s| of_sample(&layer.name, s)).collect();
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let error = (variance / n).sqrt();
        // Student's t for five degrees of freedom.
        let half = 2.570_581_835_6 * error;
        let interval = layer.interval.expect("six samples");
        let found = [layer.fisher, layer.standard_error.expect("six samples")];
        assert_close(&layer.name, &found, &[mean, error], GOLDEN, 0.0);
        let expected = [mean - half, mean + half];
        assert_close(
            &layer.name,
            &[interval.lower, interval.upper],
            &expected,
            GOLDEN,
            1.0,
        );
    }
    let falls = |pair: &[fisher_metrics::importance::Ranked]| pair[0].fisher >= pair[1].fisher;
    assert!(report.layers.windows(2).all(falls) && report.heads.windows(2).all(falls));
    let shares: f64 = report.layers.iter().filter_map(|l| l.share).sum();
    assert!((shares - 1.0).abs() < 1e-12);
    assert_eq!(report.heads.len(), 8);

    let json = serde_json::to_string(&report).expect("JSON");
    let again: ImportanceReport = serde_json::from_str(&json).expect("a report");
    assert_eq!(again.layers.len(), report.layers.len());
    assert_eq!(again.provenance, report.provenance);
    assert!(
        report
            .to_string()
            .contains("model.layers.1.self_attn head 3")
    );
}

#[test]
fn a_task_that_is_not_there_or_is_empty_is_an_error() {
    let device = Backend::Flex.device().expect("a CPU");
    let golden = Golden::load("llama-gqa");
    let mut statistics: Statistics = golden.statistics(&StatisticsConfig::new(), &device);
    let importance = ImportanceConfig::new().init().expect("a level");
    assert!(importance.forward(&statistics, "alpha").is_err());
    let skipped = statistics.skip("alpha", &golden.samples("alpha")[0], "lm_head.weight");
    skipped.expect("a new sample");
    let error = importance
        .forward(&statistics, "alpha")
        .expect_err("no samples");
    assert!(matches!(error, Error::NoSamples { task } if task == "alpha"));
}
