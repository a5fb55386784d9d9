//! Kronecker approximations against the whole Fisher of single parameters, in float64.

use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::factors::{Factors, FactorsConfig, Positions};
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_metrics::Error;
use fisher_metrics::curvature::kronecker::{Corrections, Kronecker};
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{PRODUCTS, assert_close};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

const ROWS: usize = 4;
const COLUMNS: usize = 3;
const ELEMENTS: usize = ROWS * COLUMNS;
/// A product, a lookup, both, gradients that are written out, a vector.
const PATHS: [&str; 5] = ["product", "lookup", "tied", "whole", "vector"];

fn catalogue() -> Catalogue {
    let of = |(path, role): (&str, Role)| {
        let shape = match role {
            Role::Vector => vec![ROWS],
            _ => vec![ROWS, COLUMNS],
        };
        Parameter::new(path, shape, role, Orientation::InputOutput)
    };
    let roles = [
        Role::Matrix,
        Role::Embedding,
        Role::Embedding,
        Role::Matrix,
        Role::Vector,
    ];
    Catalogue::new(PATHS.into_iter().zip(roles).map(of).collect()).expect("parameters")
}

fn draw<const D: usize>(shape: [usize; D], random: &mut StdRng, device: &Device) -> Tensor<D> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|_| random.random_range(-1.0..1.0)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn batch(samples: std::ops::Range<usize>, positions: usize, device: &Device) -> GradientBatch {
    let random = &mut StdRng::seed_from_u64(samples.start as u64);
    let count = samples.len();
    let side = |side: usize, random: &mut StdRng| {
        // Directions of unequal size, so that eigenvalues differ.
        let sizes: Vec<f32> = (0..side).map(|k| 1.0 / (1 + k) as f32).collect();
        let sizes = Tensor::<1>::from_floats(sizes.as_slice(), device).reshape([1, 1, side]);
        draw([count, positions, side], random, device) * sizes
    };
    let ids = (0..count * positions).map(|at| (at * at % ROWS) as i64);
    let ids = TensorData::new(ids.collect::<Vec<i64>>(), [count, positions]);
    let lookup = SampleGradient::Rows {
        ids: Tensor::<2, Int>::from_data(ids, device),
        delta: side(COLUMNS, random),
        table: ROWS,
    };
    let product = SampleGradient::Outer {
        left: side(ROWS, random),
        right: side(COLUMNS, random),
    };
    let tied = SampleGradient::sum([product.clone(), lookup.clone()]).expect("two uses");
    let written = SampleGradient::full(product.to_full().exp());
    let vector = SampleGradient::full(draw([count, ROWS], random, device));
    let sample = |i: usize| Sample::new(format!("{i}"), 1 + i as u64 % 3).expect("tokens");
    let mut batch = GradientBatch::new(samples.map(sample).collect());
    let gradients = [product, lookup, tied, written, vector];
    for (path, gradient) in PATHS.into_iter().zip(gradients) {
        batch.insert(path, gradient);
    }
    batch
}

/// The whole Fisher of the parameter at `path`, in float64.
fn dense(batches: &[GradientBatch], path: &str) -> Vec<f64> {
    let samples: usize = batches.iter().map(|batch| batch.samples().len()).sum();
    let mut fisher = Vec::new();
    for batch in batches {
        let (_, gradient) = batch.iter().find(|(of, _)| *of == path).expect("there");
        let values = fisher_core::read(gradient.to_full()).expect("values");
        let elements = values.len() / batch.samples().len();
        fisher.resize(elements * elements, 0.0);
        for (g, sample) in values.chunks(elements).zip(batch.samples()) {
            let weight = 1.0 / (samples as f64 * sample.tokens() as f64);
            for (i, j) in (0..elements * elements).map(|at| (at / elements, at % elements)) {
                fisher[i * elements + j] += weight * g[i] * g[j];
            }
        }
    }
    fisher
}

