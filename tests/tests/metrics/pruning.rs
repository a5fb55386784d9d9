//! Rankings, masks and overlap: golden numbers and laws.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::Error;
use fisher_metrics::pruning::{
    Advice, ComparisonConfig, Masks, OverlapConfig, OverlapReport, PruningConfig, RuleOfThumb,
    Scope, Scores,
};
use fisher_metrics::ranking::RankingConfig;
use fisher_metrics::weights::Weights;
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::models::{Sequences, Small};
use fisher_tests::tolerance::GOLDEN;
use fisher_train::collect::CollectorConfig;
use proptest::prelude::*;
use rstest::rstest;

fn collected(golden: &Golden, device: &Device) -> Statistics {
    let mut statistics = golden.statistics(&StatisticsConfig::new(), device);
    for task in TASKS {
        let batch = golden.batch(task, 0..golden.samples(task).len(), device);
        statistics.push(task, batch).expect("gradients");
    }
    statistics
}

fn near(name: &str, found: f64, expected: &serde_json::Value) {
    let expected = expected.as_f64().expect("a number");
    let bound = GOLDEN * expected.abs() + 1e-15;
    assert!(
        (found - expected).abs() <= bound,
        "{name}: {found} against {expected}"
    );
}

fn maybe(name: &str, found: Option<f64>, expected: &serde_json::Value) {
    match found {
        Some(found) => near(name, found, expected),
        None => assert!(expected.is_null(), "{name}: undefined against {expected}"),
    }
}

/// Scores that are read parameter by parameter give the masks of scores in memory, to the last bit.
#[test]
fn brain_damage_is_the_same_parameter_by_parameter() {
    let device = Backend::Flex.device().expect("a CPU");
    for case in CASES {
        let golden = Golden::load(case);
        let statistics = collected(&golden, &device);
        let weights = Weights::from(golden.weights());
        let read = |path: &str, elements| Ok(weights.get(path, elements)?.to_vec());
        for (task, scope, sparsity) in [
            ("alpha", Scope::Global, 0.5),
            ("alpha", Scope::Tensor, 0.29),
            ("beta_two", Scope::Layer, 0.9),
            ("beta_two", Scope::Global, 0.0),
        ] {
            for roles in [&[Role::Matrix, Role::Embedding][..], &[Role::Matrix]] {
                let pruning = pruning(sparsity, scope).init().expect("pruning");
                let whole = Scores::brain_damage(&statistics, task, &weights).expect("scores");
                let whole = pruning.forward(&whole.of_roles(roles)).expect("masks");
                let parts = pruning.by_brain_damage(&statistics, task, roles, read);
                assert_eq!(parts.expect("masks"), whole);
            }
        }
    }
}

/// Nothing protected, as in the golden masks.
fn pruning(sparsity: f64, scope: Scope) -> PruningConfig {
    PruningConfig::new(sparsity)
        .with_scope(scope)
        .with_protected_roles(Vec::new())
}

