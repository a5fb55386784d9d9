//! The spectrum against dense matrices, its laws, and what is unbiased of it.

use burn::module::ParamGroup;
use burn::tensor::Tensor;
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::curvature::spectrum::{
    Cutoff, SliceBy, SliceSpectrum, SpectrumConfig, SpectrumReport,
};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rstest::rstest;

use super::dense::{Dense, dot, rows};
use crate::made::{Made, Noise, flex, name};
use crate::stored;

fn quiet() -> SpectrumConfig {
    SpectrumConfig::new().with_progress(false)
}

fn spectrum(config: &SpectrumConfig, store: &GradientStore, task: &str) -> SpectrumReport {
    let spectrum = config.init().expect("settings");
    spectrum.forward(store, task).expect("a report")
}

/// Eigenvalues, sums of them and samples of the top, against the matrix of elements by elements.
fn agrees(found: &SliceSpectrum, rows: &[Vec<f64>], ids: &[String], relative: f64) {
    let what = &found.name;
    let (n, p) = (rows.len(), rows[0].len());
    let dense = Dense::fisher(rows);
    let pairs = dense.eigen();
    let mut expected: Vec<f64> = pairs.iter().map(|(v, _)| v.max(0.0)).take(n).collect();
    expected.resize(n, 0.0);
    assert_eq!((found.eigenvalues.len(), found.elements), (n, p), "{what}");
    assert_close(what, &found.eigenvalues, &expected, relative, 1.0);
    let close = |name: &str, found: f64, expected: f64| {
        assert_close(
            &format!("{what} {name}"),
            &[found],
            &[expected],
            relative,
            1.0,
        );
    };
    let trace: f64 = expected.iter().sum();
    let square = dense.inner(&dense);
    close("trace", found.trace.value, trace);
    close("square", found.square, square);
    close(
        "stable",
        found.stable_rank.expect("it"),
        trace / expected[0],
    );
    close(
        "plain",
        found.participation.expect("it"),
        trace * trace / square,
    );
    let c = found.cutoff;
    let dimension: f64 = expected.iter().map(|v| v / (v + c)).sum();
    close("dimension", found.dimension.expect("it").value, dimension);
    // Pairs of different samples, counted out.
    let pairs_of = (0..n).flat_map(|i| (0..n).filter(move |j| *j != i).map(move |j| (i, j)));
    let (mut squares, mut products) = (0.0, 0.0);
    for (i, j) in pairs_of {
        squares += dot(&rows[i], &rows[j]).powi(2);
        products += dot(&rows[i], &rows[i]) * dot(&rows[j], &rows[j]);
    }
    let count = (n * (n - 1)) as f64;
    close(
        "unbiased",
        found.unbiased_square.expect("it").value,
        squares / count,
    );
    let participation = found.unbiased_participation.expect("it").value;
    close("participation", participation, products / squares);
    let (value, vector) = &pairs[0];
    let share = |i: usize| dot(&rows[i], vector).powi(2) / (n as f64 * value);
    let parts = &found.top[0].parts;
    let shares: Vec<f64> = parts.iter().map(|part| part.share).collect();
    let expected: Vec<f64> = parts
        .iter()
        .map(|part| share(ids.iter().position(|id| *id == part.sample.id).expect("it")))
        .collect();
    // A vector is as exact as its eigenvalue stands apart.
    let gap = 1.0 - pairs.get(1).map_or(0.0, |next| next.0) / value;
    assert_close(what, &shares, &expected, 10.0 * relative / gap, 1.0);
    assert!(shares.is_sorted_by(|x, y| x >= y));
    if n <= 10 {
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{what}");
    }
}

#[test]
fn eigenvalues_are_those_of_the_matrix() {
    for (seed, n, elements) in [(1, 9, 5), (2, 4, 7), (3, 40, 4)] {
        let noise = &mut Noise::new(seed);
        let made = Made::new([n, 2], 3, elements);
        let store = made.store(|_, i, slice| {
            let scale = (1 + slice) as f32 * (1.0 + i as f32 / 7.0);
            let row = noise.normals(elements).into_iter().enumerate();
            row.map(|(e, x)| scale * x / (1 + e) as f32).collect()
        });
        let report = spectrum(&quiet(), &store, "a");
        let names: Vec<String> = (0..3).map(name).collect();
        for (found, name) in report.slices.iter().zip(&names) {
            agrees(found, &rows(&store, "a", &[name]), &report.samples, 1e-11);
        }
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let all = rows(&store, "a", &names);
        agrees(
            report.together.as_ref().expect("all"),
            &all,
            &report.samples,
            1e-11,
        );
        let whole = spectrum(&quiet().with_by(SliceBy::Model), &store, "a");
        assert!(whole.together.is_none());
        agrees(&whole.slices[0], &all, &report.samples, 1e-11);
        // What does not fit goes one by one, and comes out the same.
        let small = spectrum(&quiet().with_memory(1), &store, "a");
        for (x, y) in small.slices.iter().zip(&report.slices) {
            assert_close("tiles", &x.eigenvalues, &y.eigenvalues, 1e-12, 1.0);
        }
    }
}

