//! Conflicts between samples: golden numbers, slices, files, what is refused.

use burn::module::ParamGroup;
use burn::tensor::Tensor;
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig, Precision};
use fisher_metrics::Error;
use fisher_metrics::conflicts::{ConflictReport, ConflictsConfig, SliceBy, SliceConflicts};
use fisher_metrics::damping::Ridge;
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, P_VALUE, assert_close};
use rstest::rstest;
use serde_json::Value;

use crate::made::{Made, Noise, flex, quiet, report};
use crate::stored;

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().expect("a number")],
    }
}

fn slice<'a>(report: &'a ConflictReport, name: &str) -> &'a SliceConflicts {
    let mut slices = report.slices.iter();
    slices.find(|s| s.name == name).expect("a slice")
}

/// Every number of a slice and of all together, against an oracle that does it the long way round.
#[rstest]
fn golden_numbers_agree(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(None, Some(Ridge::new()))] whitening: Option<Ridge>,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let space = if whitening.is_some() { "fisher" } else { "raw" };
    for case in CASES {
        let golden = Golden::load(case);
        let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &device);
        // The oracle's level: so few samples are never called at a sensible one.
        let config = quiet()
            .with_whitening(whitening.clone())
            .with_keep_pairs(true)
            .with_alpha(0.5);
        let conflicts = config.init().expect("settings");
        let report = conflicts.forward(&store, TASKS).expect("a report");
        let expected = golden.topic("conflicts");
        let slices = expected[space]["slices"].as_object().expect("slices");
        assert_eq!(report.slices.len(), slices.len());
        for (path, expected) in slices {
            let found = slice(&report, path);
            let json = serde_json::to_value(found).expect("JSON");
            let named = |what: &str| format!("{case} {space} {path} {what}");
            for what in ["verdict", "exact", "conflicts"] {
                assert_eq!(json[what], expected[what], "{}", named(what));
            }
            for what in [
                "mean_cosine",
                "sign",
                "gradients",
                "apart",
                "opposed",
                "aligned",
                "p_pairs",
                "q_pairs",
            ] {
                agree(&named(what), &json[what], &expected[what]);
            }
            for what in ["cosine", "q"] {
                let found = numbers(&json["pairs"][what]);
                let expected = numbers(&expected["pairs"][what]);
                let tolerance = if what == "q" { P_VALUE } else { GOLDEN };
                assert_close(&named(what), &found, &expected, tolerance, 1.0);
            }
            let separation = report.conflicts.iter().map(|c| (c.cosine, c.separation));
            separation.for_each(|(c, d)| assert!((2.0 * d * d - (1.0 - c)).abs() < 1e-12));
        }
        agree("bounds", &report.bounds.into(), &expected[space]["bounds"]);
        let together = serde_json::to_value(report.together).expect("JSON");
        agree("together", &together, &expected[space]["together"]);
        let p = expected["lengths"]["p"].as_f64().expect("a number");
        assert!(
            (report.lengths.p - p).abs() < 1e-9,
            "{} {p}",
            report.lengths.p
        );
    }
}

/// Every number of `expected`, where it is in `found`. Errors of differences: t and what follows from it
/// are as exact as the mean is beside its error.
fn agree(path: &str, found: &Value, expected: &Value) {
    match expected {
        Value::Object(entries) => {
            for (key, expected) in entries {
                agree(&format!("{path}/{key}"), &found[key], expected);
            }
        }
        Value::Array(entries) => {
            let pairs = found.as_array().expect("a list").iter().zip(entries);
            pairs.for_each(|(found, expected)| agree(path, found, expected));
        }
        Value::Null => assert!(found.is_null(), "{path}: {found}"),
        _ => {
            let [x, y] =
                [found, expected].map(|x| x.as_f64().unwrap_or_else(|| panic!("{path}: {x}")));
            let bound = 1e-4 * y.abs().max(if path.contains("inner") { 0.0 } else { 0.02 });
            assert!((x - y).abs() <= bound, "{path}: {x:e} against {y:e}");
        }
    }
}

