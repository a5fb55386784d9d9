//! Interference of attention heads: golden numbers, laws, what is refused.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::{AttentionConfig, Block, HeadLayout};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig, Precision};
use fisher_metrics::Error;
use fisher_metrics::damping::Ridge;
use fisher_metrics::interference::{
    FisherEstimate, InterferenceConfig, InterferenceReport, Normalize, PairAggregate, Pool, Variant,
};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rstest::rstest;

use crate::stored;

const BLOCKS: [Block; 4] = [Block::Q, Block::K, Block::V, Block::O];

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

fn quiet() -> InterferenceConfig {
    InterferenceConfig::new()
        .with_progress(false)
        .with_keep_scores(true)
}

fn run(config: &InterferenceConfig, store: &GradientStore, tasks: [&str; 2]) -> InterferenceReport {
    let interference = config.init().expect("settings");
    interference.forward(store, tasks).expect("a report")
}

/// The configuration that a golden key speaks of.
fn parse(settings: &str) -> InterferenceConfig {
    let mut json = serde_json::to_value(quiet()).expect("JSON");
    for (key, value) in settings.split(',').filter_map(|pair| pair.split_once('=')) {
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        match key {
            "ridge" | "ridge_rel" | "epsilon" => json["ridge"][key] = value,
            _ => json[key] = value,
        }
    }
    serde_json::from_value(json).expect("settings")
}

/// Every setting: all variants, pools, estimates, aggregates, normalizations and ridges.
#[rstest]
fn golden_scores_agree(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &device);
        let mut settings: Vec<&str> = golden
            .names("interference/")
            .filter_map(|name| name.strip_suffix("/Q"))
            .collect();
        settings.sort_unstable();
        assert_eq!(settings.len(), 16);
        for key in settings {
            let config = parse(key);
            assert_eq!(config.label(), key);
            let report = run(&config, &store, TASKS);
            for block in BLOCKS {
                let expected = golden.values(&format!("interference/{key}/{block}"));
                let found = dense(&report, block);
                // Signed sums cancel, so an element is held to the block's largest.
                let signed = matches!(config.variant, Variant::Signed | Variant::Full);
                let floor = if signed { 1.0 } else { 1e-3 };
                let name = format!("{case} {key} {block}");
                assert_close(&name, &found, expected, GOLDEN, floor);
            }
        }
    }
}

/// `[n_A, n_B, layers, heads]`.
fn dense(report: &InterferenceReport, block: Block) -> Vec<f64> {
    let pairs = report.samples[0].len() * report.samples[1].len();
    let mut found = Vec::new();
    for pair in 0..pairs {
        for (layer, heads) in report.kv_heads.iter().enumerate() {
            for head in 0..heads.len() {
                let slice = report.slice(block, layer, head).expect("a slice");
                found.push(slice.scores.as_ref().expect("scores")[pair]);
            }
        }
    }
    found
}

#[rstest]
fn golden_health_agrees(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &device);
        let report = run(&quiet(), &store, TASKS);
        for block in BLOCKS {
            for (layer, heads) in report.kv_heads.iter().enumerate() {
                for head in 0..heads.len() {
                    let key = format!("{block}.{layer}.{head}");
                    let expected = golden.expected("/health")[&*key].as_object().expect("it");
                    let slice = report.slice(block, layer, head).expect("a slice");
                    let found = serde_json::to_value(slice.health.expect("samples"));
                    let found = found.expect("JSON");
                    assert_eq!(expected.len(), found.as_object().expect("it").len());
                    for (name, expected) in expected {
                        let [x, y] = [&found[name], expected].map(|v| v.as_f64().expect("it"));
                        assert_close(&format!("{case} {key} {name}"), &[x], &[y], GOLDEN, 0.0);
                    }
                }
            }
        }
    }
}

/// A golden store whose gradients are multiplied.
fn scaled(golden: &Golden, factor: [f32; 2]) -> GradientStore {
    let config = GradientStoreConfig::new(1 << 24);
    let mut store = config
        .init_for(&golden.catalogue(), "scaled".into())
        .expect("a store");
    for (task, factor) in TASKS.into_iter().zip(factor) {
        let all = golden.batch(task, 0..golden.samples(task).len(), &flex());
        let mut batch = GradientBatch::new(all.samples().to_vec());
        for parameter in golden.catalogue().parameters() {
            let gradient = all.get(parameter.path()).expect("it").to_full();
            batch.insert(parameter.path(), Gradient::token_sum(gradient * factor));
        }
        store.push(task, &batch).expect("gradients");
    }
    store.with_heads(golden.heads()).with_device(&flex())
}

