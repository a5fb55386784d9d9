//! All that one engine accumulates, against the loop.

use fisher_core::gradient::ContributionUnit;
use fisher_core::moments::{SampleMoments, Welford};
use fisher_core::statistics::StatisticsConfig;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_train::batch::SampleLoss;
use fisher_train::capture::Engine;
use fisher_train::collect::CollectorConfig;

use crate::tolerance::{BACKWARD, TAPS, assert_close};

/// `all` is as large as the largest sum over a layer: what is nothing beside it is rounding alone.
fn same(name: &str, found: SampleMoments, expected: SampleMoments, all: f64) {
    assert_eq!(found.count, expected.count, "{name}");
    let nothing = |mean: &Option<Vec<f64>>| mean.iter().flatten().all(|m| *m < 1e-12 * all);
    if nothing(&expected.mean) {
        assert!(nothing(&found.mean), "{name}: {:?}", found.mean);
        return;
    }
    for (what, found, expected) in [
        ("mean", found.mean, expected.mean),
        ("variance", found.variance, expected.variance),
    ] {
        let name = format!("{name} {what}");
        match (found, expected) {
            (Some(found), Some(expected)) => assert_close(&name, &found, &expected, TAPS, 1e-2),
            (found, expected) => assert_eq!(found.is_some(), expected.is_some(), "{name}"),
        }
    }
}

/// All that is accumulated by `engine`, against the loop.
///
/// # Panics
/// Where they differ.
pub fn agree<M: SampleLoss, C: ContributionUnit>(
    model: &M,
    batches: &[M::Batch],
    config: &StatisticsConfig,
    engine: Engine,
) where
    M::Batch: Clone,
{
    let collect = |engine| {
        let mut statistics = config.init_as::<C, _>(model).expect("statistics");
        let store = GradientStoreConfig::new(1 << 26).init(model);
        let mut store = store.expect("a store");
        let collector = CollectorConfig::new()
            .with_engine(engine)
            .init()
            .expect("a collector");
        let collected = collector
            .collect_batches(
                model,
                "task",
                batches.to_vec(),
                (&mut statistics, &mut store),
            )
            .expect("a collection");
        (statistics, store, collected)
    };
    let (expected, kept, slow) = collect(Engine::Loop);
    let (found, held, fast) = collect(engine);
    assert_eq!((fast.samples, fast.tokens), (slow.samples, slow.tokens));
    assert_eq!(fast.unreached, slow.unreached);
    assert!((fast.loss - slow.loss).abs() < 1e-5 * slow.loss.abs());
    let (expected, found) = (
        expected.task("task").expect("a task"),
        found.task("task").expect("a task"),
    );
    assert_eq!(found.samples(), expected.samples());
    let layers = expected.layers().mean;
    let all = layers.iter().flatten().copied().fold(0.0, f64::max);
    let read = |welford: &Welford| welford.read().expect("values");
    same("layers", found.layers(), expected.layers(), all);
    same("heads", found.heads(), expected.heads(), all);
    for (path, expected) in expected.parameters() {
        let found = found.parameter(path).expect("a parameter");
        assert_eq!(
            found.elementwise().is_some(),
            expected.elementwise().is_some()
        );
        if let (Some(found), Some(expected)) = (found.elementwise(), expected.elementwise()) {
            same(path, read(found), read(expected), all);
        }
        for ((grouping, found), (_, expected)) in found.groups().iter().zip(expected.groups()) {
            let name = format!("{path} {}", grouping.label());
            same(&name, read(found), read(expected), all);
        }
        for sample in kept.samples("task") {
            let read = |store: &GradientStore| -> Vec<f64> {
                let gradient = store
                    .gradient("task", sample.id(), path)
                    .expect("a gradient");
                gradient.iter().map(|&g| f64::from(g)).collect()
            };
            let (found, expected) = (read(&held), read(&kept));
            let nothing = |gradient: &[f64]| gradient.iter().all(|g| g * g < 1e-12 * all);
            if nothing(&expected) {
                assert!(nothing(&found), "{path}: {found:?}");
                continue;
            }
            assert_close(path, &found, &expected, BACKWARD, 0.2);
        }
    }
}
