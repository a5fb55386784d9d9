//! The ranking of layers and heads against the golden numbers.

use fisher_core::gradient::GradientBatch;
use fisher_core::moments::{IntervalMethod, SampleMoments};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::Error;
use fisher_metrics::importance::{ImportanceConfig, ImportanceReport, Ranked};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rstest::rstest;
use serde_json::Value;

/// In clusters, the first and the last two samples are one each.
fn collected(golden: &Golden, clusters: bool, device: &burn::tensor::Device) -> Statistics {
    let mut statistics: Statistics = golden.statistics(&StatisticsConfig::new(), device);
    for task in TASKS {
        let count = golden.samples(task).len();
        for at in 0..count {
            let batch = golden.batch(task, at..at + 1, device);
            let sample = batch.samples()[0].clone();
            let sample = if clusters {
                let cluster = at.clamp(1, count - 2);
                sample.with_cluster(cluster.to_string())
            } else {
                sample
            };
            let mut named = GradientBatch::new(vec![sample]);
            for (path, gradient) in batch.iter() {
                named.insert(path, gradient.clone());
            }
            statistics.push(task, named).expect("gradients");
        }
    }
    statistics
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn close(name: &str, found: f64, expected: &Value) {
    assert_close(name, &[found], &[number(expected)], 4.0 * GOLDEN, 1e-3);
}

fn check(name: &str, found: &Ranked, expected: &Value) {
    close(name, found.fisher, &expected["mean"]);
    let error = found.standard_error.expect("samples");
    close(name, error, &expected["standard_error"]);
    let effective = found.effective.expect("samples");
    close(name, effective, &expected["effective"]);
    close(name, found.elements, &expected["elements"]);
    close(name, found.density * found.elements, &expected["mean"]);
    assert_eq!(found.interval.is_some(), effective >= 5.0, "{name}");
    if let Some(interval) = found.interval {
        close(name, interval.lower, &expected["hall"][0]);
        close(name, interval.upper, &expected["hall"][1]);
    }
    let share = found.share.expect("a trace");
    close(name, share.value, &expected["share"]);
    if let Some(interval) = share.interval {
        close(name, interval.lower, &expected["share_interval"][0]);
        close(name, interval.upper, &expected["share_interval"][1]);
    }
    let ranks = found.ranks.expect("samples");
    assert!(ranks.best <= ranks.worst, "{name}");
}

#[rstest]
fn layers_and_heads_have_their_golden_numbers(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let mut intervals = 0;
    for case in CASES {
        let golden = Golden::load(case);
        let statistics = collected(&golden, false, &device);
        let importance = ImportanceConfig::new().init().expect("a level");
        for task in TASKS {
            let report = importance.forward(&statistics, task).expect("a report");
            let expected = &golden.topic("importance")[task];
            for (found, expected) in [
                (&report.layers, &expected["layers"]),
                (&report.heads, &expected["heads"]),
            ] {
                assert_eq!(Some(found.len()), expected.as_object().map(|all| all.len()));
                for part in found {
                    check(&part.name, part, &expected[&part.name]);
                    intervals += usize::from(part.interval.is_some());
                }
                assert!(found.windows(2).all(|p| p[0].fisher >= p[1].fisher));
            }
            close(
                "attention",
                report.attention.expect("heads"),
                &expected["attention"],
            );
            // Heads add up to what attention has, shared key/value heads included.
            let heads = report.heads.iter().filter_map(|h| h.share);
            let heads: f64 = heads.map(|share| share.value).sum();
            assert!((heads - report.attention.expect("heads")).abs() < 1e-9);
            let layers = report.layers.iter().filter_map(|l| l.share);
            assert!((layers.map(|share| share.value).sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(report.copies.is_empty() && report.clusters.is_none());

            let json = serde_json::to_string(&report).expect("JSON");
            let again: ImportanceReport = serde_json::from_str(&json).expect("a report");
            assert_eq!(again.layers.len(), report.layers.len());
            assert_eq!(again.provenance, report.provenance);
            assert!(report.to_string().contains(&report.heads[0].name));
        }
    }
    assert!(intervals > 0, "nothing had an interval");
}

/// Errors are of the sums of clusters, in whatever order samples come and shards are merged.
#[rstest]
fn clusters_are_taken_whole(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let golden = Golden::load("llama-gqa");
    let statistics = collected(&golden, true, &device);
    let file = tempfile::tempdir()
        .expect("a folder")
        .path()
        .join("s.safetensors");
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    statistics.save(&file).expect("saved");
    let again = Statistics::load(&file, &device).expect("read");
    for statistics in [statistics, again] {
        for task in TASKS {
            let found: SampleMoments = statistics.task(task).expect("a task").layers();
            let expected = &golden.topic("importance")[task]["clustered"];
            let count = golden.samples(task).len() as u64;
            assert_eq!((found.count, found.units), (count, count - 2));
            for (i, name) in statistics.totals().layers().iter().enumerate() {
                let found = found.estimate(i).expect("samples");
                close(name, found.mean, &expected[name]["mean"]);
                let error = found.standard_error.expect("clusters");
                close(name, error, &expected[name]["standard_error"]);
                close(
                    name,
                    found.effective.expect("clusters"),
                    &expected[name]["effective"],
                );
                close(
                    name,
                    found.skewness.expect("clusters"),
                    &expected[name]["skewness"],
                );
            }
        }
    }
}

#[test]
fn a_skewed_series_has_its_intervals() {
    let golden = Golden::load("llama-gqa");
    let expected = &golden.topic("importance")["series"];
    let value = |k: f64| (2.0 * (k * k).sin()).exp();
    let series: Vec<f64> = (0..64).map(|k| value(f64::from(k))).collect();
    let rest = |(k, x): (usize, &f64)| 1.0 + (k as f64).cos() + x / 2.0;
    let rest = series.iter().enumerate().map(rest).collect();
    let statistics = super::claims::of_layers(&[series, rest], None);
    let importance = ImportanceConfig::new().init().expect("a level");
    let report = importance.forward(&statistics, "t").expect("a report");
    let of_series = report.layers.iter().find(|layer| layer.name == "layers.0");
    let share = of_series.expect("it").share.expect("a trace");
    close("share", share.value, &expected["share"]);
    let interval = share.interval.expect("enough");
    close("share", interval.lower, &expected["share_interval"][0]);
    close("share", interval.upper, &expected["share_interval"][1]);
    let found = statistics.task("t").expect("a task").layers();
    let found = found.estimate(0).expect("samples");
    close(
        "skewness",
        found.skewness.expect("a third"),
        &expected["skewness"],
    );
    for (method, name) in [
        (IntervalMethod::LogEffective, "log"),
        (IntervalMethod::Hall, "hall"),
    ] {
        let interval = found
            .interval(0.95, method)
            .expect("a level")
            .expect("enough");
        close(name, interval.lower, &expected[name][0]);
        close(name, interval.upper, &expected[name][1]);
    }
}

#[test]
fn a_task_that_is_not_there_or_is_empty_is_an_error() {
    let device = Backend::Flex.device().expect("a CPU");
    let golden = Golden::load("llama-gqa");
    let mut statistics: Statistics = golden.statistics(&StatisticsConfig::new(), &device);
    let importance = ImportanceConfig::new().init().expect("a level");
    assert!(importance.forward(&statistics, "alpha").is_err());
    let sample: &Sample = &golden.samples("alpha")[0];
    let skipped = statistics.skip("alpha", sample, "lm_head.weight");
    skipped.expect("a new sample");
    let error = importance
        .forward(&statistics, "alpha")
        .expect_err("no samples");
    assert!(matches!(error, Error::NoSamples { task } if task == "alpha"));
}
