//! Conflicts between samples: golden numbers, laws, calibration.

use burn::module::ParamGroup;
use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig, Precision};
use fisher_metrics::Error;
use fisher_metrics::conflicts::{ConflictReport, ConflictsConfig, SliceBy, SliceConflicts};
use fisher_metrics::correction::Correction;
use fisher_metrics::damping::Ridge;
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, P_VALUE, assert_close};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;
use serde_json::Value;

use crate::stored;

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

fn quiet() -> ConflictsConfig {
    ConflictsConfig::new()
        .with_progress(false)
        .with_bootstrap(0)
}

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
        let config = quiet()
            .with_whitening(whitening.clone())
            .with_keep_pairs(true);
        let run = |config: ConflictsConfig| {
            let conflicts = config.init().expect("settings");
            conflicts.forward(&store, TASKS)
        };
        let report = run(config.clone()).expect("a report");
        let by = run(config
            .clone()
            .with_correction(Correction::BenjaminiYekutieli));
        let bonferroni = run(config.with_correction(Correction::Bonferroni));
        let [by, bonferroni] = [by, bonferroni].map(|r| r.expect("a report"));
        let parameters: Vec<&str> = golden.names("alpha/mean/").collect();
        assert_eq!(report.slices.len(), parameters.len());
        for path in parameters {
            let expected = golden.expected(&format!("/conflicts/{space}/{path}"));
            let found = slice(&report, path);
            let pairs = found.pairs.as_ref().expect("pairs");
            let flat = |rows: &[Vec<f64>]| rows.concat();
            let named = |what: &str| format!("{case} {space} {path} {what}");
            let close = |what: &str, found: &[f64], tolerance: f64| {
                let expected = numbers(&expected[what]);
                assert_close(&named(what), found, &expected, tolerance, 1.0);
            };
            let cosine = flat(&pairs.cosine);
            close("cosine", &cosine, GOLDEN);
            let separation = cosine.iter().map(|c| ((1.0 - c) / 2.0).sqrt());
            close("separation", &separation.collect::<Vec<_>>(), GOLDEN);
            close("p_pair", &flat(&pairs.p), P_VALUE);
            close("q_pair", &flat(&pairs.q), P_VALUE);
            let test = found.test.expect("a test");
            assert!(test.exact);
            close("statistic", &[test.statistic], GOLDEN);
            close("p_slice_exact", &[test.p_low], P_VALUE);
            for (what, report) in [
                ("q_slice", &report),
                ("q_slice_by", &by),
                ("q_slice_bonferroni", &bonferroni),
            ] {
                close(what, &[slice(report, path).q.expect("a q")], P_VALUE);
            }
            let ids = |task: &str| golden.samples(task).iter().map(|s| s.id().into()).collect();
            assert_eq!(
                [&pairs.a, &pairs.b],
                [&ids("alpha"), &ids("beta_two")] as [&Vec<String>; 2]
            );
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
    let report = run(SliceBy::Chosen(vec![("the end".into(), group)]));
    let mut parts = names.map(whole).to_vec();
    parts.sort_by_key(|(path, _)| catalogue.parameters().iter().position(|p| p.path() == path));
    check(slice(&report, "the end"), &parts);
}

/// Made-up gradients: `slices` parameters of `elements` each.
struct Made {
    store: GradientStore,
}

impl Made {
    /// Every element is normal; sample `i` of task `t` also has `shift(t, slice)` on the first.
    fn new(
        counts: [usize; 2],
        slices: usize,
        elements: usize,
        seed: u64,
        shift: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let shift = |task: usize, slice: usize, _: usize| shift(task, slice);
        Self::by_sample(counts, slices, elements, seed, shift)
    }

