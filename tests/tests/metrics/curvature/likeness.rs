//! Overlap and principal angles of two Fishers, against dense matrices and what must be.

use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::curvature::likeness::{LikenessConfig, LikenessReport, SliceBy};
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};

use super::dense::{Dense, dot, rows};
use crate::made::{Made, Noise, flex, name};
use crate::stored;

fn quiet() -> LikenessConfig {
    LikenessConfig::new().with_progress(false)
}

fn likeness(config: &LikenessConfig, store: &GradientStore, tasks: [&str; 2]) -> LikenessReport {
    let likeness = config.init().expect("settings");
    likeness.forward(store, tasks).expect("a report")
}

/// Singular values of `W_Aᵀ W_B`, by the eigenvalues of its square.
fn cosines(a: &Dense, b: &Dense, count: usize) -> Vec<f64> {
    let [a, b] = [a, b].map(|m| m.eigen());
    let product = |k: usize, l: usize| dot(&a[k].1, &b[l].1);
    let square = Dense::new(count, |k, l| {
        (0..count).map(|m| product(k, m) * product(l, m)).sum()
    });
    let values = square.eigen().into_iter();
    values.map(|(v, _)| v.max(0.0).sqrt()).collect()
}

#[test]
fn numbers_are_those_of_the_matrices() {
    let noise = &mut Noise::new(1);
    let made = Made::new([9, 12], 2, 6);
    let store = made.store(|task, i, slice| {
        let row = noise.normals(6).into_iter().enumerate();
        row.map(|(e, x)| x / (1 + (e + task + slice) % 6) as f32 * (1 + i % 3) as f32)
            .collect()
    });
    let report = likeness(&quiet().with_top(3), &store, ["a", "b"]);
    let names = [name(0), name(1)];
    let both: Vec<&str> = names.iter().map(|name| &**name).collect();
    let all = report.slices.iter().chain(&report.together);
    for (found, paths) in all.zip([&both[..1], &both[1..], &both[..]]) {
        let [x, y] = ["a", "b"].map(|task| rows(&store, task, paths));
        let [a, b] = [&x, &y].map(|rows| Dense::fisher(rows));
        let unbiased = [&x, &y].map(|rows| {
            let n = rows.len();
            let pairs = (0..n).flat_map(|i| (0..n).filter(move |j| *j != i).map(move |j| (i, j)));
            let squares: f64 = pairs.map(|(i, j)| dot(&rows[i], &rows[j]).powi(2)).sum();
            squares / (n * (n - 1)) as f64
        });
        let product = a.inner(&b);
        let expected = [
            product,
            a.inner(&a),
            b.inner(&b),
            product / (a.inner(&a) * b.inner(&b)).sqrt(),
            unbiased[0],
            unbiased[1],
            product / (unbiased[0] * unbiased[1]).sqrt(),
        ];
        let numbers = [
            found.product,
            found.squares[0],
            found.squares[1],
            found.plain.expect("it"),
            found.unbiased_squares[0].expect("it"),
            found.unbiased_squares[1].expect("it"),
            found.unbiased.expect("it"),
        ];
        for (x, y) in numbers.iter().zip(expected) {
            assert!((x / y - 1.0).abs() < 1e-11, "{numbers:?} {expected:?}");
        }
        let angles = found.angles.as_ref().expect("angles");
        let expected = cosines(&a, &b, 3);
        assert_close("cosines", &angles.cosines, &expected, 1e-8, 1.0);
        assert!((angles.chance - 3.0 / found.elements as f64).abs() < 1e-15);
        // The error is what leaving samples out says.
        let ratio = |x: &[Vec<f64>], y: &[Vec<f64>]| {
            let square = |rows: &[Vec<f64>]| {
                let n = rows.len() as f64;
                let f = Dense::fisher(rows);
                let own: f64 = rows.iter().map(|r| dot(r, r).powi(2)).sum();
                (f.inner(&f) * n * n - own) / (n * (n - 1.0))
            };
            Dense::fisher(x).inner(&Dense::fisher(y)) / (square(x) * square(y)).sqrt()
        };
        let value = ratio(&x, &y);
        let (mut corrected, mut variance) = (value, 0.0);
        for task in 0..2 {
            let n = [x.len(), y.len()][task];
            let moved: Vec<f64> = (0..n)
                .map(|out| {
                    let mut sides = [x.clone(), y.clone()];
                    sides[task].remove(out);
                    (1.0 - 1.0 / n as f64) * (value - ratio(&sides[0], &sides[1]))
                })
                .collect();
            let mean = moved.iter().sum::<f64>() / n as f64;
            corrected += n as f64 * mean;
            let squares: f64 = moved.iter().map(|u| (u - mean).powi(2)).sum();
            variance += n as f64 / (n as f64 - 1.0) * squares;
        }
        let overlap = found.overlap.expect("an error");
        assert!((overlap.value - corrected).abs() < 1e-9);
        assert!((overlap.standard_error / variance.sqrt() - 1.0).abs() < 1e-9);
    }
    assert!(report.to_string().contains("plain"));
}

#[test]
fn real_gradients_agree() {
    for case in CASES {
        let golden = Golden::load(case);
        let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &flex());
        let report = likeness(&quiet(), &store, TASKS);
        for found in report.slices.iter().filter(|s| s.elements <= 64) {
            let [x, y] = TASKS.map(|task| rows(&store, task, &[&found.name]));
            let [a, b] = [&x, &y].map(|rows| Dense::fisher(rows));
            let Some(plain) = found.plain else {
                continue;
            };
            let expected = a.inner(&b) / (a.inner(&a) * b.inner(&b)).sqrt();
            assert_close(&found.name, &[plain], &[expected], GOLDEN, 1.0);
        }
        let heads = likeness(&quiet().with_by(SliceBy::Head), &store, TASKS);
        assert!(serde_json::to_string(&heads).is_ok() && heads.together.is_some());
    }
}