#[rstest]
fn rankings_agree(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let statistics = collected(&golden, &device);
        for task in TASKS {
            let report = RankingConfig::new()
                .init()
                .expect("a ranking")
                .forward(&statistics, task)
                .expect("a report");
            let expected = golden.expected(&format!("/tasks/{task}/importance"));
            let top = expected["top"].as_array().expect("a list");
            assert_eq!(report.top.len(), top.len());
            for (found, expected) in report.top.iter().zip(top) {
                assert_eq!(format!("{}|{}", found.path, found.label), expected[0]);
                assert_eq!(found.index, expected[1]);
                near("F", found.fisher, &expected[2]);
            }
            let topic = golden.topic("importance");
            let shares = topic[task]["groups"].as_object().expect("shares");
            assert_eq!(report.shares.len(), shares.len());
            report
                .shares
                .iter()
                .for_each(|(key, share)| near(key, *share, &shares[key]));
            for group in &report.top {
                let layer = statistics.totals().layer_of(&group.path).expect("a layer");
                let sum = group.density * group.elements as f64;
                let share = sum / report.layers[layer];
                assert!((group.share_of_layer.expect("mass") - share).abs() < 1e-12);
                assert!((group.share.expect("mass") - sum / report.total).abs() < 1e-12);
                let effective = group.effective.expect("several samples");
                assert_eq!(group.interval.is_some(), effective >= 5.0);
                if let Some(interval) = group.interval {
                    assert!(0.0 < interval.lower && interval.lower < group.fisher);
                    assert!(group.fisher < interval.upper);
                }
            }
            let sum: f64 = report.shares.values().sum();
            assert!((sum - 1.0).abs() < 1e-12);
            let layers: f64 = report.layers.values().sum();
            assert!((layers / report.total - 1.0).abs() < 1e-12);
            let sets: Vec<usize> = report.mass_sets.iter().filter_map(|s| s.groups).collect();
            assert!(sets.windows(2).all(|pair| pair[0] <= pair[1]) && sets.len() == 3);
            let json = serde_json::to_string(&report).expect("JSON");
            let again: fisher_metrics::ranking::RankingReport =
                serde_json::from_str(&json).expect("again");
            assert_eq!(again.top.len(), report.top.len());
        }
    }
}

#[rstest]
fn masks_and_their_overlap_agree(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let statistics = collected(&golden, &device);
        for (scope, name) in [(Scope::Global, "global"), (Scope::Tensor, "tensor")] {
            for sparsity in [0.5, 0.7, 0.9] {
                let key = format!("{name}@{sparsity}");
                let pruning = pruning(sparsity, scope).init().expect("a sparsity");
                let [a, b] = TASKS.map(|task| {
                    let scores = Scores::grouped(&statistics, task).expect("scores");
                    let masks = pruning.forward(&scores).expect("masks");
                    let expected = golden.expected(&format!("/tasks/{task}/masks/{key}"));
                    let expected = expected.as_object().expect("masks");
                    assert_eq!(masks.masks.len(), expected.len());
                    for mask in &masks.masks {
                        let bits: String = (0..mask.keep.len())
                            .map(|i| if mask.keep.contains(i) { '1' } else { '0' })
                            .collect();
                        assert_eq!(
                            bits,
                            expected[&mask.key()],
                            "{case} {task} {key} {}",
                            mask.key()
                        );
                    }
                    masks
                });
                let report = OverlapConfig::new()
                    .init()
                    .expect("thresholds")
                    .forward(&a, &b)
                    .expect("one model");
                let expected = golden.expected("/overlap")[&key]
                    .as_object()
                    .expect("overlap");
                assert_eq!(report.tensors.len() + 1, expected.len());
                let all = ("all".to_owned(), report.all);
                for (name, found) in report.tensors.clone().into_iter().chain([all]) {
                    let expected = &expected[&name];
                    for (count, field) in [
                        (found.n, "n"),
                        (found.both, "both"),
                        (found.only_a, "only_a"),
                        (found.only_b, "only_b"),
                    ] {
                        assert_eq!(count, expected[field], "{name} {field}");
                    }
                    maybe("jaccard", found.jaccard, &expected["jaccard"]);
                    maybe(
                        "overlap",
                        found.overlap_coefficient,
                        &expected["overlap_coefficient"],
                    );
                    maybe("kappa", found.kappa, &expected["kappa"]);
                    near(
                        "of n",
                        found.intersection_over_n,
                        &expected["intersection_over_n"],
                    );
                    near(
                        "chance",
                        found.expected_intersection,
                        &expected["expected_intersection"],
                    );
                }
            }
        }
    }
}