/// Cosines over heads, layers and chosen sets, against the gradients taken together by hand.
#[test]
fn slices_are_what_they_say() {
    let golden = Golden::load("llama-gqa");
    let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
    let run = |by: SliceBy| {
        let conflicts = quiet().with_by(by).with_keep_pairs(true).init();
        let conflicts = conflicts.expect("settings");
        conflicts.forward(&store, TASKS).expect("a report")
    };
    // Concatenated gradients of one sample, over parts of parameters.
    let vector = |task: &str, parts: &[(String, std::ops::Range<usize>)]| -> Vec<Vec<f64>> {
        let samples = golden.samples(task);
        let of = |id: &str| {
            let parts = parts.iter().flat_map(|(path, range)| {
                &golden.values(&format!("{task}/gradient/{id}/{path}"))[range.clone()]
            });
            parts.copied().collect()
        };
        samples.iter().map(|s| of(s.id())).collect()
    };
    let check = |found: &SliceConflicts, parts: &[(String, std::ops::Range<usize>)]| {
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let (a, b) = (vector("alpha", parts), vector("beta_two", parts));
        let cosine = |x: &Vec<f64>, y: &Vec<f64>| dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
        let expected: Vec<f64> = a
            .iter()
            .flat_map(|x| b.iter().map(move |y| cosine(x, y)))
            .collect();
        let pairs = found.pairs.as_ref().expect("pairs");
        assert_close(&found.name, &pairs.cosine.concat(), &expected, GOLDEN, 1.0);
        assert_eq!(found.elements, a[0].len(), "{}", found.name);
    };
    let catalogue = golden.catalogue();
    let whole = |path: &str| {
        (
            path.to_owned(),
            0..catalogue.get(path).expect("it").elements(),
        )
    };

    let report = run(SliceBy::Head);
    // 4 query heads, 2 + 2 shared key/value heads, 4 output heads, twice.
    assert_eq!(report.slices.len(), 2 * (4 + 2 + 2 + 4));
    let q = "model.layers.1.self_attn.q_proj.weight".to_owned();
    // [out, in]: 4 rows of 16 a head.
    check(
        slice(&report, "model.layers.1.self_attn Q head 2"),
        &[(q, 128..192)],
    );
    let v = "model.layers.0.self_attn.v_proj.weight".to_owned();
    check(
        slice(&report, "model.layers.0.self_attn V kv head 1"),
        &[(v, 64..128)],
    );
    // O's heads are columns.
    let o = "model.layers.0.self_attn.o_proj.weight";
    let columns = (0..16).map(|row| (o.to_owned(), row * 16 + 12..row * 16 + 16));
    check(
        slice(&report, "model.layers.0.self_attn O head 3"),
        &columns.collect::<Vec<_>>(),
    );

    let report = run(SliceBy::Layer);
    let inside = |p: &&Parameter| p.path().starts_with("model.layers.1.");
    let of_layer = catalogue
        .parameters()
        .iter()
        .filter(inside)
        .map(|p| whole(p.path()));
    check(
        slice(&report, "model.layers.1"),
        &of_layer.collect::<Vec<_>>(),
    );

    let names = ["model.norm.weight", "lm_head.weight"];
    let group = ParamGroup::from_paths(names.to_vec());
    // Sets that overlap do not add up.
    let set = |name: &str| (name.to_owned(), group.clone());
    let twice = run(SliceBy::Chosen(vec![set("one"), set("same")]));
    assert!(twice.together.is_none() && twice.collision().is_none());
    let said = |warning: &String| warning.contains("the chosen sets overlap");
    assert!(twice.warnings.iter().any(said), "{:?}", twice.warnings);
    let report = run(SliceBy::Chosen(vec![set("the end")]));
    assert!(report.together.is_some() && !report.warnings.iter().any(said));
    let mut parts = names.map(whole).to_vec();
    parts.sort_by_key(|(path, _)| catalogue.parameters().iter().position(|p| p.path() == path));
    check(slice(&report, "the end"), &parts);
}

/// The statistic is blind to what no relabelling changes: all gradients alike.
#[test]
fn rounding_is_not_significant() {
    let parameter = Parameter::new("p", [5], Role::Vector, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![parameter]).expect("parameters");
    let store = GradientStoreConfig::new(1 << 20).init_for(&catalogue, "made".into());
    let mut store = store.expect("a store");
    for task in ["a", "b"] {
        let samples = (0..12).map(|i| Sample::new(format!("{i}"), 1));
        let samples: Vec<Sample> = samples.collect::<Result<_, _>>().expect("tokens");
        let mut batch = GradientBatch::new(samples);
        let value = |k: usize| (1.0 + (k / 5) as f32) * [0.1, -0.7, 0.3, 1e-3, 2.0][k % 5];
        let values: Vec<f32> = (0..60).map(value).collect();
        let tensor = Tensor::<1>::from_floats(values.as_slice(), &flex()).reshape([12, 5]);
        batch.insert("p", Gradient::token_sum(tensor));
        store.push(task, &batch).expect("gradients");
    }
    let report = report(quiet(), &store.with_device(&flex()));
    let found = &report.slices[0];
    assert_eq!(found.apart.expect("a test").p, 1.0, "{found:?}");
    assert!(found.sign.is_none() && report.total == 0);
}