    /// The same, with a shift for every sample of its own.
    fn by_sample(
        counts: [usize; 2],
        slices: usize,
        elements: usize,
        seed: u64,
        shift: impl Fn(usize, usize, usize) -> f32,
    ) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let mut normal = || {
            let (u, v): (f32, f32) = (rng.random(), rng.random());
            (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
        };
        let parameter = |i: usize| {
            Parameter::new(
                format!("p{i:02}"),
                [elements],
                Role::Vector,
                Orientation::InputOutput,
            )
        };
        let catalogue = Catalogue::new((0..slices).map(parameter).collect()).expect("parameters");
        let store = GradientStoreConfig::new(1 << 28).init_for(&catalogue, "made".into());
        let mut store = store.expect("a store");
        for (task, count) in counts.into_iter().enumerate() {
            let samples = (0..count).map(|i| Sample::new(format!("{i}"), 1 + i as u64 % 3));
            let samples: Vec<Sample> = samples.collect::<Result<_, _>>().expect("tokens");
            let mut batch = GradientBatch::new(samples);
            for slice in 0..slices {
                let mut values: Vec<f32> = (0..count * elements).map(|_| normal()).collect();
                let firsts = values.iter_mut().step_by(elements).enumerate();
                firsts.for_each(|(i, x)| *x += shift(task, slice, i));
                let tensor = Tensor::<1>::from_floats(values.as_slice(), &flex());
                let tensor = tensor.reshape([count, elements]);
                batch.insert(format!("p{slice:02}"), Gradient::token_sum(tensor));
            }
            store.push(["a", "b"][task], &batch).expect("gradients");
        }
        let store = store.with_device(&flex());
        Self { store }
    }

    fn report(&self, config: ConflictsConfig) -> ConflictReport {
        let conflicts = config.init().expect("settings");
        let report = conflicts.forward(&self.store, ["a", "b"]);
        report.expect("a report")
    }
}

/// Kolmogorov and Smirnov's distance to the uniform distribution.
fn distance_to_uniform(p: &mut [f64]) -> f64 {
    p.sort_by(f64::total_cmp);
    let n = p.len() as f64;
    let at = |(i, p): (usize, &f64)| (p - i as f64 / n).abs().max(((i + 1) as f64 / n - p).abs());
    p.iter().enumerate().map(at).fold(0.0, f64::max)
}

/// Where nothing collides, p-values of slices are uniform.
#[rstest]
#[case::raw(None)]
#[case::whitened(Some(Ridge::new()))]
fn p_values_are_uniform_under_the_null(#[case] whitening: Option<Ridge>) {
    let runs = 200;
    let mut p: Vec<f64> = (0..runs)
        .map(|seed| {
            let made = Made::new([12, 12], 1, 8, seed, |_, _| 0.0);
            let config = quiet()
                .with_whitening(whitening.clone())
                .with_relabellings(499);
            let report = made.report(config.with_seed(seed));
            let test = report.slices[0].test.expect("a test");
            assert!(!test.exact && test.p_low > 0.0);
            test.p_low
        })
        .collect();
    // The distance that 200 uniform numbers exceed once in a thousand times.
    let bound = 1.95 / f64::from(runs as u32).sqrt();
    let distance = distance_to_uniform(&mut p);
    assert!(distance < bound, "{distance} of {bound}");
}

