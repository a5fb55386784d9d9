//! Gates: golden numbers on every backend, the same from every form of a gradient, and what accumulators promise.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::gates::{
    GateKind, GatePart, GateQuantity, GateScores, GateSet, Gates, GatesConfig,
};
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient, Tied};
use fisher_core::grouping::{Grouping, HeadLayout, Scheme};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{PRODUCTS, REORDERED, assert_close};
use rstest::rstest;

fn collect(golden: &Golden, size: usize, device: &Device) -> GateScores {
    let mut gates = golden.gates(&GatesConfig::new(), device);
    for task in TASKS {
        let count = golden.samples(task).len();
        for start in (0..count).step_by(size) {
            let batch = golden.batch(task, start..count.min(start + size), device);
            gates.push_batch(task, batch).expect("gradients");
        }
    }
    gates.into_scores()
}

fn kind_name(kind: GateKind) -> &'static str {
    match kind {
        GateKind::Layer => "layer",
        GateKind::Head => "head",
        GateKind::KvHead => "kv_head",
        _ => "channel",
    }
}

#[rstest]
fn gates_are_the_golden_ones(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1, 4)] size: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let expected = golden.topic("gates");
        let scores = collect(&golden, size, &device);
        for task in TASKS {
            let of_task = scores.task(task).expect("a task");
            for (of, name) in [
                (GateQuantity::FirstOrder, "first_order"),
                (GateQuantity::Fisher, "fisher"),
                (GateQuantity::Predicted, "predicted"),
            ] {
                let all = of_task.mean(of).expect("samples");
                // By kind: sums over layers cancel, so that the largest of the kind is the measure.
                let mut kinds: BTreeMap<GateKind, [Vec<f64>; 2]> = BTreeMap::new();
                for (set, range) in scores.places() {
                    let values = &expected[task][kind_name(set.kind())][set.name()][name];
                    let values = values
                        .as_array()
                        .unwrap_or_else(|| panic!("{}", set.name()));
                    let [found, wanted] = kinds.entry(set.kind()).or_default();
                    found.extend(&all[range]);
                    wanted.extend(values.iter().map(|v| v.as_f64().expect("a number")));
                }
                let there = expected[task].as_object().expect("kinds");
                assert_eq!(kinds.len(), there.len());
                for (kind, [found, wanted]) in kinds {
                    let sets = there[kind_name(kind)].as_object().expect("sets");
                    let count: usize = sets
                        .values()
                        .map(|s| s[name].as_array().map_or(0, Vec::len))
                        .sum();
                    assert_eq!(found.len(), count, "{case} {kind}");
                    let label = format!("{case} {task} {kind} {name}");
                    assert_close(&label, &found, &wanted, PRODUCTS, 1.0);
                }
            }
        }
    }
}

#[test]
fn a_head_is_its_slice_of_o_and_a_channel_has_its_bias() {
    let golden = Golden::load("gpt2-fused");
    let sets = GatesConfig::new().sets(&golden.catalogue(), &golden.heads());
    let sets = sets.expect("gates");
    let paths = |kind| -> Vec<Vec<String>> {
        let sets = sets.iter().filter(|set| set.kind() == kind);
        let paths = |set: &GateSet| set.parts().iter().map(|part| part.path.clone()).collect();
        sets.map(paths).collect()
    };
    assert_eq!(
        paths(GateKind::Head)[0],
        ["transformer.h.0.attn.c_proj.weight"]
    );
    assert_eq!(
        paths(GateKind::Channel)[0],
        [
            "transformer.h.0.mlp.c_fc.weight",
            "transformer.h.0.mlp.c_fc.bias"
        ]
    );
    // No key/value head is shared.
    assert!(paths(GateKind::KvHead).is_empty());
    let head = sets
        .iter()
        .find(|set| set.kind() == GateKind::Head)
        .expect("heads");
    assert_eq!(head.label(1), "transformer.h.0.attn head 1");
}

/// Three samples, four positions, a parameter of five rows and three columns.
fn values(count: usize, phase: f64) -> Vec<f32> {
    (0..count)
        .map(|k| ((k * k % 97) as f64 * 0.37 + phase).sin() as f32)
        .collect()
}