#[rstest]
fn real_gradients_agree(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &device);
        let report = spectrum(&quiet(), &store, TASKS[0]);
        let catalogue = golden.catalogue();
        let small = report.slices.iter().filter(|s| s.elements <= 64);
        let mut seen = 0;
        for found in small {
            let rows = rows(&store, TASKS[0], &[&found.name]);
            if rows.iter().flatten().any(|x| *x != 0.0) {
                agrees(found, &rows, &report.samples, GOLDEN);
                seen += 1;
            }
        }
        assert!(seen > 2, "{case}");
        // All parameters: the products between samples have the same eigenvalues.
        let paths: Vec<&str> = catalogue.parameters().iter().map(|p| p.path()).collect();
        let rows = rows(&store, TASKS[0], &paths);
        let n = rows.len();
        let gram = Dense::new(n, |i, j| dot(&rows[i], &rows[j]) / n as f64);
        let expected: Vec<f64> = gram.eigen().into_iter().map(|(v, _)| v).collect();
        let whole = spectrum(&quiet().with_by(SliceBy::Model), &store, TASKS[0]);
        let [together, whole] = [report.together.as_ref().expect("all"), &whole.slices[0]];
        for found in [together, whole] {
            assert_close(case, &found.eigenvalues, &expected, GOLDEN, 1.0);
        }
        let heads = spectrum(&quiet().with_by(SliceBy::Head), &store, TASKS[0]);
        let sum: f64 = heads.slices.iter().map(|s| s.trace.value).sum();
        let together = heads.together.as_ref().expect("disjoint").trace.value;
        assert!((sum / together - 1.0).abs() < 1e-9);
        assert!(report.to_string().contains("Eigenvalues are exact"));
    }
}

/// Means over many draws, in units of their error: what is said to be unbiased is, and the plain number is not.
#[test]
fn what_is_unbiased_is() {
    let (n, elements) = (12, 6);
    let scales: Vec<f32> = (0..elements).map(|e| 1.0 / (1 + e) as f32).collect();
    let trace: f64 = scales.iter().map(|s| f64::from(s * s)).sum();
    let square: f64 = scales.iter().map(|s| f64::from(*s).powi(4)).sum();
    let largest = 1.0;
    let mut found: [Vec<f64>; 6] = Default::default();
    for seed in 0..1500 {
        let noise = &mut Noise::new(seed);
        // Lengths of 1 to 3, of gradients whose squares grow with them; and clusters of two with a part in common.
        let mut made = Made::new([n, 1], 1, elements);
        made.cluster = 2;
        let mut shared = Vec::new();
        let store = made.store(|_, i, _| {
            if i % 2 == 0 {
                shared = noise.normals(elements);
            }
            let own = noise.normals(elements);
            let root = ((1 + i as u64 % 3) as f32).sqrt();
            let both = shared.iter().zip(&own).zip(&scales);
            both.map(|((x, y), s)| root * s * (0.8 * x + 0.6 * y))
                .collect()
        });
        let report = spectrum(&quiet(), &store, "a");
        assert_eq!(report.independent, n / 2);
        let slice = &report.slices[0];
        let held = slice.top[0].held_out.expect("halves");
        for (into, x) in found.iter_mut().zip([
            slice.trace.value / trace,
            slice.unbiased_square.expect("pairs").value / square,
            slice.square / square,
            slice.largest() / largest,
            held / largest,
            slice.unbiased_participation.expect("pairs").value / (trace * trace / square),
        ]) {
            into.push(x);
        }
    }
    let off = found.each_ref().map(|of| {
        let n = of.len() as f64;
        let mean = of.iter().sum::<f64>() / n;
        let variance = of.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, (mean - 1.0) / (variance / n).sqrt())
    });
    let [trace, unbiased, plain, largest, held, participation] = off;
    assert!(trace.1.abs() < 4.0 && unbiased.1.abs() < 4.0, "{off:?}");
    assert!(plain.1 > 7.0 && plain.0 > 1.2, "{off:?}");
    assert!(largest.1 > 4.0 && held.1 < -5.0, "{off:?}");
    assert!((participation.0 - 1.0).abs() < 0.35, "{off:?}");
}