/// Of 20 slices 5 collide, the more the larger the shift: the share of false ones among those
/// selected is at most α, and true ones are found. Prints a table (`--nocapture`).
#[test]
fn false_discoveries_are_as_rare_as_asked() {
    let (runs, alpha) = (200, 0.1);
    println!("{runs} runs, 20 slices of 8 elements, 10 + 10 samples, α = {alpha}");
    println!(
        "{:>6}  {:<20}  {:>6}  {:>6}  {:>6}",
        "shift", "", "FDR", "± s.e.", "power"
    );
    let corrections = [
        Correction::BenjaminiHochberg,
        Correction::BenjaminiYekutieli,
        Correction::Bonferroni,
    ];
    for shift in [0.0f32, 0.6, 0.9, 1.2] {
        let planted = |task: usize, slice: usize| match (slice < 5, task) {
            (true, 0) => shift,
            (true, _) => -shift,
            _ => 0.0,
        };
        let made = (0..runs).map(|seed| Made::new([10, 10], 20, 8, 1000 + seed, planted));
        let made: Vec<Made> = made.collect();
        let true_ones = if shift == 0.0 { 0 } else { 5 };
        for correction in corrections {
            let config = quiet()
                .with_alpha(alpha)
                .with_relabellings(499)
                .with_correction(correction);
            let (mut rates, mut found) = (Vec::new(), 0);
            for made in &made {
                let report = made.report(config.clone());
                let selected = (0..20).filter(|&i| report.slices[i].selected);
                let selected: Vec<usize> = selected.collect();
                assert_eq!(report.selected, selected.len());
                let wrong = selected.iter().filter(|i| **i >= true_ones).count();
                found += selected.len() - wrong;
                rates.push(wrong as f64 / selected.len().max(1) as f64);
            }
            let n = runs as f64;
            let mean = rates.iter().sum::<f64>() / n;
            let squares = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>();
            let error = (squares / (n - 1.0) / n).sqrt();
            let power = found as f64 / (5.0 * n);
            println!("{shift:>6}  {correction:<20?}  {mean:>6.3}  {error:>6.3}  {power:>6.3}");
            assert!(
                mean <= alpha + 2.0 * error,
                "{shift} {correction:?}: {mean}"
            );
            let strict = correction != Correction::BenjaminiHochberg;
            assert!(shift < 1.2 || strict || power > 0.8, "{power}");
        }
    }
}

#[test]
fn planted_conflicts_are_told_with_their_names() {
    let shift = |task: usize, slice: usize| match (slice == 2, task) {
        (true, 0) => 4.0,
        (true, _) => -4.0,
        _ => 0.0,
    };
    let made = Made::new([16, 15], 6, 8, 5, shift);
    let report = made.report(quiet().with_bootstrap(200));
    assert_eq!(report.selected, 1, "{report}");
    assert!(slice(&report, "p02").selected);
    assert!(report.total > 40, "{report}");
    assert_eq!(report.hot_spots[0].slice, "p02");
    assert_eq!(report.total, slice(&report, "p02").conflicts);
    assert_eq!(report.clusters.len(), 1);
    // What leaving a sample out would do was not measured, and is not said.
    let advice = report.sentences(3).pop().expect("a sentence");
    assert!(
        advice.ends_with("a candidate to look at, to leave out or to weigh less"),
        "{advice}"
    );
    for conflict in &report.conflicts {
        assert!(conflict.cosine < 0.0 && conflict.q <= report.pair_level);
        assert_eq!((&*conflict.a.task, &*conflict.b.task), ("a", "b"));
        let expected = ((1.0 - conflict.cosine) / 2.0).sqrt();
        assert_eq!(conflict.separation, expected);
    }
    let first = &report.conflicts[0];
    let sentence = report.sentences(1)[0].clone();
    let expected = format!(
        "sample {} of b conflicts with sample {} of a on p02 (cos −0.",
        first.b.id, first.a.id
    );
    assert!(sentence.starts_with(&expected), "{sentence}");
    let mean = slice(&report, "p02").mean_cosine.expect("pairs");
    let [low, high] = mean.interval.expect("a bootstrap");
    assert!(low < mean.mean && mean.mean < high && high < 0.0);

    // A pair is only a conflict if it is as far apart as was asked.
    let far = made.report(quiet().with_min_separation(0.97));
    assert!(far.total < report.total && far.conflicts.iter().all(|c| c.separation >= 0.97));
    // Too few samples to tell pairs apart: that is said.
    let few = Made::new([9, 8], 6, 8, 5, shift).report(quiet());
    assert_eq!((few.selected, few.total), (1, 0), "{few}");
    assert!(
        few.warnings[0].contains("more samples"),
        "{:?}",
        few.warnings
    );
    // The same seed gives the same report, another not quite the same.
    let json = |seed| {
        let report = made.report(quiet().with_bootstrap(50).with_seed(seed));
        serde_json::to_value(report.slices).expect("JSON")
    };
    assert_eq!(json(1), json(1));
    assert_ne!(json(1), json(2));
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
    let conflicts = quiet().init().expect("settings");
    let report = conflicts.forward(&store.with_device(&flex()), ["a", "b"]);
    let test = report.expect("a report").slices[0].test.expect("a test");
    assert_eq!(test.p_low, 1.0, "{test:?}");
}