/// From disk and with next to no memory, in half precision, with all pairs kept or not: the same
/// report.
#[rstest]
fn streamed_conflicts_are_the_same(
    #[values(None, Some(Ridge::new()))] whitening: Option<Ridge>,
    #[values(Precision::Float32, Precision::Float16)] precision: Precision,
) {
    let golden = Golden::load("llama-gqa");
    let folder = tempfile::tempdir().expect("a folder");
    let kept = GradientStoreConfig::new(1 << 24).with_precision(precision);
    let held = stored(&golden, &kept, 3, &flex());
    let config = GradientStoreConfig::new(0)
        .with_precision(precision)
        .with_folder(Some(folder.path().into()));
    let on_disk = stored(&golden, &config, 2, &flex());
    for by in [SliceBy::Parameter, SliceBy::Head, SliceBy::Layer] {
        // A level at which the few samples there are say something.
        let config = quiet()
            .with_by(by)
            .with_alpha(0.9)
            .with_whitening(whitening.clone());
        let run = |config: ConflictsConfig, store: &GradientStore| {
            let conflicts = config.init().expect("settings");
            let report = conflicts.forward(store, TASKS);
            report.expect("a report")
        };
        let expected = run(config.clone().with_keep_pairs(true), &held);
        assert!(!expected.lowest.is_empty(), "{expected}");
        assert_eq!(expected.gradients.precision, precision);
        for memory in [300, 3000] {
            let found = run(config.clone().with_memory(memory), &on_disk);
            assert_eq!(found.slices.len(), expected.slices.len());
            for (x, y) in found.slices.iter().zip(&expected.slices) {
                let [a, b] = [x, y].map(|s| s.apart.expect("a test"));
                assert_close(&x.name, &[a.statistic], &[b.statistic], 1e-9, 1.0);
                let counts = |s: &SliceConflicts| (s.name.clone(), s.verdict, s.conflicts);
                assert_eq!(counts(x), counts(y));
                assert!(x.pairs.is_none() && y.pairs.is_some());
            }
            let names = |r: &ConflictReport| -> Vec<_> {
                let of = r.lowest.iter();
                let mut names: Vec<_> = of
                    .map(|c| (c.slice.clone(), c.a.clone(), c.b.clone()))
                    .collect();
                names.sort();
                names
            };
            assert_eq!(names(&found), names(&expected));
            assert_eq!(found.components, expected.components);
            let shares = |r: &ConflictReport| -> Vec<_> {
                let of = r.hot_spots.iter();
                of.map(|h| (h.slice.clone(), h.conflicts, h.share))
                    .collect()
            };
            assert_eq!(shares(&found), shares(&expected));
        }
    }
}

/// SVG that says everything in text.
#[test]
fn pictures_show_the_pairs() {
    let made = Made::new([16, 15], 2, 8);
    let mean = |task: usize, _: usize, _: usize| [4.0, -4.0][task];
    let report = made.shifted(quiet().with_keep_pairs(true), 5, mean);
    assert!(report.picture("nothing").is_none());
    let picture = report.picture("p01").expect("pairs");
    let svg = picture.svg();
    // A cell for each pair and its value for whoever points at it; conflicts are framed.
    assert_eq!(svg.matches("<title>").count(), 1 + 16 * 15);
    let pairs = report.slices[1].pairs.as_ref().expect("pairs");
    let value = format!("3, 7: {:.4}", pairs.cosine[3][7]).replace('-', "−");
    assert!(svg.contains(&value), "{value}");
    assert_eq!(
        svg.matches("stroke-width=\"2\"").count(),
        report.slices[1].conflicts
    );
    assert!(
        svg.contains("against each other")
            && svg.contains("with each other")
            && !svg.contains("<script")
    );

    let folder = tempfile::tempdir().expect("a folder");
    picture.save(folder.path().join("map.svg")).expect("a file");
    let saved = std::fs::read_to_string(folder.path().join("map.svg")).expect("a file");
    assert_eq!(saved, svg);
    assert!(picture.save(folder.path().join("no/map.svg")).is_err());
    assert!(made.shifted(quiet(), 5, mean).picture("p01").is_none());
}

