//! Products with the full Fisher, and what follows from products alone.

use std::collections::BTreeMap;

use burn::module::ParamGroup;
use fisher_core::store::GradientStoreConfig;
use fisher_metrics::curvature::density::spectral_density;
use fisher_metrics::curvature::lanczos::{LanczosConfig, eigenpairs};
use fisher_metrics::curvature::product::FisherProduct;
use fisher_metrics::curvature::spectrum::{SliceBy, SpectrumConfig};
use fisher_metrics::curvature::trace::hutch_plus_plus;
use fisher_metrics::curvature::{Map, Operator};
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};

use super::dense::{Dense, dot, rows};
use crate::made::{Made, Noise, flex, name};
use crate::stored;

fn diagonal(values: Vec<f64>) -> impl Operator {
    Map::new(values.len(), move |v| {
        Ok(v.iter().zip(&values).map(|(x, d)| x * d).collect())
    })
}

fn vector(seed: u64, n: usize) -> Vec<f64> {
    let noise = Noise::new(seed).normals(n);
    noise.into_iter().map(f64::from).collect()
}

#[test]
fn products_are_those_of_the_matrix() {
    for memory in [1, 1 << 26] {
        let noise = &mut Noise::new(2);
        let store = Made::new([11, 3], 3, 7).store(|_, i, slice| {
            let size = (1 + slice) as f32 + i as f32;
            noise.normals(7).into_iter().map(|x| size * x).collect()
        });
        let product = FisherProduct::new(&store, "a", None, memory).expect("an operator");
        let names: Vec<String> = (0..3).map(name).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let dense = Dense::fisher(&rows(&store, "a", &names));
        let vectors = vec![vector(1, 21), vector(2, 21)];
        let found = product.apply(&vectors).expect("finite");
        for (found, vector) in found.iter().zip(&vectors) {
            assert_close("Fv", found, &dense.times(vector), 1e-12, 1.0);
        }
        assert_eq!(product.apply(&[]).expect("nothing"), Vec::<Vec<f64>>::new());
        // By parameter, and of some parameters.
        let parts = product.split(&vectors[0]).expect("it fits");
        assert_eq!(product.join(&parts).expect("it fits"), vectors[0]);
        let group = ParamGroup::from_paths(vec![names[1]]);
        let some = FisherProduct::new(&store, "a", Some(&group), memory).expect("an operator");
        assert_eq!(some.dimension(), 7);
        let dense = Dense::fisher(&rows(&store, "a", &names[1..2]));
        let part = vector(3, 7);
        let found = some.apply(std::slice::from_ref(&part)).expect("finite");
        assert_close("part", &found[0], &dense.times(&part), 1e-12, 1.0);

        // What does not fit or is no number is named.
        let mut wrong = parts.clone();
        wrong.insert("other".into(), vec![1.0]);
        assert!(
            product
                .join(&wrong)
                .expect_err("unknown")
                .to_string()
                .contains("other")
        );
        let mut wrong = parts.clone();
        wrong.remove(names[2]);
        assert!(
            product
                .join(&wrong)
                .expect_err("missing")
                .to_string()
                .contains(names[2])
        );
        let wrong = BTreeMap::from_iter(names.iter().map(|n| ((*n).to_owned(), vec![1.0])));
        assert!(
            product
                .join(&wrong)
                .expect_err("short")
                .to_string()
                .contains(names[0])
        );
        assert!(product.apply(&[vec![0.0; 20]]).is_err() && product.split(&[0.0]).is_err());
        let mut wrong = vectors[0].clone();
        wrong[5] = f64::NAN;
        let error = product.apply(&[wrong]).expect_err("NaN").to_string();
        assert!(error.contains("element 5"), "{error}");
        assert!(FisherProduct::new(&store, "c", None, memory).is_err());
    }
}

/// Of a model's gradients: Lanczos, Hutch++ and the quadrature agree with the exact spectrum.
#[test]
fn products_have_the_spectrum() {
    for case in CASES {
        let golden = Golden::load(case);
        let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
        let config = SpectrumConfig::new()
            .with_by(SliceBy::Model)
            .with_progress(false);
        let report = config.init().expect("settings").forward(&store, TASKS[0]);
        let exact = &report.expect("a report").slices[0];
        let product = FisherProduct::new(&store, TASKS[0], None, 1 << 26).expect("it");
        let found = eigenpairs(&product, 3, &LanczosConfig::default()).expect("pairs");
        assert!(found.converged, "{:?}", found.residuals);
        assert_close(case, &found.values, &exact.eigenvalues[..3], GOLDEN, 1.0);
        for (k, x) in found.vectors.iter().enumerate() {
            for (l, y) in found.vectors.iter().enumerate() {
                let expected = f64::from(u8::from(k == l));
                assert!((dot(x, y) - expected).abs() < 1e-9);
            }
        }
        // The rank is no more than the samples: all of it is found.
        let n = exact.eigenvalues.len();
        let trace = hutch_plus_plus(&product, 3 * (n + 2), 7).expect("a trace");
        assert!(
            (trace.value / exact.trace.value - 1.0).abs() < 1e-9,
            "{trace:?}"
        );
        assert!(trace.standard_error < 1e-9 * trace.value && trace.exact == exact.rank);
        let density = spectral_density(&product, 40, n + 1, 3).expect("a density");
        let c = exact.cutoff;
        let dimension = density.sum(|v| v / (v + c));
        let (value, error) = (exact.dimension.expect("it").value, dimension.standard_error);
        let off = (dimension.value - value).abs();
        assert!(off < 4.0 * error.expect("many"), "{dimension:?} {value}");
    }
}

