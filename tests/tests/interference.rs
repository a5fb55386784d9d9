//! Interference of attention heads: golden numbers, laws, what is refused.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use fisher_core::{
    AttentionConfig, Block, Gradient, GradientBatch, GradientStore, HeadLayout, Sample, StoreConfig,
};
use fisher_metrics::{
    Aggregate, Error, Estimate, InterferenceConfig, InterferenceReport, Normalize, Pool, Ridge,
    Variant,
};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, P_VALUE, assert_close};
use rstest::rstest;

const BLOCKS: [Block; 4] = [Block::Q, Block::K, Block::V, Block::O];

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

fn quiet() -> InterferenceConfig {
    InterferenceConfig::new()
        .with_progress(false)
        .with_keep_scores(true)
}

fn run(
    config: &InterferenceConfig,
    store: &GradientStore,
    tasks: [&str; 2],
    heads: &HeadLayout,
    device: &Device,
) -> InterferenceReport {
    let interference = config.init().expect("settings");
    interference
        .forward(store, tasks, heads, device)
        .expect("a report")
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

/// Every setting: all variants, pools, estimates, aggregates, normalisations and ridges.
#[rstest]
fn golden_scores_agree(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let store = golden.store(&StoreConfig::new(1 << 24), 3, &device);
        let heads = golden.heads();
        let mut settings: Vec<&str> = golden
            .names("interference/")
            .filter_map(|name| name.strip_suffix("/Q"))
            .collect();
        settings.sort_unstable();
        assert_eq!(settings.len(), 16);
        for key in settings {
            let config = parse(key);
            assert_eq!(config.label(), key);
            let report = run(&config, &store, TASKS, &heads, &device);
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
        let store = golden.store(&StoreConfig::new(1 << 24), 3, &device);
        let report = run(&quiet(), &store, TASKS, &golden.heads(), &device);
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

#[rstest]
fn golden_significance_agrees(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Variant::Unsigned, Variant::Signed)] variant: Variant,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let store = golden.store(&StoreConfig::new(1 << 24), 3, &device);
        let config = quiet().with_variant(variant).with_relabellings(Some(100));
        let report = run(&config, &store, TASKS, &golden.heads(), &device);
        let name = serde_json::to_value(variant).expect("JSON");
        let expected = golden.expected("/significance")[name.as_str().expect("a name")].clone();
        // Shared key/value slices are tested once.
        assert_eq!(
            report.slices.len(),
            expected.as_object().expect("cells").len()
        );
        for slice in &report.slices {
            let unit = slice.heads[0] / slice.heads.len();
            let key = format!("{}.{}.{unit}", slice.block, slice.layer);
            let number = |what: &str| expected[&*key][what].as_f64().expect("a number");
            let found = slice.significance.expect("a test");
            assert!(found.test.exact);
            let statistic = found.test.statistic;
            assert_close(&key, &[statistic], &[number("statistic")], GOLDEN, 0.0);
            assert_close(&key, &[found.test.p_low], &[number("p_low")], P_VALUE, 1.0);
            assert_close(
                &key,
                &[found.test.p_high],
                &[number("p_high")],
                P_VALUE,
                1.0,
            );
            let p = match variant {
                Variant::Signed => found.test.p_low,
                _ => found.test.two_sided(),
            };
            assert_eq!(found.p, p);
            assert!(found.q >= found.p && found.selected == (found.q <= 0.05));
        }
    }
}

/// A golden store whose gradients are multiplied.
fn scaled(golden: &Golden, factor: [f32; 2]) -> GradientStore {
    let config = StoreConfig::new(1 << 24);
    let mut store = config
        .init_for(&golden.catalogue(), "scaled".into())
        .expect("a store");
    for (task, factor) in TASKS.into_iter().zip(factor) {
        let all = golden.batch(task, 0..golden.samples(task).len(), &flex());
        let mut batch = GradientBatch::new(all.samples().to_vec());
        for parameter in golden.catalogue().parameters() {
            let gradient = all.get(parameter.path()).expect("it").tensor().clone();
            batch.insert(parameter.path(), Gradient::token_sum(gradient * factor));
        }
        store.push(task, &batch).expect("gradients");
    }
    store
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
        dense(
            &run(&config, &store, TASKS, &golden.heads(), &flex()),
            Block::Q,
        )
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
    #[values(Estimate::All, Estimate::LeaveOneOut)] estimate: Estimate,
) {
    let case = CASES.into_iter().find(|c| *c == case).expect("a case");
    let golden = Golden::load(case);
    let store = golden.store(&StoreConfig::new(1 << 24), 3, &flex());
    let config = quiet().with_variant(variant).with_estimate(estimate);
    let interference = config.init().expect("settings");
    let check = interference.self_check(&store, TASKS, &golden.heads(), &flex());
    let check = check.expect("a check");
    assert!(check.holds(), "{check}");
    assert_eq!(check.checks.len(), 4);
}