/// Multiplying every loss: as the documentation of each variant says.
#[rstest]
#[case(Variant::Unsigned, 3.0)]
#[case(Variant::Signed, 1.0)]
#[case(Variant::Symmetric, 1.0)]
#[case(Variant::Natural, 1.0)]
#[case(Variant::Full, 1.0)]
fn a_larger_loss_scales_as_documented(#[case] variant: Variant, #[case] expected: f64) {
    let golden = Golden::load("llama-gqa");
    let relative = Ridge::new()
        .with_epsilon(0.0)
        .with_ridge(1e-30)
        .with_ridge_rel(1e-3);
    let config = quiet().with_variant(variant).with_ridge(relative);
    let [once, thrice] = [1.0, 3.0].map(|factor| {
        let store = scaled(&golden, [factor; 2]);
        dense(&run(&config, &store, TASKS), Block::Q)
    });
    let once: Vec<f64> = once.iter().map(|x| expected * x).collect();
    assert_close(&format!("{variant:?}"), &thrice, &once, GOLDEN, 1.0);
}

#[rstest]
#[case(Variant::Unsigned)]
#[case(Variant::Signed)]
#[case(Variant::Symmetric)]
#[case(Variant::Natural)]
#[case(Variant::Full)]
fn self_checks_hold_on_real_gradients(
    #[case] variant: Variant,
    #[values("llama-gqa", "gpt2-fused")] case: &str,
    #[values(FisherEstimate::All, FisherEstimate::LeaveOneOut)] estimate: FisherEstimate,
) {
    let case = CASES.into_iter().find(|c| *c == case).expect("a case");
    let golden = Golden::load(case);
    let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
    let config = quiet().with_variant(variant).with_estimate(estimate);
    let interference = config.init().expect("settings");
    let check = interference.self_check(&store, TASKS);
    let check = check.expect("a check");
    assert!(check.holds(), "{check}");
    assert_eq!(check.checks.len(), 4);
}

/// A head layout that is not the model's, whose heads leave out elements of the matrices, fails the
/// check of additivity: it is not idle.
#[rstest]
#[case(Variant::Unsigned, BLOCKS.to_vec())]
#[case(Variant::Signed, BLOCKS.to_vec())]
#[case(Variant::Unsigned, vec![Block::V])]
fn heads_that_leave_something_out_are_seen(
    #[case] variant: Variant,
    #[case] blocks: Vec<Block>,
    #[values("llama-gqa", "gpt2-fused")] case: &str,
) {
    let case = CASES.into_iter().find(|c| *c == case).expect("a case");
    let golden = Golden::load(case);
    let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
    // The layout of a model of half the width, whose slices fit into this one's matrices.
    let smaller = golden.catalogue();
    let halved = smaller.parameters().iter().map(|p| {
        let shape: Vec<usize> = p.shape().iter().map(|n| n.div_ceil(2)).collect();
        Parameter::new(p.path(), shape, p.role(), p.orientation())
    });
    let halved = Catalogue::new(halved.collect()).expect("parameters");
    let config = match case {
        "llama-gqa" => AttentionConfig::new(4).with_kv_heads(Some(2)),
        _ => AttentionConfig::new(golden.heads().attention()[0].heads()),
    };
    let heads = HeadLayout::recognize(&halved, &config).expect("a layout");
    let config = quiet().with_variant(variant).with_blocks(blocks);
    let interference = config.init().expect("settings");
    let check = |store: &GradientStore| {
        let check = interference.self_check(store, TASKS);
        check.expect("a check")
    };
    assert!(check(&store).holds());
    let found = check(&store.with_heads(heads));
    assert!(!found.checks[0].holds(), "{found}");
}

#[test]
fn the_symmetric_variant_is_symmetric() {
    let golden = Golden::load("gpt2-fused");
    let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
    let config = quiet()
        .with_variant(Variant::Symmetric)
        .with_pool(Pool::Pooled);
    let [a, b] = TASKS;
    let forward = run(&config, &store, [a, b]);
    let backward = run(&config, &store, [b, a]);
    let [n_a, n_b] = forward.samples.each_ref().map(Vec::len);
    for (x, y) in forward.slices.iter().zip(&backward.slices) {
        let (x, y) = (
            x.scores.as_ref().expect("it"),
            y.scores.as_ref().expect("it"),
        );
        let y: Vec<f64> = (0..n_a * n_b).map(|k| y[k % n_b * n_a + k / n_b]).collect();
        assert_close("scores", x, &y, 1e-6, 1.0);
    }
}