/// A Kronecker approximation as a matrix: what it makes of every coordinate.
fn as_matrix(of: &Kronecker, path: &str, f: impl Fn(f64) -> f64 + Copy) -> Vec<f64> {
    let elements = of.block(path).expect("a block").eigenvalues().len();
    let mut matrix = Vec::new();
    for k in 0..elements {
        let one: Vec<f64> = (0..elements).map(|i| f64::from(u8::from(i == k))).collect();
        // Symmetric: a column is a row.
        matrix.extend(of.apply(path, &one, f).expect("of its size"));
    }
    matrix
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).powi(2))
        .sum::<f64>()
        .sqrt()
}

fn trace(matrix: &[f64]) -> f64 {
    matrix.iter().step_by(matrix.len().isqrt() + 1).sum()
}

fn batches(device: &Device) -> [GradientBatch; 2] {
    [batch(0..5, 3, device), batch(5..12, 2, device)]
}

fn fitted(device: &Device, positions: Positions) -> (Kronecker, Kronecker, Corrections) {
    let config = FactorsConfig::new().with_positions(positions);
    let mut factors: Factors = config.init_for(&catalogue(), "m".into()).expect("factors");
    for batch in batches(device) {
        factors.push_batch("t", batch).expect("a batch");
    }
    let kfac = Kronecker::of(&factors, "t").expect("samples");
    let mut corrections = kfac.corrections(device).expect("statistics");
    for batch in batches(device) {
        corrections.push_batch("t", batch).expect("a batch");
    }
    let ekfac = kfac
        .clone()
        .corrected(&corrections)
        .expect("the same samples");
    (kfac, ekfac, corrections)
}

#[rstest]
fn corrected_eigenvalues_are_the_diagonal_in_the_basis_and_nearer_the_fisher(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Positions::Expand, Positions::Reduce)] positions: Positions,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let (kfac, ekfac, _) = fitted(&device, positions);
    let made = batches(&device);
    for path in PATHS {
        let fisher = dense(&made, path);
        let [of_kfac, of_ekfac] = [&kfac, &ekfac].map(|of| as_matrix(of, path, |s| s));
        let [far, near] = [&of_kfac, &of_ekfac].map(|of| distance(of, &fisher));
        assert!(
            near <= far + 1e-6 * trace(&fisher),
            "{path}: {near} against {far}"
        );
        let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-5 * expected;
        assert!(close(trace(&of_ekfac), trace(&fisher)), "{path}: the trace");
        // In its eigenbasis it has the Fisher's diagonal: so products with it are those with the Fisher.
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let with_itself = product(&of_ekfac, &of_ekfac);
        assert!(
            close(product(&fisher, &of_ekfac), with_itself),
            "{path}: not a projection"
        );
        assert!(kfac.block(path).is_ok_and(|block| !block.is_corrected()));
        assert!(ekfac.block(path).is_ok_and(|block| block.is_corrected()));
    }
    // Of a vector the factor is the Fisher, whole.
    for of in [&kfac, &ekfac] {
        let found = as_matrix(of, "vector", |s| s);
        assert_close("vector", &found, &dense(&made, "vector"), PRODUCTS, 1.0);
    }
    let all: f64 = PATHS.iter().map(|path| trace(&dense(&made, path))).sum();
    assert!((ekfac.trace() - all).abs() < 1e-5 * all);
}

/// One position a sample, inputs that do not depend on output gradients: KFAC is exact in expectation, so it comes nearer
/// with more samples, and the correction with it.
#[test]
fn independent_factors_are_found() {
    let device = Backend::Flex.device().expect("a CPU");
    let matrix = Parameter::new("w", [ROWS, COLUMNS], Role::Matrix, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![matrix]).expect("one");
    let apart = |samples: usize| {
        let mut factors = FactorsConfig::new()
            .init_for(&catalogue, "m".into())
            .expect("factors");
        let random = &mut StdRng::seed_from_u64(7);
        let gradient = SampleGradient::Outer {
            left: draw([samples, 1, ROWS], random, &device),
            right: draw([samples, 1, COLUMNS], random, &device),
        };
        let of = |i: usize| Sample::new(format!("{i}"), 1).expect("a token");
        let mut batch = GradientBatch::new((0..samples).map(of).collect());
        batch.insert("w", gradient);
        factors.push_batch("t", batch).expect("a batch");
        let kfac = Kronecker::of(&factors, "t").expect("samples");
        // Uniform on (−1, 1): variance 1/3 each.
        let exact: Vec<f64> = (0..ELEMENTS * ELEMENTS)
            .map(|at| {
                if at % (ELEMENTS + 1) == 0 {
                    1.0 / 9.0
                } else {
                    0.0
                }
            })
            .collect();
        distance(&as_matrix(&kfac, "w", |s| s), &exact)
    };
    let [few, many] = [50, 20_000].map(apart);
    assert!(many < few / 5.0 && many < 0.01, "{few} and {many}");
}