fn tensor<const D: usize>(shape: [usize; D], phase: f64, device: &Device) -> Tensor<D> {
    let values = values(shape.iter().product(), phase);
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn schemes() -> Vec<Scheme> {
    vec![
        Scheme::Tensor,
        Scheme::OutputChannel,
        Scheme::InputChannel,
        Scheme::Row,
        Scheme::Buckets { size: 4 },
        Scheme::Custom {
            ids: (0..15).map(|e| e * 7 % 4).collect(),
        },
        Scheme::Element,
    ]
}

#[rstest]
fn every_form_of_a_gradient_gives_what_the_loop_gives(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Orientation::InputOutput, Orientation::OutputInput)] orientation: Orientation,
    #[values("full", "outer", "rows", "tied", "zero")] form: &str,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let matrix = Parameter::new("w", [5, 3], Role::Matrix, orientation);
    let sets = schemes()
        .into_iter()
        .flat_map(|scheme| GateSet::of(&matrix, &scheme, &HeadLayout::none()).expect("a grouping"));
    let sets: Vec<GateSet> = sets.collect();
    let catalogue = Catalogue::new(vec![matrix]).expect("a parameter");
    let weights = tensor([15], 0.3, &device);
    let theta = weights.clone().try_to_vec_as::<f32>().expect("values");
    let gradient = match form {
        "full" => SampleGradient::full(tensor([3, 15], 0.8, &device)),
        "outer" => SampleGradient::Outer {
            left: tensor([3, 4, 5], 0.1, &device),
            right: tensor([3, 4, 3], 1.7, &device),
        },
        "tied" => SampleGradient::Tied(Box::new(Tied {
            left: tensor([3, 4, 5], 0.1, &device),
            right: tensor([3, 4, 3], 1.7, &device),
            ids: Tensor::from_ints([[4, 4], [0, 1], [2, 2]], &device),
            delta: tensor([3, 2, 3], 0.9, &device),
        })),
        "rows" => SampleGradient::Rows {
            ids: Tensor::<2, Int>::from_ints([[0, 4, 4, 1], [2, 2, 2, 2], [3, 0, 1, 0]], &device),
            delta: tensor([3, 4, 3], 1.7, &device),
            table: 5,
        },
        _ => SampleGradient::Zero {
            samples: 3,
            elements: 15,
            device: device.clone(),
        },
    };
    let full = gradient.to_full().try_to_vec_as::<f32>().expect("values");
    let mut gates = GatesConfig::new()
        .init_for(
            &catalogue,
            sets,
            BTreeMap::from([("w".into(), weights)]),
            "m".into(),
        )
        .expect("gates");
    let samples = [2, 1, 5].map(|t| Sample::new(format!("of {t}"), t).expect("tokens"));
    let mut batch = GradientBatch::new(samples.to_vec());
    batch.insert("w", gradient);
    gates.push_batch("t", batch).expect("a batch");
    let scores = gates.into_scores();
    let task = scores.task("t").expect("a task");
    let found = task.products().expect("few");
    let mut expected = Vec::new();
    for sample in full.chunks(15) {
        for set in scores.sets() {
            let mut sums = vec![0.0; set.gates()];
            let groups = set.parts()[0].grouping.group_of_elements();
            for (e, group) in groups.into_iter().enumerate() {
                sums[group.expect("a group")] += f64::from(sample[e]) * f64::from(theta[e]);
            }
            expected.extend(sums);
        }
    }
    assert_close(form, found, &expected, PRODUCTS, 1.0);
    // Means are of what the products say, by definition.
    let (first, fisher) = (GateQuantity::FirstOrder, GateQuantity::Fisher);
    let gates = scores.gates();
    for g in 0..gates {
        let u = |i: usize| found[i * gates + g];
        let tokens = [2.0, 1.0, 5.0];
        let m = (0..3).map(|i| u(i) / tokens[i]).sum::<f64>() / 3.0;
        let f = (0..3).map(|i| u(i) * u(i) / tokens[i]).sum::<f64>() / 3.0;
        assert!((task.mean(first).expect("samples")[g] - m).abs() < 1e-14);
        assert!((task.mean(fisher).expect("samples")[g] - f).abs() < 1e-14);
        let predicted = task.mean(GateQuantity::Predicted).expect("samples")[g];
        assert!((predicted - (0.5 * f - m)).abs() < 1e-14);
    }
}