/// A head layout that is not the model's fails the check of additivity: it is not idle.
#[test]
fn the_symmetric_variant_is_symmetric() {
    let golden = Golden::load("gpt2-fused");
    let store = golden.store(&StoreConfig::new(1 << 24), 3, &flex());
    let config = quiet()
        .with_variant(Variant::Symmetric)
        .with_pool(Pool::Pooled);
    let [a, b] = TASKS;
    let forward = run(&config, &store, [a, b], &golden.heads(), &flex());
    let backward = run(&config, &store, [b, a], &golden.heads(), &flex());
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
    let store = golden.store(&StoreConfig::new(1 << 24), 3, &flex());
    let tiny = Ridge::new()
        .with_epsilon(1e-30)
        .with_ridge(1e-30)
        .with_ridge_rel(0.0);
    let config = quiet().with_ridge(tiny);
    let [a, b] = TASKS;
    let of = |task: &'static str| run(&config, &store, [task, b], &golden.heads(), &flex());
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
        let report = run(&other, &store, TASKS, &golden.heads(), &flex());
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }
}

#[test]
fn an_empty_task_gives_zeros_and_a_warning() {
    let golden = Golden::load("llama-gqa");
    let store = golden.store(&StoreConfig::new(1 << 24), 3, &flex());
    for tasks in [["alpha", "nobody"], ["nobody", "alpha"]] {
        for variant in [Variant::Unsigned, Variant::Full] {
            let config = quiet().with_variant(variant).with_relabellings(Some(10));
            let report = run(&config, &store, tasks, &golden.heads(), &flex());
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
    let config = StoreConfig::new(1 << 24).with_only(Some(only));
    let store = golden.store(&config, 3, &flex());
    let interference = quiet().init().expect("settings");
    let error = interference.forward(&store, TASKS, &golden.heads(), &flex());
    let error = error.expect_err("no k_proj").to_string();
    assert!(error.contains("self_attn.k_proj.weight"), "{error}");
    let error = interference.forward(&store, TASKS, &HeadLayout::none(), &flex());
    assert!(matches!(error, Err(Error::NotCollected { .. })));

    let refused = |config: InterferenceConfig| config.init().expect_err("refused").to_string();
    let symmetric = quiet().with_variant(Variant::Symmetric);
    let error = refused(symmetric.with_normalize(Normalize::PerTokenMean));
    assert!(error.contains("no g_j to normalise"), "{error}");
    let full = quiet().with_variant(Variant::Full);
    assert!(refused(full.with_ridge(Ridge::new().with_ridge(0.0))).contains("singular"));
    let none = Ridge::new().with_ridge(0.0).with_epsilon(0.0);
    assert!(refused(quiet().with_ridge(none)).contains("epsilon"));
    assert!(refused(quiet().with_relabellings(Some(0))).contains("relabellings"));
}

/// However little memory, on disk or not, in half precision or not: the same scores.
#[test]
fn streamed_scores_are_the_same() {
    for case in CASES {
        let golden = Golden::load(case);
        let folder = tempfile::tempdir().expect("a folder");
        let held = golden.store(&StoreConfig::new(1 << 24), 3, &flex());
        let config = StoreConfig::new(0).with_folder(Some(folder.path().into()));
        let on_disk = golden.store(&config, 2, &flex());
        for variant in [Variant::Unsigned, Variant::Full] {
            for estimate in [Estimate::All, Estimate::LeaveOneOut] {
                let config = quiet().with_variant(variant).with_estimate(estimate);
                let expected = run(&config, &held, TASKS, &golden.heads(), &flex());
                // A tile of a few elements of each sample.
                let config = config.with_memory(3000);
                let found = run(&config, &on_disk, TASKS, &golden.heads(), &flex());
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
    let store = golden.store(&StoreConfig::new(1 << 24), 3, &flex());
    for (variant, sign) in [(Variant::Unsigned, 1.0), (Variant::Signed, -1.0)] {
        let config = quiet().with_variant(variant).with_top(13);
        let report = run(&config, &store, TASKS, &golden.heads(), &flex());
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
    use fisher_core::{Catalogue, Orientation, Parameter, Role};
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
    let store = StoreConfig::new(1 << 20).init_for(&catalogue, "made".into());
    let mut store = store.expect("a store");
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
        .with_aggregate(Aggregate::Sum)
        .with_ridge(Ridge::new().with_ridge_rel(0.0));
    let report = run(&config, &store, ["a", "b"], &heads, &flex());
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
    let check = check
        .self_check(&store, ["a", "b"], &heads, &flex())
        .expect("a check");
    assert!(check.holds(), "{check}");
}