#[rstest]
fn brain_damage_agrees(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let statistics = collected(&golden, &device);
        let weights = Weights::from(golden.weights());
        for task in TASKS {
            let scores = Scores::brain_damage(&statistics, task, &weights).expect("scores");
            let matrices = scores.of_roles(&[Role::Matrix, Role::Embedding]);
            let pruning = pruning(0.5, Scope::Global).init().expect("a sparsity");
            let masks = pruning.forward(&matrices).expect("masks");
            let expected = golden.expected(&format!("/tasks/{task}/obd_unstructured@0.5"));
            let kept = expected["kept"].as_object().expect("counts");
            assert_eq!(masks.masks.len(), kept.len());
            for mask in &masks.masks {
                assert_eq!(mask.keep.count_ones(..), kept[&mask.path], "{}", mask.path);
            }
            let increase = masks.predicted_increase.expect("brain damage");
            near("increase", increase, &expected["predicted_increase"]);
        }
    }
}

/// Statistics of matrices `a` [3, 4] and `b` [2, 5] with these contributions, by element.
fn made_up(values: &[f64]) -> Statistics {
    let device = Device::flex();
    let shapes = [("layers.0.a", [3, 4]), ("layers.1.b", [2, 5])];
    let parameters = shapes
        .map(|(path, shape)| Parameter::new(path, shape, Role::Matrix, Orientation::InputOutput));
    let catalogue = Catalogue::new(parameters.to_vec()).expect("parameters");
    let config = StatisticsConfig::new();
    let mut statistics: Statistics = config
        .init_for(&catalogue, &HeadLayout::none(), "m".into(), &device)
        .expect("statistics");
    let mut batch = GradientBatch::new(vec![Sample::new("0", 1).expect("tokens")]);
    let mut rest = values;
    for (path, [rows, columns]) in shapes {
        let (these, others) = rest.split_at(rows * columns);
        rest = others;
        let roots: Vec<f64> = these.iter().map(|v| v.sqrt()).collect();
        let data = TensorData::new(roots, [1, rows * columns]);
        let options = (&device, burn::tensor::DType::F64);
        batch.insert(
            path,
            Gradient::token_sum(Tensor::<2>::from_data(data, options)),
        );
    }
    statistics.push("task", batch).expect("gradients");
    statistics
}

fn pruned(masks: &Masks) -> Vec<bool> {
    masks
        .by_element()
        .into_values()
        .flatten()
        .map(|keep| !keep)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn counts_are_exact_under_ties_and_masks_nest(
        values in prop::collection::vec((0u8..4).prop_map(f64::from), 22),
        low in 0.0f64..=1.0,
        high in 0.0f64..=1.0,
        scope in prop::sample::select(vec![Scope::Global, Scope::Layer, Scope::Tensor]),
    ) {
        let (low, high) = (low.min(high), low.max(high));
        let scores = Scores::elementwise(&made_up(&values), "task").expect("scores");
        let masks = [low, high].map(|s| {
            let pruning = pruning(s, scope).init().expect("a sparsity");
            pruning.forward(&scores).expect("masks")
        });
        for (masks, s) in masks.iter().zip([low, high]) {
            let sizes = if scope == Scope::Global { vec![22.0] } else { vec![12.0, 10.0] };
            let wanted: f64 = sizes.iter().map(|n| (s * n).floor()).sum();
            let gone = pruned(masks);
            prop_assert_eq!(gone.iter().filter(|gone| **gone).count(), wanted as usize);
            // What goes is no higher than what stays, and of equals the later goes first.
            if scope == Scope::Global {
                let order = |i: usize| (values[i] as i64, -(i as i64));
                let last = (0..22).filter(|i| gone[*i]).map(order).max();
                let first = (0..22).filter(|i| !gone[*i]).map(order).min();
                prop_assert!(last.zip(first).is_none_or(|(last, first)| last < first));
            }
        }
        let nested = pruned(&masks[0]).into_iter().zip(pruned(&masks[1]));
        prop_assert!(nested.into_iter().all(|(low, high)| !low || high));
        let json = serde_json::to_string(&masks[0]).expect("JSON");
        let again: Masks = serde_json::from_str(&json).expect("masks");
        prop_assert_eq!(&again.masks, &masks[0].masks);
    }
}