/// A matrix and its bias, as channels, and the whole.
fn gates(config: &GatesConfig) -> Gates {
    let device = Backend::Flex.device().expect("a CPU");
    let matrix = Parameter::new("l.weight", [2, 3], Role::Matrix, Orientation::InputOutput);
    let bias = Parameter::new("l.bias", [3], Role::Vector, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![matrix, bias]).expect("parameters");
    let sets = config.sets(&catalogue, &HeadLayout::none()).expect("sets");
    let weights = BTreeMap::from([
        ("l.weight".to_owned(), tensor([6], 0.2, &device)),
        ("l.bias".to_owned(), tensor([3], 0.9, &device)),
    ]);
    config
        .init_for(&catalogue, sets, weights, "m".into())
        .expect("gates")
}

fn batch(
    range: std::ops::Range<usize>,
    cluster: impl Fn(usize) -> Option<String>,
) -> GradientBatch {
    let device = Backend::Flex.device().expect("a CPU");
    let samples = range.clone().map(|i| {
        let sample = Sample::new(format!("s{i}"), 1 + i as u64 % 4).expect("tokens");
        match cluster(i) {
            Some(cluster) => sample.with_cluster(cluster),
            None => sample,
        }
    });
    let mut batch = GradientBatch::new(samples.collect());
    for (path, elements) in [("l.weight", 6), ("l.bias", 3)] {
        let rows = range
            .clone()
            .map(|i| tensor([1, elements], i as f64, &device));
        batch.insert(path, SampleGradient::full(Tensor::cat(rows.collect(), 0)));
    }
    batch
}

fn alone(_: usize) -> Option<String> {
    None
}

fn agree(a: &GateScores, b: &GateScores) {
    for task in a.tasks() {
        let (ours, theirs) = (a.task(task).expect("a task"), b.task(task).expect("a task"));
        assert_eq!(ours.count(), theirs.count());
        for of in GateQuantity::ALL {
            let mean = |t: &fisher_core::gates::TaskGates| t.mean(of).expect("samples").to_vec();
            assert_close("mean", &mean(ours), &mean(theirs), REORDERED, 1.0);
            let (x, y) = (ours.standard_error(of), theirs.standard_error(of));
            assert_eq!(x.is_some(), y.is_some());
            if let (Some(x), Some(y)) = (x, y) {
                assert_close("error", &x, &y, REORDERED, 1.0);
            }
        }
    }
}

#[test]
fn shards_merge_to_one_pass_and_files_hold_every_bit() {
    let config = GatesConfig::new();
    let mut whole = gates(&config);
    whole.push_batch("t", batch(0..9, alone)).expect("a batch");
    let whole = whole.into_scores();
    for cut in [1, 4, 8] {
        let (mut ours, mut theirs) = (gates(&config), gates(&config));
        for i in 0..cut {
            ours.push_batch("t", batch(i..i + 1, alone))
                .expect("a sample");
        }
        theirs
            .push_batch("t", batch(cut..9, alone))
            .expect("a batch");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gates");
        theirs.scores().save(&file).expect("a file");
        let read = GateScores::load(&file).expect("a file");
        let again = folder.path().join("again");
        read.save(&again).expect("a file");
        let bytes = |path| std::fs::read(path).expect("a file");
        assert!(bytes(&file) == bytes(&again), "not the same bytes");
        // Also into gates that go on.
        ours.resume(read).expect("other samples");
        agree(ours.scores(), &whole);
        let task = |s: &GateScores| s.task("t").expect("a task").products().map(<[f64]>::to_vec);
        let (found, expected) = (task(ours.scores()), task(&whole));
        assert_close(
            "rows",
            &found.expect("rows"),
            &expected.expect("rows"),
            REORDERED,
            1.0,
        );
        let twice = ours.resume(GateScores::load(&file).expect("a file"));
        assert!(
            matches!(twice, Err(Error::DuplicateSample { .. })),
            "{twice:?}"
        );
    }
    let mut other = gates(&GatesConfig::new().with_layers(false));
    let error = other.resume(whole).expect_err("other gates");
    assert!(matches!(error, Error::Incompatible { .. }), "{error}");
}