/// Two tasks of one distribution have an overlap of 1, plain numbers do not say so, and p is even.
#[test]
fn one_distribution_is_alike() {
    let (mut plain, mut unbiased, mut p) = (Vec::new(), Vec::new(), Vec::new());
    let (mut across, mut within) = (0.0, 0.0);
    let runs = 150;
    for seed in 0..runs {
        let noise = &mut Noise::new(seed);
        let store = Made::new([14, 18], 1, 20).store(|_, i, _| {
            let root = ((1 + i % 3) as f32).sqrt();
            noise.normals(20).into_iter().map(|x| root * x).collect()
        });
        let config = quiet().with_relabellings(200).with_top(2);
        let report = likeness(&config, &store, ["a", "b"]);
        let slice = &report.slices[0];
        plain.push(slice.plain.expect("it"));
        unbiased.push(slice.overlap.expect("it").value);
        p.push(slice.p.expect("it"));
        let angles = slice.angles.as_ref().expect("it");
        across += angles.across.expect("it") / runs as f64;
        within +=
            0.5 * (angles.within[0].expect("it") + angles.within[1].expect("it")) / runs as f64;
    }
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    assert!((mean(&unbiased) - 1.0).abs() < 0.03, "{}", mean(&unbiased));
    assert!(mean(&plain) < 0.6, "{}", mean(&plain));
    let below = |x: f64| p.iter().filter(|p| **p <= x).count();
    // 15 expected of 150, and 75.
    assert!(below(0.1) < 28 && below(0.1) > 4, "{}", below(0.1));
    assert!((below(0.5) as f64 - 75.0).abs() < 25.0, "{}", below(0.5));
    assert!((across - within).abs() < 0.05, "{across} {within}");
}

#[test]
fn orthogonal_tasks_have_nothing_in_common() {
    let noise = &mut Noise::new(4);
    let store = Made::new([12, 12], 1, 8).store(|task, _, _| {
        let row = noise.normals(8).into_iter().enumerate();
        row.map(|(e, x)| if e / 4 == task { x } else { 0.0 })
            .collect()
    });
    let report = likeness(&quiet(), &store, ["a", "b"]);
    let slice = &report.slices[0];
    assert_eq!(
        (slice.product, slice.plain, slice.unbiased),
        (0.0, Some(0.0), Some(0.0))
    );
    assert!(slice.overlap.is_none(), "nothing varies");
    assert!(slice.p.expect("it") <= 2.0 / 1001.0);
    let angles = slice.angles.as_ref().expect("it");
    assert!(angles.cosines.iter().all(|c| *c < 1e-12) && angles.dimensions == 4);
    assert!(angles.within.iter().all(|x| x.expect("halves") > 0.99));
}

/// F → c²F of one task changes no overlap and no angle.
#[test]
fn scale_is_a_law() {
    let run = |factor: f32| {
        let noise = &mut Noise::new(6);
        let store = Made::new([10, 11], 1, 7).store(|task, _, _| {
            let by = if task == 1 { factor } else { 1.0 };
            let row = noise.normals(7).into_iter().enumerate();
            row.map(|(e, x)| by * x / (1 + e) as f32).collect()
        });
        likeness(&quiet(), &store, ["a", "b"]).slices[0].clone()
    };
    let plain = run(1.0);
    for factor in [4.0, 1e-10, 1e10] {
        let other = run(factor);
        let numbers = |s: &fisher_metrics::curvature::likeness::SliceLikeness| {
            let overlap = s.overlap.expect("it");
            let angles = s.angles.as_ref().expect("it");
            vec![
                s.plain.expect("it"),
                s.unbiased.expect("it"),
                overlap.value,
                overlap.standard_error,
                angles.mean_square,
                angles.across.expect("it"),
            ]
        };
        assert_close("scaled", &numbers(&other), &numbers(&plain), 1e-4, 1.0);
    }
}

#[test]
fn little_is_said_of_little() {
    let store = Made::new([1, 3], 2, 4).store(|_, i, slice| match slice {
        0 => vec![0.0; 4],
        _ => vec![1.0 + i as f32, 1.0, 0.0, 2.0],
    });
    let report = likeness(&quiet(), &store, ["a", "b"]);
    let [zero, one] = [&report.slices[0], &report.slices[1]];
    assert!(zero.plain.is_none() && zero.angles.is_none() && zero.overlap.is_none());
    assert!(one.plain.is_some() && one.unbiased.is_none() && one.p.is_none());
    let said = |word: &str| report.warnings.iter().any(|w| w.contains(word));
    assert!(said("takes three") && said("are 0"));
    assert!(serde_json::to_string(&report).is_ok() && !report.to_string().contains("NaN"));
    let same = quiet()
        .init()
        .expect("settings")
        .forward(&store, ["a", "a"]);
    assert!(same.is_err());
    assert!(quiet().with_top(0).init().is_err());
    assert!(quiet().with_relabellings(0).init().is_err());

    // A copy of a sample in the other task is told.
    let store = Made::new([4, 4], 1, 5).store(|_, i, _| Noise::new(i as u64).normals(5));
    let report = likeness(&quiet(), &store, ["a", "b"]);
    assert!(
        report
            .warnings
            .iter()
            .any(|w| w.contains("independent of each other"))
    );
}
