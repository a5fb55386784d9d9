//! What few samples say of the full Fisher: bias and coverage.

use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::curvature::likeness::LikenessConfig;
use fisher_metrics::curvature::spectrum::SpectrumConfig;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::draws::{lognormal, normal};

pub(crate) fn tables(runs: usize) -> Vec<String> {
    vec![of_spectra(runs), of_likeness(runs)]
}

/// Variances along the elements.
fn spectra() -> [(&'static str, Vec<f64>); 4] {
    let power = (1..=300).map(|k| 1.0 / f64::from(k)).collect();
    [
        ("4 equal", vec![1.0; 4]),
        ("30 equal", vec![1.0; 30]),
        ("300 equal", vec![1.0; 300]),
        ("1/k, 300", power),
    ]
}

/// A sample's gradient: normal with these variances, times a lognormal whose square has mean 1 and this CV.
fn gradient(variances: &[f64], cv: f64, rng: &mut StdRng) -> Vec<f32> {
    let size = lognormal(cv, rng).sqrt();
    let element = |v: &f64| (size * v.sqrt() * normal(rng)) as f32;
    variances.iter().map(element).collect()
}

/// A store of tasks `a` and `b`.
fn store(tasks: [&[Vec<f32>]; 2]) -> GradientStore {
    let elements = tasks[0][0].len();
    let weight = Parameter::new("w", [elements], Role::Vector, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![weight]).expect("a path");
    let store = GradientStoreConfig::new(1 << 28).init_for(&catalogue, "m".into());
    let device = Device::flex();
    let mut store = store.expect("a store").with_device(&device);
    for (task, rows) in ["a", "b"].into_iter().zip(tasks) {
        let sample = |i: usize| Sample::new(i.to_string(), 1).expect("a token");
        let mut batch = GradientBatch::new((0..rows.len()).map(sample).collect());
        let values = rows.concat();
        let tensor = Tensor::<1>::from_floats(values.as_slice(), &device);
        let tensor = tensor.reshape([rows.len(), elements]);
        batch.insert("w", Gradient::token_sum(tensor));
        store.push(task, &batch).expect("gradients");
    }
    store
}

#[derive(Default)]
struct Cell {
    sums: [f64; 6],
    held: [usize; 3],
    had: [usize; 3],
}

fn of_spectra(runs: usize) -> String {
    let mut table = format!(
        "**The spectrum from few samples.** Means over {runs} runs, as multiples of what the number is of the Fisher that the \
         samples are drawn from, and per cent of nominal 95 % intervals that hold it (of those there are). Gradients are normal with \
         equal or falling variances, their squared size times a lognormal of the CV given.\n\n\
         | variances | CV | participation | n | plain | unbiased | covers | λ₁ | held out | dimension | tr F: covers | tr F²: plain | covers |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    let config = SpectrumConfig::new()
        .with_progress(false)
        .with_top(1)
        .with_listed(1);
    let spectrum = config.init().expect("settings");
    for (name, variances) in spectra() {
        let [trace, square] = [1, 2].map(|p| variances.iter().map(|v| v.powi(p)).sum::<f64>());
        let participation = trace * trace / square;
        let dimension: f64 = variances.iter().map(|v| v / (v + 1e-3 * trace)).sum();
        for cv in [0.0, 2.0] {
            for n in [16, 64, 256] {
                let rng = &mut StdRng::seed_from_u64(n as u64);
                let mut cell = Cell::default();
                for _ in 0..runs {
                    let rows: Vec<Vec<f32>> =
                        (0..n).map(|_| gradient(&variances, cv, rng)).collect();
                    let store = store([&rows, &rows[..1]]);
                    let report = spectrum.forward(&store, "a").expect("a report");
                    let found = &report.slices[0];
                    let unbiased = found.unbiased_participation.expect("pairs");
                    let squares = found.unbiased_square.expect("pairs");
                    let numbers = [
                        found.participation.expect("it") / participation,
                        unbiased.value / participation,
                        found.largest() / variances[0],
                        found.top[0].held_out.expect("halves") / variances[0],
                        found.dimension.expect("it").value / dimension,
                        found.square / square,
                    ];
                    let sums = cell.sums.iter_mut().zip(numbers);
                    sums.for_each(|(sum, x)| *sum += x / runs as f64);
                    let intervals = [
                        (unbiased.interval, participation),
                        (found.trace.interval, trace),
                        (squares.interval, square),
                    ];
                    for (k, (interval, truth)) in intervals.into_iter().enumerate() {
                        cell.had[k] += usize::from(interval.is_some());
                        let holds =
                            interval.is_some_and(|[low, high]| low <= truth && truth <= high);
                        cell.held[k] += usize::from(holds);
                    }
                }
                let covers = |k: usize| covers(cell.held[k], cell.had[k], runs);
                let [plain, unbiased, largest, held, dimension, square] = cell.sums;
                table += &format!(
                    "| {name} | {cv:.0} | {participation:.0} | {n} | {plain:.2} | {unbiased:.2} | {} | {largest:.2} | {held:.2} | \
                     {dimension:.2} | {} | {square:.2} | {} |\n",
                    covers(0),
                    covers(1),
                    covers(2)
                );
            }
        }
    }
    table
}

/// How many of those there are hold, and how many there are, where not all.
fn covers(held: usize, had: usize, runs: usize) -> String {
    let share = |x: usize, of: usize| 100.0 * x as f64 / of.max(1) as f64;
    match had {
        0 => "–".into(),
        had if had == runs => format!("{:.0}", share(held, had)),
        had => format!("{:.0} ({:.0} have one)", share(held, had), share(had, runs)),
    }
}

fn of_likeness(runs: usize) -> String {
    let mut table = format!(
        "**Overlap of two Fishers from few samples.** Means over {runs} runs, per cent of nominal 95 % intervals that hold the true \
         overlap and of those that leave out 1, and per cent of runs with p ≤ 0.05 (400 relabellings). Variances fall as 1/k; of the other task \
         they are the same, nine times as large, in reverse on the first half, or equal.\n\n\
         | tasks | elements | CV | n | true | plain | unbiased | covers | below 1 | p ≤ 0.05 |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    let config = LikenessConfig::new()
        .with_progress(false)
        .with_relabellings(400)
        .with_splits(0);
    let likeness = config.init().expect("settings");
    for elements in [10, 100] {
        let falling: Vec<f64> = (1..=elements).map(|k| 1.0 / f64::from(k)).collect();
        let mut half = falling.clone();
        half[..elements as usize / 2].reverse();
        let nine = falling.iter().map(|v| 9.0 * v).collect();
        let others = [
            ("the same", falling.clone()),
            ("9 × as large", nine),
            ("half reversed", half),
            ("equal", vec![1.0; elements as usize]),
        ];
        for (name, other) in others {
            let inner = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            let truth = inner(&falling, &other)
                / (inner(&falling, &falling) * inner(&other, &other)).sqrt();
            for cv in [0.0, 2.0] {
                for n in [16, 64] {
                    let rng = &mut StdRng::seed_from_u64(n as u64);
                    let (mut plain, mut unbiased) = (0.0, 0.0);
                    let [mut had, mut held, mut below, mut small] = [0usize; 4];
                    for _ in 0..runs {
                        let a: Vec<_> = (0..n).map(|_| gradient(&falling, cv, rng)).collect();
                        let b: Vec<_> = (0..n).map(|_| gradient(&other, cv, rng)).collect();
                        let store = store([&a, &b]);
                        let report = likeness.forward(&store, ["a", "b"]).expect("a report");
                        let found = &report.slices[0];
                        plain += found.plain.expect("it") / runs as f64;
                        small += usize::from(found.p.expect("clusters") <= 0.05);
                        let Some(overlap) = found.overlap else {
                            continue;
                        };
                        let [low, high] = overlap.interval;
                        unbiased += overlap.value;
                        had += 1;
                        held += usize::from(low <= truth && truth <= high);
                        below += usize::from(high < 1.0);
                    }
                    unbiased /= had.max(1) as f64;
                    let share = |x: usize| 100.0 * x as f64 / runs as f64;
                    table += &format!(
                        "| {name} | {elements} | {cv:.0} | {n} | {truth:.2} | {plain:.2} | {unbiased:.2} | {} | {:.0} | {:.0} |\n",
                        covers(held, had, runs),
                        share(below),
                        share(small)
                    );
                }
            }
        }
    }
    table
}