/// Multiplying a loss multiplies F and nothing else; turning coordinates changes nothing.
#[test]
fn scale_and_rotation_are_laws() {
    let made = Made::new([10, 1], 2, 6);
    let run = |factor: f32, angle: f32| {
        let noise = &mut Noise::new(5);
        let store = made.store(|_, _, _| {
            let mut row = noise.normals(6);
            for e in (0..6).step_by(2) {
                let (x, y) = (row[e], row[e + 1]);
                row[e] = factor * (angle.cos() * x - angle.sin() * y);
                row[e + 1] = factor * (angle.sin() * x + angle.cos() * y);
            }
            row
        });
        spectrum(&quiet(), &store, "a")
    };
    let plain = run(1.0, 0.0);
    for (factor, angle) in [(8.0, 0.0), (1e-12, 0.0), (1e12, 0.0), (1.0, 0.7)] {
        let other = run(factor, angle);
        let scale = f64::from(factor).powi(2);
        for (x, y) in plain.slices.iter().zip(&other.slices).chain([(
            plain.together.as_ref().expect("both"),
            other.together.as_ref().expect("both"),
        )]) {
            let expected: Vec<f64> = x.eigenvalues.iter().map(|v| scale * v).collect();
            assert_close("scaled", &y.eigenvalues, &expected, 1e-5, 1.0);
            assert_eq!((x.rank, x.holding), (y.rank, y.holding));
            let numbers = |s: &SliceSpectrum| {
                let dimension = s.dimension.expect("it");
                let participation = s.unbiased_participation.expect("it");
                vec![
                    s.stable_rank.expect("it"),
                    s.participation.expect("it"),
                    participation.value,
                    participation.standard_error.expect("it"),
                    participation.interval.expect("it")[1],
                    dimension.value,
                    dimension.standard_error.expect("it"),
                ]
            };
            for (x, y) in numbers(x).iter().zip(numbers(y)) {
                assert!((x / y - 1.0).abs() < 1e-4, "{factor} {angle}: {x} {y}");
            }
        }
    }
}

/// A sample that is there twice is one, in every error and every pair.
#[test]
fn copies_count_once() {
    let gradient = |i: usize| Noise::new(i as u64).normals(5);
    let mut once = Made::new([7, 1], 1, 5);
    once.tokens = |_, _| 2;
    let once = once.store(|_, i, _| gradient(i));
    let mut twice = Made::new([14, 1], 1, 5);
    twice.tokens = |_, _| 2;
    let twice = twice.store(|_, i, _| gradient(i / 2));
    let [once, twice] = [once, twice].map(|store| spectrum(&quiet(), &store, "a"));
    assert_eq!((once.independent, twice.independent), (7, 7));
    assert_eq!(twice.copies.len(), 7);
    assert!(twice.warnings.iter().any(|w| w.contains("copies")));
    let [x, y] = [&once.slices[0], &twice.slices[0]];
    assert_eq!(x.rank, y.rank);
    assert_eq!(y.eigenvalues[y.rank..], vec![0.0; 14 - y.rank]);
    assert_close(
        "eigenvalues",
        &y.eigenvalues[..5],
        &x.eigenvalues[..5],
        1e-9,
        1.0,
    );
    for (x, y) in [
        (x.unbiased_square, y.unbiased_square),
        (x.unbiased_participation, y.unbiased_participation),
        (Some(x.trace), Some(y.trace)),
        (x.dimension, y.dimension),
    ] {
        let [x, y] = [x, y].map(|e| e.expect("it"));
        let [e, f] = [x, y].map(|e| e.standard_error.expect("it"));
        assert!((x.value / y.value - 1.0).abs() < 1e-9, "{x:?} {y:?}");
        assert!((e / f - 1.0).abs() < 1e-9, "{x:?} {y:?}");
    }
}