/// The averaged default map is the size of task B's gradients, whatever task A is, and says so.
#[test]
fn the_default_map_is_degenerate_and_says_so() {
    let golden = Golden::load("llama-gqa");
    let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
    let tiny = Ridge::new()
        .with_epsilon(1e-30)
        .with_ridge(1e-30)
        .with_ridge_rel(0.0);
    let config = quiet().with_ridge(tiny);
    let [a, b] = TASKS;
    let of = |task: &'static str| run(&config, &store, [task, b]);
    let maps = [of(a), of(b)];
    for block in BLOCKS {
        let [x, y] = maps.each_ref().map(|report| report.map(block).concat());
        assert_close("maps of two different tasks A", &x, &y, 1e-5, 0.0);
    }
    assert!(maps[0].warnings[0].contains("says nothing about alpha"));
    for other in [
        config.clone().with_pool(Pool::B),
        config.with_variant(Variant::Signed),
    ] {
        let report = run(&other, &store, TASKS);
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }
}

#[test]
fn an_empty_task_gives_zeros_and_a_warning() {
    let golden = Golden::load("llama-gqa");
    let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
    for tasks in [["alpha", "nobody"], ["nobody", "alpha"]] {
        for variant in [Variant::Unsigned, Variant::Full] {
            let config = quiet().with_variant(variant);
            let report = run(&config, &store, tasks);
            assert!(report.warnings[0].contains("`nobody` has no samples"));
            assert_eq!(report.map(Block::V), vec![vec![0.0; 4]; 2]);
            assert!(report.top.is_empty());
        }
    }
}

#[test]
fn what_is_missing_is_an_error() {
    let golden = Golden::load("llama-gqa");
    let only = burn::module::ParamGroup::from_predicate("q_proj");
    let config = GradientStoreConfig::new(1 << 24).with_only(Some(only));
    let store = stored(&golden, &config, 3, &flex());
    let interference = quiet().init().expect("settings");
    let error = interference.forward(&store, TASKS);
    let error = error.expect_err("no k_proj").to_string();
    assert!(error.contains("self_attn.k_proj.weight"), "{error}");
    let error = interference.forward(&store.with_heads(HeadLayout::none()), TASKS);
    assert!(matches!(error, Err(Error::NotCollected { .. })));

    let refused = |config: InterferenceConfig| config.init().expect_err("refused").to_string();
    let symmetric = quiet().with_variant(Variant::Symmetric);
    let error = refused(symmetric.with_normalize(Normalize::PerTokenMean));
    assert!(error.contains("no g_j to normalize"), "{error}");
    let full = quiet().with_variant(Variant::Full);
    assert!(refused(full.with_ridge(Ridge::new().with_ridge(0.0))).contains("singular"));
    let none = Ridge::new().with_ridge(0.0).with_epsilon(0.0);
    assert!(refused(quiet().with_ridge(none)).contains("epsilon"));
}

/// However little memory, held or on disk, in half precision or not: the same scores. With 300
/// bytes every sample is scored by itself, a few elements at a time; with 3000 tiles have several
/// rows, and the last is smaller.
#[rstest]
fn streamed_scores_are_the_same(
    #[values(300, 3000)] memory: usize,
    #[values(Precision::Float32, Precision::Float16)] precision: Precision,
) {
    for case in CASES {
        let golden = Golden::load(case);
        let folder = tempfile::tempdir().expect("a folder");
        let kept = GradientStoreConfig::new(1 << 24).with_precision(precision);
        let held = stored(&golden, &kept, 3, &flex());
        let config = GradientStoreConfig::new(0)
            .with_precision(precision)
            .with_folder(Some(folder.path().into()));
        let on_disk = stored(&golden, &config, 2, &flex());
        let unsigned = run(&quiet(), &held, TASKS);
        assert_eq!(unsigned.gradients.precision, precision);
        for variant in [Variant::Unsigned, Variant::Full] {
            for estimate in [FisherEstimate::All, FisherEstimate::LeaveOneOut] {
                let config = quiet().with_variant(variant).with_estimate(estimate);
                let expected = run(&config, &held, TASKS);
                let config = config.with_memory(memory);
                let found = run(&config, &on_disk, TASKS);
                for block in BLOCKS {
                    let [x, y] = [&found, &expected].map(|report| dense(report, block));
                    assert_close("scores", &x, &y, 1e-6, 1.0);
                }
                assert_eq!(found.top.len(), 20);
                let names = |r: &InterferenceReport| -> Vec<_> {
                    r.top
                        .iter()
                        .map(|c| (c.slice.clone(), c.a.clone(), c.b.clone()))
                        .collect()
                };
                assert_eq!(names(&found), names(&expected));
            }
        }
    }
}