#[test]
fn eigenpairs_have_residuals() {
    let values: Vec<f64> = (0..60).map(|k| 0.8f64.powi(k) * 7.0).collect();
    let operator = diagonal(values.clone());
    let config = LanczosConfig::default();
    let found = eigenpairs(&operator, 5, &config).expect("pairs");
    assert!(found.converged && found.steps < 60, "{}", found.steps);
    assert_close("values", &found.values, &values[..5], 1e-10, 0.0);
    for (k, vector) in found.vectors.iter().enumerate() {
        assert!((vector[k].abs() - 1.0).abs() < 1e-8);
    }
    let again = eigenpairs(&operator, 5, &config).expect("pairs");
    assert_eq!(found.vectors, again.vectors);
    // Too few steps are said to be too few, and the residual is a bound.
    let short = LanczosConfig { steps: 6, ..config };
    let short = eigenpairs(&operator, 5, &short).expect("pairs");
    assert!(!short.converged && short.steps == 6);
    for (value, residual) in short.values.iter().zip(&short.residuals) {
        let near = values
            .iter()
            .map(|v| (v - value).abs())
            .fold(f64::MAX, f64::min);
        assert!(near <= residual + 1e-12, "{near} {residual}");
    }
    // Equal eigenvalues, zeros, and fewer than were asked for.
    let mut many = vec![2.0; 4];
    many.extend([0.0; 5]);
    let found = eigenpairs(&diagonal(many.clone()), 20, &config).expect("pairs");
    assert_eq!(found.values.len(), 9);
    for (x, y) in found.values.iter().zip(&many) {
        assert!((x - y).abs() < 1e-12, "{:?}", found.values);
    }
    let none = eigenpairs(&diagonal(vec![0.0; 3]), 2, &config).expect("pairs");
    assert_eq!(none.values, [0.0, 0.0]);
    assert!(none.converged);
    assert!(eigenpairs(&operator, 0, &config).is_err());
    assert!(eigenpairs(&operator, 201, &config).is_err());
    let broken = Map::new(3, |_| Ok(vec![f64::NAN; 3]));
    assert!(eigenpairs(&broken, 1, &config).is_err());
    // Signs too: the largest, not the largest in size.
    let signed = eigenpairs(&diagonal(vec![-9.0, 3.0, 1.0]), 1, &config).expect("pairs");
    assert!((signed.values[0] - 3.0).abs() < 1e-12);
}

/// Over seeds: unbiased, with the error it tells, and better than random signs alone.
#[test]
fn traces_hold_their_error() {
    let values: Vec<f64> = (0..200)
        .map(|k| 1.0 / (1.0 + f64::from(k)).powi(2))
        .collect();
    let trace: f64 = values.iter().sum();
    // Turned by a reflection, since signs are exact for a diagonal.
    let turned = |v: &[f64]| {
        let n = v.len() as f64;
        let mean = 2.0 * v.iter().sum::<f64>() / n;
        v.iter().map(|x| x - mean).collect::<Vec<_>>()
    };
    let mix = |v: &[f64]| {
        let mut v = turned(v);
        let u = vector(9, v.len());
        let along = 2.0 * dot(&u, &v) / dot(&u, &u);
        v.iter_mut().zip(&u).for_each(|(x, u)| *x -= along * u);
        v
    };
    let back = |v: &[f64]| {
        let u = vector(9, v.len());
        let along = 2.0 * dot(&u, v) / dot(&u, &u);
        let v: Vec<f64> = v.iter().zip(&u).map(|(x, u)| x - along * u).collect();
        turned(&v)
    };
    let operator = Map::new(200, |v: &[f64]| {
        let v: Vec<f64> = mix(v).iter().zip(&values).map(|(x, d)| x * d).collect();
        Ok(back(&v))
    });
    let runs: Vec<_> = (0..60)
        .map(|seed| hutch_plus_plus(&operator, 60, seed).expect("a trace"))
        .collect();
    let n = runs.len() as f64;
    let mean = runs.iter().map(|r| r.value).sum::<f64>() / n;
    let spread = runs.iter().map(|r| (r.value - trace).powi(2)).sum::<f64>() / n;
    let told = runs.iter().map(|r| r.standard_error.powi(2)).sum::<f64>() / n;
    assert!((mean - trace).abs() < 4.0 * (spread / n).sqrt());
    assert!((0.5..2.0).contains(&(told / spread)), "{told} {spread}");
    assert!(hutch_plus_plus(&operator, 5, 0).is_err());

    let sums: Vec<_> = (0..30)
        .map(|seed| {
            let density = spectral_density(&operator, 8, 30, seed).expect("a density");
            density.sum(|v| v / (v + 1e-3))
        })
        .collect();
    let exact: f64 = values.iter().map(|v| v / (v + 1e-3)).sum();
    let held = sums
        .iter()
        .filter(|s| (s.value - exact).abs() < 3.0 * s.standard_error.expect("many"))
        .count();
    assert!(held >= 26, "{held}");
    let density = spectral_density(&operator, 4, 30, 1).expect("a density");
    assert!((density.sum(|_| 1.0).value - 200.0).abs() < 1e-9);
    let points: Vec<f64> = (-300..1500).map(|k| f64::from(k) * 1e-3).collect();
    let area: f64 = density.smoothed(&points, 0.02).iter().sum::<f64>() * 1e-3;
    assert!((area - 1.0).abs() < 1e-3, "{area}");
    assert!(spectral_density(&operator, 0, 3, 0).is_err());
    let one = spectral_density(&diagonal(vec![2.0; 5]), 1, 9, 0).expect("a density");
    assert!(one.sum(|v| v).standard_error.is_none() && one.probes[0].len() == 1);
}