#[test]
fn little_is_said_of_little() {
    let one = Made::new([1, 1], 2, 4).store(|_, _, slice| vec![slice as f32; 4]);
    let report = spectrum(&quiet(), &one, "a");
    // The first parameter's gradients are 0, the second's one sample.
    let [zero, one] = [&report.slices[0], &report.slices[1]];
    assert_eq!(
        (zero.rank, zero.eigenvalues[0], zero.trace.value),
        (0, 0.0, 0.0)
    );
    assert!(zero.participation.is_none() && zero.dimension.is_none() && zero.holding.is_none());
    assert!(zero.top.is_empty());
    assert_eq!((one.rank, one.eigenvalues[0]), (1, 4.0));
    assert!(one.trace.standard_error.is_none() && one.trace.interval.is_none());
    assert!(one.unbiased_square.is_none() && one.unbiased_participation.is_none());
    assert!(one.top[0].held_out.is_none());
    assert_eq!(one.participation, Some(1.0));
    let said = |word: &str| report.warnings.iter().any(|w| w.contains(word));
    assert!(said("one independent sample") && said("all gradients are 0"));
    let json = serde_json::to_string(&report).expect("JSON");
    let back: SpectrumReport = serde_json::from_str(&json).expect("a report");
    assert_eq!(back.slices, report.slices);
    assert!(!report.to_string().contains("NaN"));

    // All gradients are of different directions: pairs say nothing of Φ².
    let store = Made::new([4, 1], 1, 4)
        .store(|_, i, _| (0..4).map(|e| if e == i { 1.0 } else { 0.0 }).collect());
    let report = spectrum(&quiet(), &store, "a");
    assert_eq!(report.slices[0].unbiased_square.expect("pairs").value, 0.0);
    assert!(report.slices[0].unbiased_participation.is_none());

    // Two samples, and one that makes all of the trace.
    for n in [2, 3, 40] {
        let noise = &mut Noise::new(n as u64);
        let store = Made::new([n, 1], 1, 4).store(|_, i, _| {
            let size = if i == 0 { 1e6 } else { 1.0 };
            noise.normals(4).into_iter().map(|x| size * x).collect()
        });
        let report = spectrum(&quiet(), &store, "a");
        assert!(report.slices[0].trace.interval.is_none());
        assert!(serde_json::to_string(&report).is_ok());
    }
}

#[test]
fn few_samples_are_told() {
    let noise = &mut Noise::new(3);
    let store = Made::new([24, 1], 1, 400).store(|_, _, _| noise.normals(400));
    let report = spectrum(&quiet(), &store, "a");
    let slice = &report.slices[0];
    assert!(slice.participation.expect("it") < 24.0);
    let unbiased = slice.unbiased_participation.expect("it");
    let [low, high] = unbiased.interval.expect("it");
    assert!(low < 400.0 && 400.0 < high && low > 100.0, "{unbiased:?}");
    assert!(report.warnings.iter().any(|w| w.contains("spread out")));
    let noise = &mut Noise::new(3);
    let store = Made::new([400, 1], 1, 4).store(|_, _, _| noise.normals(4));
    let report = spectrum(&quiet(), &store, "a");
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
}

#[test]
fn what_cannot_be_is_refused() {
    let store = Made::new([3, 2], 2, 3).store(|_, i, e| vec![(i + e) as f32; 3]);
    let error = quiet().init().expect("settings").forward(&store, "c");
    assert!(error.expect_err("no task").to_string().contains("`c`"));
    for cutoff in [Cutoff::Absolute(0.0), Cutoff::Relative(f64::NAN)] {
        assert!(quiet().with_cutoff(cutoff).init().is_err());
    }
    assert!(quiet().with_level(1.0).init().is_err());
    assert!(quiet().with_by(SliceBy::Chosen(vec![])).init().is_err());
    let set = |name: &str, path: String| (name.to_owned(), ParamGroup::from_paths(vec![path]));
    let twice = SliceBy::Chosen(vec![set("one", name(0)), set("same", name(0))]);
    let report = spectrum(&quiet().with_by(twice), &store, "a");
    assert!(report.together.is_none());
    // A gradient that is no number does not get into a store, and is named.
    let catalogue = store.catalogue().clone();
    let config = GradientStoreConfig::new(1 << 20);
    let mut store = config.init_for(&catalogue, "m".into()).expect("a store");
    let mut batch = GradientBatch::new(vec![Sample::new("s", 1).expect("a token")]);
    for (slice, x) in [(0, 1.0), (1, f32::NAN)] {
        let tensor = Tensor::<2>::from_floats([[x, 1.0, 1.0]], &flex());
        batch.insert(name(slice), Gradient::token_sum(tensor));
    }
    let error = store.push("a", &batch).expect_err("NaN").to_string();
    assert!(error.contains(&name(1)) && error.contains('s'), "{error}");
}