#[test]
fn rows_are_kept_while_they_are_few_and_means_go_on() {
    let per_sample = gates(&GatesConfig::new()).scores().gates();
    let mut bounded = gates(&GatesConfig::new().with_rows(5 * per_sample));
    let mut free = gates(&GatesConfig::new());
    for range in [0..5, 5..9] {
        bounded
            .push_batch("t", batch(range.clone(), alone))
            .expect("a batch");
        free.push_batch("t", batch(range.clone(), alone))
            .expect("a batch");
        let task = bounded.scores().task("t").expect("a task");
        assert_eq!(task.products().is_some(), range.end == 5);
        agree(bounded.scores(), free.scores());
    }
}

#[test]
fn errors_are_of_clusters_where_samples_name_them() {
    let of = GateQuantity::Predicted;
    let mut copies = gates(&GatesConfig::new());
    let pairs = |i: usize| Some(format!("document {}", i / 2));
    copies.push_batch("t", batch(0..8, pairs)).expect("a batch");
    let task = copies.scores().task("t").expect("a task");
    let (rows, gates_) = (task.rows(of).expect("rows"), copies.scores().gates());
    let found = task.standard_error(of).expect("clusters");
    let mean = task.mean(of).expect("samples");
    for g in 0..gates_ {
        let sums = (0..4).map(|c| {
            let of_cluster = [2 * c, 2 * c + 1].map(|i| rows[i * gates_ + g] - mean[g]);
            of_cluster.iter().sum::<f64>()
        });
        let squares: f64 = sums.map(|sum| sum * sum).sum();
        let expected = (4.0 / 3.0 * squares).sqrt() / 8.0;
        assert!((found[g] - expected).abs() < 1e-12 * expected.max(1.0));
    }
    // Not to be had from sums over samples alone.
    let mut bounded = gates(&GatesConfig::new().with_rows(1));
    bounded
        .push_batch("t", batch(0..8, pairs))
        .expect("a batch");
    let task = bounded.scores().task("t").expect("a task");
    assert_eq!(task.standard_error(of), None);
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let mut sink = gates(&GatesConfig::new());
    sink.push_batch("t", batch(0..2, alone)).expect("a batch");
    let before = sink
        .scores()
        .task("t")
        .expect("a task")
        .products()
        .map(<[f64]>::to_vec);
    let error = sink.push_batch("t", batch(1..3, alone)).expect_err("seen");
    assert!(matches!(error, Error::SampleTwice { .. }), "{error}");
    let mut half = batch(2..4, alone);
    half.retain(|path| path == "l.bias");
    let error = sink.push_batch("t", half).expect_err("half");
    assert!(matches!(error, Error::MissingParameter { .. }), "{error}");
    let device = Backend::Flex.device().expect("a CPU");
    let mut bad = batch(2..3, alone);
    bad.retain(|path| path == "l.bias");
    bad.insert(
        "l.weight",
        SampleGradient::full(Tensor::full([1, 6], f32::NAN, &device)),
    );
    let error = sink.push_batch("t", bad).expect_err("not finite");
    assert!(
        matches!(&error, Error::NonFinite { sample, .. } if sample == "s2"),
        "{error}"
    );
    let after = sink
        .scores()
        .task("t")
        .expect("a task")
        .products()
        .map(<[f64]>::to_vec);
    assert_eq!(before, after);

    let matrix = Parameter::new("l.weight", [2, 3], Role::Matrix, Orientation::InputOutput);
    let of = |scheme| {
        let groupings = Grouping::of(&matrix, &scheme, &HeadLayout::none());
        let grouping = groupings.expect("a grouping").swap_remove(0);
        GatePart {
            path: "l.weight".into(),
            grouping,
        }
    };
    let twice = vec![of(Scheme::Tensor), of(Scheme::Tensor)];
    assert!(GateSet::new(GateKind::Custom, "twice", twice).is_err());
    assert!(GateSet::new(GateKind::Custom, "none", Vec::new()).is_err());
    let mut other = of(Scheme::OutputChannel);
    other.path = "other".into();
    let uneven = vec![of(Scheme::Row), other];
    assert!(GateSet::new(GateKind::Custom, "uneven", uneven).is_err());
}