#[test]
fn kappa_of_random_masks_is_about_zero_at_every_sparsity() {
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    for sparsity in [0.1, 0.5, 0.9] {
        let mut kappas = Vec::new();
        for _ in 0..200 {
            let [a, b] = [(); 2].map(|()| {
                let values: Vec<f64> = (0..22).map(|_| random()).collect();
                let scores = Scores::elementwise(&made_up(&values), "task").expect("scores");
                pruning(sparsity, Scope::Global)
                    .init()
                    .expect("s")
                    .forward(&scores)
                    .expect("masks")
            });
            let report = OverlapConfig::new()
                .init()
                .expect("thresholds")
                .forward(&a, &b)
                .expect("one model");
            kappas.push(report.all.kappa.expect("neither all nor nothing"));
        }
        let mean = kappas.iter().sum::<f64>() / kappas.len() as f64;
        assert!(mean.abs() < 0.06, "κ {mean} at {sparsity}");
    }
}

#[test]
fn identical_masks_agree_fully_and_empty_ones_have_no_jaccard() {
    let scores = Scores::elementwise(&made_up(&[1.0; 22]), "task").expect("scores");
    let at = |s: f64| {
        pruning(s, Scope::Global)
            .init()
            .expect("s")
            .forward(&scores)
            .expect("masks")
    };
    let thumb = OverlapConfig::new().with_rule_of_thumb(Some(RuleOfThumb::default()));
    let overlap = thumb.init().expect("thresholds");
    let half = overlap.forward(&at(0.5), &at(0.5)).expect("one model");
    assert_eq!((half.all.jaccard, half.all.kappa), (Some(1.0), Some(1.0)));
    assert_eq!(half.all.intersection_over_n, 0.5);
    assert_eq!(half.all.stratified, Some(1.0));
    let advised = |report: &OverlapReport| report.rule_of_thumb.expect("asked for").1;
    assert_eq!(advised(&half), Some(Advice::Surgery));
    let none = overlap.forward(&at(1.0), &at(1.0)).expect("one model");
    assert_eq!((none.all.jaccard, advised(&none)), (None, None));
    assert_eq!(none.all.stratified, None);
    assert_eq!(none.all.overlap_coefficient, None);
    let json = serde_json::to_string(&half).expect("JSON");
    let again: OverlapReport = serde_json::from_str(&json).expect("a report");
    assert_eq!(again, half);
    // Masks that share little, and some: the advice follows the thresholds.
    let halves: [Vec<f64>; 3] = [0..11, 9..20, 4..15].map(|kept| {
        (0..22)
            .map(|i| if kept.contains(&i) { 1.0 } else { 0.0 })
            .collect()
    });
    let [a, b, c] = halves.map(|values| {
        let scores = Scores::elementwise(&made_up(&values), "task").expect("scores");
        pruning(0.5, Scope::Global)
            .init()
            .expect("s")
            .forward(&scores)
            .expect("masks")
    });
    let advice = |b| advised(&overlap.forward(&a, b).expect("one model"));
    assert_eq!(advice(&b), Some(Advice::Arithmetic)); // 2 of 20
    assert_eq!(advice(&c), Some(Advice::WeightedArithmetic)); // 7 of 15
}