/// The list of the worst pairs against sorting all of them; true ids.
#[test]
fn the_worst_pairs_are_the_worst() {
    let golden = Golden::load("llama-gqa");
    let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
    for (variant, sign) in [(Variant::Unsigned, 1.0), (Variant::Signed, -1.0)] {
        let config = quiet().with_variant(variant).with_top(13);
        let report = run(&config, &store, TASKS);
        let mut all: BTreeMap<(String, String, String), f64> = BTreeMap::new();
        for slice in &report.slices {
            let scores = slice.scores.as_ref().expect("scores");
            for (k, score) in scores.iter().enumerate() {
                let columns = report.samples[1].len();
                let a = report.samples[0][k / columns].clone();
                let b = report.samples[1][k % columns].clone();
                all.insert((slice.name.clone(), a, b), *score);
            }
        }
        let mut sorted: Vec<f64> = all.values().map(|s| sign * s).collect();
        sorted.sort_by(|x, y| y.total_cmp(x));
        for (worst, expected) in report.top.iter().zip(&sorted) {
            assert_eq!(sign * worst.score, *expected);
            let key = (worst.slice.clone(), worst.a.id.clone(), worst.b.id.clone());
            assert_eq!(all[&key], worst.score);
        }
        assert_eq!(report.top.len(), 13);
    }
}

/// Q, K and V with their biases: the slices of a head are those of both.
#[test]
fn biases_belong_to_their_heads() {
    let matrix = |name: &str, shape: [usize; 2]| {
        let path = format!("attention.{name}.weight");
        Parameter::new(path, shape, Role::Matrix, Orientation::InputOutput)
    };
    let bias = |name: &str| {
        let path = format!("attention.{name}.bias");
        Parameter::new(path, [4], Role::Vector, Orientation::InputOutput)
    };
    let mut parameters: Vec<Parameter> = ["query", "key", "value"]
        .into_iter()
        .flat_map(|name| [matrix(name, [3, 4]), bias(name)])
        .collect();
    parameters.push(matrix("output", [4, 3]));
    let catalogue = Catalogue::new(parameters).expect("parameters");
    let config = AttentionConfig::new(2).with_biases(true);
    let heads = HeadLayout::recognize(&catalogue, &config).expect("a layout");
    let store = GradientStoreConfig::new(1 << 20).init_for(&catalogue, "made".into());
    let store = store.expect("a store").with_heads(heads);
    let mut store = store.with_device(&flex());
    let value = |task: usize, i: usize, p: usize, e: usize| {
        ((task * 97 + i * 31 + p * 7 + e * 3) as f32).sin()
    };
    for (task, name) in ["a", "b"].into_iter().enumerate() {
        let samples = (0..3).map(|i| Sample::new(format!("{i}"), 2));
        let samples: Vec<Sample> = samples.collect::<Result<_, _>>().expect("tokens");
        let mut batch = GradientBatch::new(samples);
        for (p, parameter) in catalogue.parameters().iter().enumerate() {
            let n = parameter.elements();
            let values: Vec<f32> = (0..3 * n).map(|k| value(task, k / n, p, k % n)).collect();
            let tensor = Tensor::<1>::from_floats(values.as_slice(), &flex()).reshape([3, n]);
            batch.insert(parameter.path(), Gradient::token_sum(tensor));
        }
        store.push(name, &batch).expect("gradients");
    }
    let config = quiet()
        .with_variant(Variant::Signed)
        .with_pool(Pool::B)
        .with_aggregate(PairAggregate::Sum)
        .with_ridge(Ridge::new().with_ridge_rel(0.0));
    let report = run(&config, &store, ["a", "b"]);
    // Head 1 of the values: columns 2 and 3 of the weight (parameter 4), elements 2 and 3 of the
    // bias (5).
    let elements: Vec<(usize, usize)> = (0..3)
        .flat_map(|row| [(4, row * 4 + 2), (4, row * 4 + 3)])
        .chain([(5, 2), (5, 3)])
        .collect();
    let expected: f64 = elements
        .iter()
        .map(|&(p, e)| {
            let g = |task, i| f64::from(value(task, i, p, e));
            let fisher = (0..3).map(|i| g(1, i) * g(1, i) / 2.0).sum::<f64>() / 3.0;
            g(0, 2) * g(1, 1) / (fisher.max(1e-12) + 1e-12)
        })
        .sum();
    let found = report.slice(Block::V, 0, 1).expect("a slice");
    let found = found.scores.as_ref().expect("scores")[2 * 3 + 1];
    assert_close("V head 1", &[found], &[expected], GOLDEN, 0.0);
    let check = config.init().expect("settings");
    let check = check.self_check(&store, ["a", "b"]).expect("a check");
    assert!(check.holds(), "{check}");
}