#[test]
fn a_sample_without_direction_is_left_out_and_named() {
    let mut noise = Noise::new(0);
    let mut store = Made::new([4, 4], 1, 3).store(|_, _, _| noise.normals(3));
    let mut batch = GradientBatch::new(vec![Sample::new("flat", 1).expect("tokens")]);
    batch.insert(
        "p00",
        Gradient::token_sum(Tensor::<2>::zeros([1, 3], &flex())),
    );
    store.push("b", &batch).expect("gradients");
    let report = report(quiet().with_keep_pairs(true), &store);
    assert_eq!(
        report.slices[0].without_direction,
        [vec![], vec!["flat".to_owned()]]
    );
    assert_eq!(report.slices[0].pairs.as_ref().expect("pairs").b.len(), 4);
    assert!(report.slices[0].sign.is_some() && report.slices[0].apart.is_some());
    let said = |warning: &String| warning.contains("left out");
    assert!(report.warnings.iter().any(said), "{:?}", report.warnings);
}

#[test]
fn too_few_samples_are_an_error() {
    let one = Made::new([1, 4], 1, 3).store(|_, i, _| vec![i as f32, 1.0, 2.0]);
    let conflicts = quiet().init().expect("settings");
    let error = conflicts.forward(&one, ["a", "b"]);
    assert!(matches!(error, Err(Error::TooFewSamples { task, found: 1, .. }) if task == "a"));
    let error = conflicts.forward(&one, ["nobody", "b"]);
    assert!(
        error
            .expect_err("unknown")
            .to_string()
            .contains("tasks there are: a, b")
    );
    let heads = quiet().with_by(SliceBy::Head).init().expect("settings");
    let two = Made::new([2, 2], 1, 3).store(|_, i, _| vec![i as f32, 1.0, 2.0]);
    let error = heads.forward(&two, ["a", "b"]);
    assert!(matches!(error, Err(Error::NotCollected { .. })));
    // A task's pairs with itself would count as pairs across, and samples as their own partners.
    let error = conflicts.forward(&two, ["a", "a"]);
    assert!(matches!(error, Err(Error::Settings { .. })));
    let nothing = quiet().with_by(SliceBy::Chosen(Vec::new())).init();
    assert!(matches!(nothing, Err(Error::Settings { .. })));
    assert!(quiet().with_alpha(0.0).init().is_err());
    assert!(quiet().with_relabellings(Some(0)).init().is_err());
    assert!(quiet().with_floor(1.5).init().is_err());
}

/// Gradients whose squares are out of float32's range have directions all the same, also where
/// products are of float32.
#[rstest]
fn small_and_large_gradients_have_directions(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1e-30, 1e25)] size: f32,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let parameter = Parameter::new("p", [6], Role::Vector, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![parameter]).expect("parameters");
    let store = GradientStoreConfig::new(1 << 20).init_for(&catalogue, "made".into());
    let mut store = store.expect("a store");
    let value = |task: usize, k: usize| ((1 + k * k + 50 * task) as f32).sin();
    for (task, name) in ["a", "b"].into_iter().enumerate() {
        let samples = (0..3).map(|i| Sample::new(format!("{i}"), 1));
        let samples: Vec<Sample> = samples.collect::<Result<_, _>>().expect("tokens");
        let mut batch = GradientBatch::new(samples);
        let values: Vec<f32> = (0..18).map(|k| size * value(task, k)).collect();
        let tensor = Tensor::<1>::from_floats(values.as_slice(), &flex()).reshape([3, 6]);
        batch.insert("p", Gradient::token_sum(tensor));
        store.push(name, &batch).expect("gradients");
    }
    let conflicts = quiet().with_keep_pairs(true).init().expect("settings");
    let report = conflicts.forward(&store.with_device(&device), ["a", "b"]);
    let report = report.expect("a report");
    let row = |task: usize, i: usize| -> Vec<f64> {
        let of = (6 * i..6 * i + 6).map(|k| f64::from(value(task, k)));
        of.collect()
    };
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let cosine = |k: usize| {
        let (x, y) = (row(0, k / 3), row(1, k % 3));
        dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt()
    };
    let expected: Vec<f64> = (0..9).map(cosine).collect();
    let pairs = report.slices[0].pairs.as_ref().expect("pairs");
    assert_close("cosine", &pairs.cosine.concat(), &expected, GOLDEN, 1.0);
}