#[test]
fn a_mask_goes_on_and_comes_off() {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let config = StatisticsConfig::new();
    let catalogue = Catalogue::of(&model).expect("parameters");
    let attention = fisher_core::grouping::AttentionConfig::new(2);
    let heads = HeadLayout::recognize(&catalogue, &attention).expect("heads");
    let mut statistics: Statistics = config.init_with_heads(&model, &heads).expect("statistics");
    let data = Sequences::made_up(4, 5, &device);
    let collector = CollectorConfig::new().init().expect("a collector");
    collector
        .collect_batches(&model, "task", [data], &mut statistics)
        .expect("a collection");
    let before = Weights::of(&model).expect("weights");
    for scores in [
        Scores::grouped(&statistics, "task").expect("scores"),
        Scores::brain_damage(&statistics, "task", &before).expect("scores"),
        Scores::brain_damage_of_groups(&statistics, "task", &before).expect("scores"),
    ] {
        let masks = PruningConfig::new(0.6)
            .init()
            .expect("s")
            .forward(&scores)
            .expect("masks");
        // Norms, biases and the embedding are protected.
        let paths: Vec<&str> = masks.masks.iter().map(|m| &*m.path).collect();
        assert!(
            paths
                .iter()
                .all(|p| p.ends_with("weight") && !p.contains("norm")),
            "{paths:?}"
        );
        assert!(!paths.contains(&"embedding.weight"), "{paths:?}");
        let (pruned, removed) = masks.apply(model.clone()).expect("its own parameters");
        let weights = Weights::of(&pruned).expect("weights");
        let mut zeros = 0;
        for (path, keep) in masks.by_element() {
            let old = before.get(&path, keep.len()).expect("weights");
            let new = weights.get(&path, keep.len()).expect("weights");
            for ((old, new), keep) in old.iter().zip(new).zip(&keep) {
                assert_eq!(*new, if *keep { *old } else { 0.0 });
                zeros += usize::from(!keep);
            }
        }
        assert!(zeros > 0);
        assert!(pruned.attention.query.weight.is_require_grad());
        assert_eq!(
            Weights::of(&removed.restore(pruned).expect("its own parameters")).expect("weights"),
            before
        );
    }
    let frozen = model.clone().no_grad();
    let scores = Scores::elementwise(&statistics, "task").expect("scores");
    let masks = PruningConfig::new(0.5)
        .init()
        .expect("s")
        .forward(&scores)
        .expect("masks");
    let (frozen, _) = masks.apply(frozen).expect("its own parameters");
    assert!(
        !frozen.attention.query.weight.is_require_grad(),
        "frozen stays frozen"
    );
}

#[test]
fn what_does_not_join_is_an_error() {
    let ours = Scores::elementwise(&made_up(&[1.0; 22]), "task").expect("scores");
    let layer = |s: &Scores, s_: f64| {
        pruning(s_, Scope::Layer)
            .init()
            .expect("s")
            .forward(s)
            .expect("masks")
    };
    let mut theirs = layer(&ours, 0.5);
    theirs.masks.pop();
    let overlap = OverlapConfig::new().init().expect("thresholds");
    let error = overlap
        .forward(&layer(&ours, 0.5), &theirs)
        .expect_err("a key is missing");
    assert!(
        matches!(&error, Error::Keys { key, .. } if key == "layers.1.b|element"),
        "{error}"
    );
    let error = overlap
        .forward(&theirs, &layer(&ours, 0.5))
        .expect_err("a key is missing");
    assert!(
        matches!(&error, Error::Keys { key, .. } if key == "layers.1.b|element"),
        "{error}"
    );
    let none = BTreeMap::new();
    let error = ours
        .magnitude(&Weights::from(none))
        .expect_err("no weights");
    assert!(matches!(error, Error::Keys { .. }));
    let short = BTreeMap::from([("layers.0.a".to_owned(), vec![1.0; 3])]);
    let error = ours
        .magnitude(&Weights::from(short))
        .expect_err("too few weights");
    assert!(matches!(
        error,
        Error::Sizes {
            ours: 12,
            theirs: 3,
            ..
        }
    ));
    assert!(PruningConfig::new(1.5).init().is_err());
    let all = PruningConfig::new(0.5).with_protected_roles(vec![Role::Matrix]);
    let error = all
        .init()
        .expect("s")
        .forward(&ours)
        .expect_err("all protected");
    assert!(matches!(error, Error::Empty { .. }));
}