/// Gradients that are mostly 0, or next to it, and no two sizes of which compare.
fn extreme() -> GradientStore {
    let matrix = |name: &str| {
        let path = format!("attention.{name}.weight");
        Parameter::new(path, [4, 4], Role::Matrix, Orientation::InputOutput)
    };
    let catalogue = ["query", "key", "value", "output"].map(matrix).to_vec();
    let catalogue = Catalogue::new(catalogue).expect("parameters");
    let heads = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("a layout");
    let store = GradientStoreConfig::new(1 << 20).init_for(&catalogue, "made".into());
    let store = store.expect("a store").with_heads(heads);
    let mut store = store.with_device(&flex());
    let sizes = [0.0, 0.0, 1e-3, 0.0, 3e-30, 0.0, 1e4, 0.0, 2e-45];
    for (task, name) in ["a", "b"].into_iter().enumerate() {
        let samples = (0..4).map(|i| Sample::new(format!("{i}"), 1 + i as u64));
        let samples: Vec<Sample> = samples.collect::<Result<_, _>>().expect("tokens");
        let mut batch = GradientBatch::new(samples);
        for (p, parameter) in catalogue.parameters().iter().enumerate() {
            let value = |k: usize| sizes[(k * 5 + p + 7 * task + k / 16) % 9] * (k as f32).sin();
            let values: Vec<f32> = (0..64).map(value).collect();
            let tensor = Tensor::<1>::from_floats(values.as_slice(), &flex()).reshape([4, 16]);
            batch.insert(parameter.path(), Gradient::token_sum(tensor));
        }
        store.push(name, &batch).expect("gradients");
    }
    store
}

/// F down to 0, its inverse to the power of 1.5 far beyond float32: scores stay numbers.
#[rstest]
fn no_score_is_not_a_number(
    #[values(
        Variant::Unsigned,
        Variant::Signed,
        Variant::Symmetric,
        Variant::Natural,
        Variant::Full
    )]
    variant: Variant,
    #[values(Pool::A, Pool::B, Pool::Pooled)] pool: Pool,
    #[values(FisherEstimate::All, FisherEstimate::LeaveOneOut)] estimate: FisherEstimate,
) {
    let store = extreme();
    let ridge = Ridge::new()
        .with_epsilon(0.0)
        .with_ridge(1e-30)
        .with_ridge_rel(1e-6);
    let config = quiet()
        .with_variant(variant)
        .with_pool(pool)
        .with_estimate(estimate)
        .with_ridge(ridge);
    let interference = config.init().expect("settings");
    let report = match interference.forward(&store, ["a", "b"]) {
        // λ of 1e-30 is nothing beside F of 1e7 in the digits of float64: that is said.
        Err(Error::Singular { .. }) if variant == Variant::Full => return,
        report => report.expect("a report"),
    };
    for slice in &report.slices {
        assert!(slice.mean.is_finite(), "{}", slice.name);
        let scores = slice.scores.as_ref().expect("scores");
        assert!(scores.iter().all(|s| s.is_finite()), "{scores:?}");
    }
}

