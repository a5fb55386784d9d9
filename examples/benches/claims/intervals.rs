//! Coverage of 95 % intervals of F, and of shares.

use fisher_core::moments::IntervalMethod;
use fisher_metrics::importance::ImportanceConfig;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::draws::{exponential, lognormal, normal, statistics};

type Draw = fn(&mut StdRng) -> f64;

/// All of mean 1.
const DISTRIBUTIONS: [(&str, Draw); 7] = [
    ("g normal (CV 1.4)", |rng| normal(rng).powi(2)),
    ("exponential (CV 1)", exponential),
    ("hardly varying (CV 0.1)", |rng| 1.0 + 0.1 * normal(rng)),
    ("lognormal, CV 2", |rng| lognormal(2.0, rng)),
    ("lognormal, CV 8", |rng| lognormal(8.0, rng)),
    ("2 % are 100 × as large", |rng| {
        let rare = rng.random::<f64>() < 0.02;
        exponential(rng) * if rare { 100.0 } else { 1.0 } / 2.98
    }),
    ("softmax loss (p − y)² x²", |rng| {
        let surprise = 1.0 / (1.0 + (3.0 + 2.0 * normal(rng)).exp());
        (surprise * normal(rng)).powi(2) / SOFTMAX
    }),
];

/// E of the last before it is divided: E σ(−3 − 2z)², by quadrature.
const SOFTMAX: f64 = 0.051_686_413;

const METHODS: [(&str, IntervalMethod); 3] = [
    ("t", IntervalMethod::StudentT),
    ("log-effective", IntervalMethod::LogEffective),
    ("Hall", IntervalMethod::Hall),
];

pub(crate) fn tables(runs: usize) -> Vec<String> {
    vec![of_means(runs), of_clusters(runs), of_shares(runs)]
}

fn of_means(runs: usize) -> String {
    let mut table = format!(
        "**Intervals of F.** Per cent of nominal 95 % intervals that hold the mean, and per cent of runs that \
         have an interval, in {runs} runs. n_eff is that of the distribution, n / (1 + CV²); * marks \
         n_eff < 5, where what is rare may not have been seen and no method can know.\n\n\
         | contributions | n | n_eff | t: covers | below 0 | log-effective: covers | has one | Hall: covers | has one |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for (name, draw) in DISTRIBUTIONS {
        let variation = variation(draw);
        for n in [16, 64, 256, 1024] {
            let rng = &mut StdRng::seed_from_u64(n as u64);
            // Layers are independent: each is a run.
            let layers: Vec<Vec<f64>> = (0..runs)
                .map(|_| (0..n).map(|_| draw(rng)).collect())
                .collect();
            let statistics = statistics(&layers, None);
            let read = statistics.task("t").expect("a task").layers();
            let mut cells = Vec::new();
            for (_, method) in METHODS {
                let found = read.confidence_intervals(0.95, method).expect("a level");
                let found: Vec<_> = found.into_iter().flatten().collect();
                let share = |count: usize, of: usize| match of {
                    0 => "–".into(),
                    of => format!("{:.0}", 100.0 * count as f64 / of as f64),
                };
                let held = found.iter().filter(|i| i.lower <= 1.0 && 1.0 <= i.upper);
                cells.push(share(held.count(), found.len()));
                cells.push(match method {
                    IntervalMethod::StudentT => {
                        share(found.iter().filter(|i| i.lower < 0.0).count(), found.len())
                    }
                    _ => share(found.len(), runs),
                });
            }
            let effective = n as f64 / (1.0 + variation * variation);
            let few = if effective < 5.0 { "*" } else { "" };
            table += &format!(
                "| {name} | {n} | {effective:.0}{few} | {} |\n",
                cells.join(" | ")
            );
        }
    }
    table
}

/// Coefficient of variation, by a long run.
fn variation(draw: Draw) -> f64 {
    let rng = &mut StdRng::seed_from_u64(0);
    let n = 4_000_000;
    let (mut sum, mut squares) = (0.0, 0.0);
    for _ in 0..n {
        let x = draw(rng);
        sum += x;
        squares += x * x;
    }
    let mean = sum / f64::from(n);
    (squares / f64::from(n) / (mean * mean) - 1.0)
        .max(0.0)
        .sqrt()
}

/// Samples that come in clusters, as chunks of documents do.
fn of_clusters(runs: usize) -> String {
    let mut table = format!(
        "**Clusters.** Per cent of nominal 95 % intervals (Hall) that hold the mean where samples of a cluster share a \
         factor (lognormal, CV 1; clusters of 1 to 9 samples), in {runs} runs.\n\n\
         | clusters | clusters named | not named |\n|--:|--:|--:|\n"
    );
    for clusters in [16, 64] {
        let rng = &mut StdRng::seed_from_u64(clusters as u64);
        let of: Vec<usize> = (0..clusters).flat_map(|c| vec![c; 1 + c * 7 % 9]).collect();
        let mut layer = |_| {
            let shared: Vec<f64> = (0..clusters).map(|_| lognormal(1.0, rng)).collect();
            of.iter()
                .map(|c| shared[*c] * lognormal(1.0, rng))
                .collect()
        };
        let layers: Vec<Vec<f64>> = (0..runs).map(&mut layer).collect();
        let cells = [Some(&*of), None].map(|named| {
            let statistics = statistics(&layers, named);
            let read = statistics.task("t").expect("a task").layers();
            let found = read.confidence_intervals(0.95, IntervalMethod::Hall);
            let found: Vec<_> = found.expect("a level").into_iter().flatten().collect();
            let held = found.iter().filter(|i| i.lower <= 1.0 && 1.0 <= i.upper);
            format!("{:.0}", 100.0 * held.count() as f64 / found.len() as f64)
        });
        table += &format!("| {clusters} | {} |\n", cells.join(" | "));
    }
    table
}

fn of_shares(runs: usize) -> String {
    let mut table = format!(
        "**Intervals of shares.** Per cent of nominal 95 % intervals that hold the share of a layer, in {runs} runs: \
         contributions of all layers share a lognormal factor of CV 2, and have one of CV 1 of their own.\n\n\
         | share | n | covers | has one |\n|--:|--:|--:|--:|\n"
    );
    let importance = ImportanceConfig::new()
        .with_draws(1)
        .init()
        .expect("settings");
    for (share, rest) in [(0.02, 0.98), (0.25, 0.75), (0.9, 0.1)] {
        for n in [16, 64, 256] {
            let rng = &mut StdRng::seed_from_u64(n as u64);
            let (mut held, mut had) = (0, 0);
            for _ in 0..runs {
                let size: Vec<f64> = (0..n).map(|_| lognormal(2.0, rng)).collect();
                let mut layer = |mean: f64| -> Vec<f64> {
                    size.iter()
                        .map(|x| mean * x * lognormal(1.0, rng))
                        .collect()
                };
                let statistics = statistics(&[layer(share), layer(rest)], None);
                let report = importance.forward(&statistics, "t").expect("a report");
                let layer = report.layers.iter().find(|layer| layer.name == "layers.0");
                let interval = layer.and_then(|layer| layer.share?.interval);
                had += usize::from(interval.is_some());
                let holds = interval.is_some_and(|i| i.lower <= share && share <= i.upper);
                held += usize::from(holds);
            }
            let covers = 100.0 * held as f64 / had.max(1) as f64;
            let has = 100.0 * had as f64 / runs as f64;
            table += &format!("| {share} | {n} | {covers:.0} | {has:.0} |\n");
        }
    }
    table
}