#[test]
fn pruned_weights_stay_zero_through_training() {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let config = StatisticsConfig::new();
    let mut statistics: Statistics = config.init(&model).expect("statistics");
    let data = Sequences::made_up(4, 5, &device);
    let collector = CollectorConfig::new().init().expect("a collector");
    collector
        .collect_batches(&model, "task", [data.clone()], &mut statistics)
        .expect("gradients");
    let scores = Scores::elementwise(&statistics, "task").expect("scores");
    let masks = PruningConfig::new(0.5)
        .with_scope(Scope::Tensor)
        .init()
        .expect("s");
    let masks = masks.forward(&scores).expect("masks");
    let (mut trained, _) = masks.apply(model).expect("its own parameters");
    let before = Weights::of(&trained).expect("weights");
    let mut optimizer = burn::optim::AdamWConfig::new().init();
    for _ in 0..3 {
        let losses = fisher_train::batch::SampleLoss::sample_losses(&trained, &data);
        let gradients = losses.sums().clone().sum().backward();
        let gradients = burn::optim::GradientsParams::from_grads(gradients, &trained);
        let stepped = optimizer.step(0.01, trained, gradients);
        trained = masks.enforce(stepped).expect("its own parameters");
    }
    let after = Weights::of(&trained).expect("weights");
    for (path, keep) in masks.by_element() {
        let (old, new) = (before.get(&path, keep.len()), after.get(&path, keep.len()));
        let (old, new) = (old.expect("weights"), new.expect("weights"));
        assert!(
            new.iter()
                .zip(&keep)
                .all(|(new, keep)| *keep || *new == 0.0),
            "{path}"
        );
        assert!(
            new.iter().zip(old).any(|(new, old)| new != old),
            "{path} is trained on"
        );
    }
}

/// The damage of groups is that of their elements, and of a whole parameter the sum of all.
#[test]
fn damage_adds_up_over_groups() {
    let values: Vec<f64> = (0..22).map(f64::from).collect();
    let statistics = made_up(&values);
    let theta = |n: usize| (0..n).map(|k| 0.5 + k as f64).collect::<Vec<f64>>();
    let weights = BTreeMap::from([
        ("layers.0.a".into(), theta(12)),
        ("layers.1.b".into(), theta(10)),
    ]);
    let weights = Weights::from(weights);
    let groups = Scores::brain_damage_of_groups(&statistics, "task", &weights).expect("scores");
    let a = groups.of_path("layers.0.a").next().expect("a");
    for (channel, found) in a.values().iter().enumerate() {
        let rows = (0..3).map(|row| row * 4 + channel);
        let expected: f64 = rows
            .map(|k| 0.5 * values[k] * (0.5 + k as f64).powi(2))
            .sum();
        assert!(
            (found - expected).abs() < 1e-9 * expected,
            "{found} against {expected}"
        );
    }
    let elements = Scores::brain_damage(&statistics, "task", &weights).expect("scores");
    let sum = |s: &Scores| s.sets().iter().flat_map(|set| set.values()).sum::<f64>();
    assert!((sum(&groups) / sum(&elements) - 1.0).abs() < 1e-12);
    assert!(matches!(
        groups.mean_with(&elements.magnitude(&weights).expect("θ")),
        Err(Error::Kinds { .. })
    ));
    let nothing = burn::module::ParamGroup::from_path("layers.7");
    let pruning = pruning(0.5, Scope::Global)
        .with_protected(vec![nothing])
        .init()
        .expect("s");
    assert!(matches!(
        pruning.forward(&elements),
        Err(Error::Pattern { .. })
    ));
}

#[test]
fn a_task_is_like_itself() {
    let values: Vec<f64> = (0..22).map(|i| f64::from(i * i % 7)).collect();
    let scores = Scores::elementwise(&made_up(&values), "task").expect("scores");
    let same = ComparisonConfig::new()
        .init()
        .forward(&scores, &scores)
        .expect("the same");
    assert!((same.cosine.expect("mass") - 1.0).abs() < 1e-12);
    assert!((same.spearman.expect("it varies") - 1.0).abs() < 1e-12);
    assert!(same.jensen_shannon.expect("mass").abs() < 1e-12);
    let reversed: Vec<f64> = values.iter().map(|v| 6.0 - v).collect();
    let reversed = Scores::elementwise(&made_up(&reversed), "task").expect("scores");
    let opposite = ComparisonConfig::new()
        .init()
        .forward(&scores, &reversed)
        .expect("the same keys");
    assert!((opposite.spearman.expect("it varies") + 1.0).abs() < 1e-12);
}