/// Leaving one out, and every variant, from the definition in float64.
#[rstest]
fn scores_are_their_definition(
    #[values(
        Variant::Unsigned,
        Variant::Signed,
        Variant::Symmetric,
        Variant::Natural
    )]
    variant: Variant,
    #[values(Pool::A, Pool::B, Pool::Pooled)] pool: Pool,
    #[values(FisherEstimate::All, FisherEstimate::LeaveOneOut)] estimate: FisherEstimate,
) {
    let golden = Golden::load("llama-gqa");
    let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
    let config = quiet()
        .with_variant(variant)
        .with_pool(pool)
        .with_estimate(estimate)
        .with_aggregate(PairAggregate::Sum);
    let report = run(&config, &store, TASKS);
    // [out, in]: 4 rows of 16 a head.
    let (path, range) = ("model.layers.1.self_attn.q_proj.weight", 128..192);
    let samples = TASKS.map(|task| golden.samples(task));
    let gradients = [0, 1].map(|t| {
        let of = |s: &Sample| {
            let key = format!("{}/gradient/{}/{path}", TASKS[t], s.id());
            golden.values(&key)[range.clone()].to_vec()
        };
        samples[t].iter().map(of).collect::<Vec<Vec<f64>>>()
    });
    let fisher = |task: usize, without: Option<usize>| -> Vec<f64> {
        let rows = (0..samples[task].len()).filter(|i| Some(*i) != without);
        let rows: Vec<usize> = rows.collect();
        let term = |i: &usize, k: usize| {
            gradients[task][*i][k].powi(2) / samples[task][*i].tokens() as f64
        };
        let mean = |k| rows.iter().map(|i| term(i, k)).sum::<f64>() / rows.len() as f64;
        (0..range.len()).map(mean).collect()
    };
    let mut expected = Vec::new();
    for (i, of_a) in gradients[0].iter().enumerate() {
        let without = (estimate == FisherEstimate::LeaveOneOut).then_some(i);
        let (a, b) = (fisher(0, without), fisher(1, None));
        let f: Vec<f64> = match pool {
            Pool::A => a,
            Pool::B => b,
            Pool::Pooled => a.iter().zip(&b).map(|(a, b)| 0.5 * (a + b)).collect(),
        };
        let mut sorted = f.clone();
        sorted.sort_by(f64::total_cmp);
        let median = 0.5 * (sorted[31] + sorted[32]);
        let lambda = (1e-6 * median).max(1e-12);
        let t_a = samples[0][i].tokens() as f64;
        for (j, of_b) in gradients[1].iter().enumerate() {
            let t_b = samples[1][j].tokens() as f64;
            let term = |k: usize| {
                let (x, y, d) = (of_a[k], of_b[k], f[k].max(1e-12) + lambda);
                match variant {
                    Variant::Signed => x * y / d,
                    Variant::Symmetric => (x * x / t_a * y * y / t_b).sqrt() / d,
                    Variant::Natural => x * x / t_a / d * y.abs() / d.sqrt(),
                    _ => x * x / t_a / d * y.abs(),
                }
            };
            expected.push((0..range.len()).map(term).sum::<f64>());
        }
    }
    let found = report.slice(Block::Q, 1, 2).expect("a slice");
    let found = found.scores.as_ref().expect("scores");
    assert_close(&format!("{variant:?}"), found, &expected, GOLDEN, 1.0);
}

/// What one block needs is asked for, and no more; one sample of A is enough where A is not in F.
#[test]
fn only_what_is_used_is_needed() {
    let golden = Golden::load("llama-gqa");
    let only = burn::module::ParamGroup::from_predicate("q_proj");
    let config = GradientStoreConfig::new(1 << 24).with_only(Some(only));
    let store = stored(&golden, &config, 3, &flex());
    let config = quiet().with_blocks(vec![Block::Q]);
    let report = run(&config, &store, TASKS);
    assert_eq!(report.blocks(), [Block::Q]);
    let check = config.init().expect("settings");
    let check = check.self_check(&store, TASKS);
    assert!(check.expect("a check").holds());

    let one = GradientStoreConfig::new(1 << 24).init_for(&golden.catalogue(), "one".into());
    let mut one = one.expect("a store");
    one.push("a", &golden.batch("alpha", 0..1, &flex()))
        .expect("it");
    one.push("b", &golden.batch("beta_two", 0..3, &flex()))
        .expect("it");
    let one = one.with_heads(golden.heads()).with_device(&flex());
    let left_out = quiet().with_estimate(FisherEstimate::LeaveOneOut);
    let report = run(&left_out.clone().with_pool(Pool::B), &one, ["a", "b"]);
    assert!(report.slices.iter().all(|s| s.mean.is_finite()));
    for pool in [Pool::A, Pool::Pooled] {
        let interference = left_out.clone().with_pool(pool).init().expect("settings");
        let error = interference.forward(&one, ["a", "b"]);
        assert!(matches!(error, Err(Error::TooFewSamples { found: 1, .. })));
    }
    // Below this its powers are no numbers of float64.
    let ridge = Ridge::new().with_epsilon(1e-200).with_ridge(0.0);
    assert!(quiet().with_ridge(ridge).init().is_err());
}