#[rstest]
#[case(|s: f64| 1.0 / (s + 1e-2), |s: f64| s + 1e-2)]
#[case(|s: f64| (s + 1e-3).sqrt(), |s: f64| 1.0 / (s + 1e-3).sqrt())]
fn functions_of_eigenvalues_undo_each_other(#[case] f: fn(f64) -> f64, #[case] g: fn(f64) -> f64) {
    let device = Backend::Flex.device().expect("a CPU");
    let (_, ekfac, _) = fitted(&device, Positions::Expand);
    for path in PATHS {
        let elements = ekfac.block(path).expect("it").eigenvalues().len();
        let v: Vec<f64> = (0..elements).map(|i| (i as f64 + 0.3).cos()).collect();
        let there = ekfac.apply(path, &v, f).expect("of its size");
        let back = ekfac.apply(path, &there, g).expect("of its size");
        assert_close(path, &back, &v, 1e-12, 1.0);
    }
}

#[test]
fn corrections_of_shards_merge_and_those_of_other_bases_do_not() {
    let device = Backend::Flex.device().expect("a CPU");
    let (kfac, ekfac, whole) = fitted(&device, Positions::Expand);
    let [first, second] = batches(&device).map(|batch| {
        let mut corrections = kfac.corrections(&device).expect("statistics");
        corrections.push_batch("t", batch).expect("a batch");
        corrections
    });
    let mut merged = second;
    merged.merge(first).expect("other samples");
    let again = kfac.clone().corrected(&merged).expect("the same samples");
    for path in PATHS {
        let [ours, theirs] = [&again, &ekfac].map(|of| of.block(path).expect("it").eigenvalues());
        assert_close(path, ours, theirs, 1e-6, 1.0);
        let task = whole.statistics().task("t").expect("the task");
        let errors = task
            .parameter(path)
            .expect("it")
            .elementwise()
            .expect("elements");
        assert!(errors.read().expect("moments").standard_error.is_some());
    }
    let (other, ..) = fitted(&device, Positions::Reduce);
    let of_other = other.corrections(&device).expect("statistics");
    let error = merged.merge(of_other).expect_err("other bases");
    assert!(error.to_string().contains("bases"), "{error}");
    let error = other.corrected(&whole).expect_err("other bases");
    assert!(error.to_string().contains("bases"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let device = Backend::Flex.device().expect("a CPU");
    let (kfac, ..) = fitted(&device, Positions::Expand);
    let empty = FactorsConfig::new()
        .init_for(&catalogue(), "m".into())
        .expect("factors");
    assert!(Kronecker::of(&empty, "t").is_err());
    let mut corrections = kfac.corrections(&device).expect("statistics");
    let error = kfac
        .clone()
        .corrected(&corrections)
        .expect_err("no samples");
    assert!(
        matches!(&error, Error::NoSamples { task } if task == "t"),
        "{error}"
    );
    let error = corrections
        .push_batch("u", batch(0..2, 1, &device))
        .expect_err("another task");
    assert!(error.to_string().contains('u'), "{error}");
    let error = kfac
        .apply("none", &[], |s| s)
        .expect_err("no such parameter");
    assert!(error.to_string().contains("none"), "{error}");
    let error = kfac
        .apply("product", &[1.0], |s| s)
        .expect_err("another size");
    assert!(error.to_string().contains("product"), "{error}");
    let mut wrong = batch(0..2, 1, &device);
    wrong.retain(|path| path != "whole");
    wrong.insert(
        "whole",
        SampleGradient::full(Tensor::zeros([2, 5], &device)),
    );
    let error = corrections
        .push_batch("t", wrong)
        .expect_err("another shape");
    assert!(error.to_string().contains("whole"), "{error}");
}