/// Of 10 slices 3 collide, and in them two thirds of the samples of either task; pairs of other
/// samples, and other slices, have no conflict to find. The share of false ones among the pairs called,
/// averaged over the slices selected, is what Benjamini and Bogomolov hold at α where p-values are
/// valid; those of pairs share their samples, so it is measured. Prints a table (`--nocapture`).
#[test]
fn pairs_that_do_not_collide_are_rarely_called() {
    let (runs, alpha, count) = (100, 0.1, 24);
    println!("{runs} runs, 10 slices of 8 elements, 3 collide, 24 + 24 samples, α = {alpha}");
    println!(
        "{:>6}  {:>9}  {:>9}  {:>6}  {:>6}  {:>6}",
        "shift", "selected", "conflicts", "FDR", "± s.e.", "power"
    );
    let collides = |slice: usize, i: usize| slice < 3 && !i.is_multiple_of(3);
    for shift in [0.0f32, 1.5, 3.0, 6.0] {
        let planted = |task: usize, slice: usize, i: usize| match (collides(slice, i), task) {
            (true, 0) => shift,
            (true, _) => -shift,
            _ => 0.0,
        };
        let (mut rates, mut selected, mut conflicts, mut right) = (Vec::new(), 0, 0, 0);
        for seed in 0..runs {
            let made = Made::by_sample([count; 2], 10, 8, 7000 + seed, planted);
            let config = quiet().with_alpha(alpha).with_relabellings(499);
            let report = made.report(config.with_listed(usize::MAX));
            let mut rate = 0.0;
            for (i, slice) in report.slices.iter().enumerate() {
                let called = report.conflicts.iter().filter(|c| c.slice == slice.name);
                let wrong = called.filter(|c| {
                    let number = |id: &str| id.parse().expect("a number");
                    let both = collides(i, number(&c.a.id)) && collides(i, number(&c.b.id));
                    shift == 0.0 || !both
                });
                let wrong = wrong.count();
                rate += wrong as f64 / slice.conflicts.max(1) as f64;
                right += slice.conflicts - wrong;
            }
            rates.push(rate / report.selected.max(1) as f64);
            selected += report.selected;
            conflicts += report.total;
        }
        let n = runs as f64;
        let mean = rates.iter().sum::<f64>() / n;
        let squares = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>();
        let error = (squares / (n - 1.0) / n).sqrt();
        let power = right as f64 / (n * 3.0 * 16.0 * 16.0);
        println!(
            "{shift:>6}  {selected:>9}  {conflicts:>9}  {mean:>6.3}  {error:>6.3}  {power:>6.3}"
        );
        assert!(mean <= alpha + 2.0 * error, "{shift}: {mean} ± {error}");
        assert!(shift < 6.0 || power > 0.5, "{power}");
    }
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
        // A level at which the few samples there are can conflict.
        let config = quiet()
            .with_by(by)
            .with_alpha(0.999)
            .with_whitening(whitening.clone());
        let run = |config: ConflictsConfig, store: &GradientStore| {
            let conflicts = config.init().expect("settings");
            let report = conflicts.forward(store, TASKS);
            report.expect("a report")
        };
        let expected = run(config.clone().with_keep_pairs(true), &held);
        assert!(expected.total > 0, "{expected}");
        assert_eq!(expected.gradients.precision, precision);
        for memory in [300, 3000] {
            let found = run(config.clone().with_memory(memory), &on_disk);
            assert_eq!(found.slices.len(), expected.slices.len());
            for (x, y) in found.slices.iter().zip(&expected.slices) {
                let [a, b] = [x, y].map(|s| s.test.expect("a test"));
                assert_close(&x.name, &[a.statistic], &[b.statistic], 1e-9, 1.0);
                let counts = |s: &SliceConflicts| (s.name.clone(), s.selected, s.conflicts);
                assert_eq!(counts(x), counts(y));
                assert!(x.pairs.is_none() && y.pairs.is_some());
            }
            let names = |r: &ConflictReport| -> Vec<_> {
                let of = r.conflicts.iter();
                let mut names: Vec<_> = of
                    .map(|c| (c.slice.clone(), c.a.clone(), c.b.clone()))
                    .collect();
                names.sort();
                names
            };
            assert_eq!(names(&found), names(&expected));
            assert_eq!(found.clusters, expected.clusters);
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
    let shift = |task: usize, _| if task == 0 { 4.0 } else { -4.0 };
    let made = Made::new([16, 15], 2, 8, 5, shift);
    let report = made.report(quiet().with_keep_pairs(true));
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
    assert!(svg.contains("conflict") && svg.contains("agreement") && !svg.contains("<script"));

    let folder = tempfile::tempdir().expect("a folder");
    picture.save(folder.path().join("map.svg")).expect("a file");
    let saved = std::fs::read_to_string(folder.path().join("map.svg")).expect("a file");
    assert_eq!(saved, svg);
    assert!(picture.save(folder.path().join("no/map.svg")).is_err());
    assert!(made.report(quiet()).picture("p01").is_none());
}

#[test]
fn a_sample_without_direction_is_left_out_and_named() {
    let made = Made::new([4, 4], 1, 3, 0, |_, _| 0.0);
    let mut store = made.store;
    let mut batch = GradientBatch::new(vec![Sample::new("flat", 1).expect("tokens")]);
    batch.insert(
        "p00",
        Gradient::token_sum(Tensor::<2>::zeros([1, 3], &flex())),
    );
    store.push("b", &batch).expect("gradients");
    let made = Made { store };
    let report = made.report(quiet().with_keep_pairs(true));
    assert_eq!(
        report.slices[0].without_direction,
        [vec![], vec!["flat".to_owned()]]
    );
    assert_eq!(report.slices[0].pairs.as_ref().expect("pairs").b.len(), 4);
    assert!(report.slices[0].test.is_some());
    assert!(
        report.warnings[0].contains("left out"),
        "{:?}",
        report.warnings
    );
}

#[test]
fn too_few_samples_are_an_error() {
    let made = Made::new([1, 4], 1, 3, 0, |_, _| 0.0);
    let conflicts = quiet().init().expect("settings");
    let error = conflicts.forward(&made.store, ["a", "b"]);
    assert!(matches!(error, Err(Error::TooFewSamples { task, found: 1, .. }) if task == "a"));
    let error = conflicts.forward(&made.store, ["nobody", "b"]);
    assert!(
        error
            .expect_err("unknown")
            .to_string()
            .contains("tasks there are: a, b")
    );
    let heads = quiet().with_by(SliceBy::Head).init().expect("settings");
    let two = Made::new([2, 2], 1, 3, 0, |_, _| 0.0);
    let error = heads.forward(&two.store, ["a", "b"]);
    assert!(matches!(error, Err(Error::NotCollected { .. })));
    // A task's pairs with itself would count as pairs across, and samples as their own partners.
    let error = conflicts.forward(&two.store, ["a", "a"]);
    assert!(matches!(error, Err(Error::Settings { .. })));
    let nothing = quiet().with_by(SliceBy::Chosen(Vec::new())).init();
    assert!(matches!(nothing, Err(Error::Settings { .. })));
    assert!(quiet().with_alpha(0.0).init().is_err());
    assert!(quiet().with_relabellings(0).init().is_err());
    assert!(quiet().with_min_separation(1.5).init().is_err());
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
