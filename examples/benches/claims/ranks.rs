//! How often a rank is said wrongly, and how many are resolved.

use fisher_metrics::importance::{ImportanceConfig, ImportanceReport};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::draws::{exponential, lognormal, statistics};

/// `[layers][samples]` of layers with these means.
type Draw = fn(&[f64], usize, &mut StdRng) -> Vec<Vec<f64>>;

fn independent(means: &[f64], n: usize, mut draw: impl FnMut(usize) -> f64) -> Vec<Vec<f64>> {
    let layer = |(k, mean): (usize, &f64)| (0..n).map(|_| mean * draw(k)).collect();
    means.iter().enumerate().map(layer).collect()
}

fn moving_together(means: &[f64], n: usize, own: f64, rng: &mut StdRng) -> Vec<Vec<f64>> {
    let size: Vec<f64> = (0..n).map(|_| lognormal(8.0, rng)).collect();
    let mut layer = |mean: &f64| -> Vec<f64> {
        size.iter()
            .map(|x| mean * x * lognormal(own, rng))
            .collect()
    };
    means.iter().map(&mut layer).collect()
}

const DRAWS: [(&str, Draw); 6] = [
    ("exponential", |means, n, rng| {
        independent(means, n, |_| exponential(rng))
    }),
    ("lognormal, CV 2", |means, n, rng| {
        independent(means, n, |_| lognormal(2.0, rng))
    }),
    ("lognormal, CV 0.5 to 8", |means, n, rng| {
        independent(means, n, |k| lognormal(0.5 * f64::from(1 << k), rng))
    }),
    ("2 % are 100 × as large", |means, n, rng| {
        independent(means, n, |_| {
            let rare = rng.random::<f64>() < 0.02;
            exponential(rng) * if rare { 100.0 } else { 1.0 } / 2.98
        })
    }),
    ("one factor of CV 8, own of CV 0.3", |means, n, rng| {
        moving_together(means, n, 0.3, rng)
    }),
    ("one factor of CV 8 alone", |means, n, rng| {
        moving_together(means, n, 0.0, rng)
    }),
];

pub(crate) fn tables(runs: usize) -> Vec<String> {
    let mut table = format!(
        "**Ranks.** Per cent of {runs} runs in which any of five layers gets a set of ranks without its true one (5 are \
         allowed), and per cent of ranks that are resolved. Close: means 1, 1, 1.05, 1.1, 1.2; apart: 1, 2, 4, 8, 16.\n\n\
         | contributions | n | close: wrong | resolved | apart: wrong | resolved |\n|---|--:|--:|--:|--:|--:|\n"
    );
    let importance = ImportanceConfig::new().init().expect("settings");
    for (name, draw) in DRAWS {
        for n in [16, 64, 256] {
            let mut cells = Vec::new();
            for means in [[1.0, 1.0, 1.05, 1.1, 1.2], [1.0, 2.0, 4.0, 8.0, 16.0]] {
                let rng = &mut StdRng::seed_from_u64(n as u64);
                let (mut wrong, mut resolved) = (0, 0);
                for _ in 0..runs {
                    let statistics = statistics(&draw(&means, n, rng), None);
                    let report = importance.forward(&statistics, "t").expect("a report");
                    wrong += usize::from(is_wrong(&report, &means));
                    let ranks = report.layers.iter().filter_map(|layer| layer.ranks);
                    resolved += ranks.filter(|ranks| ranks.resolved()).count();
                }
                cells.push(format!("{:.1}", 100.0 * wrong as f64 / runs as f64));
                cells.push(format!("{:.0}", 20.0 * resolved as f64 / runs as f64));
            }
            table += &format!("| {name} | {n} | {} |\n", cells.join(" | "));
        }
    }
    vec![table]
}

/// Whether a set leaves out what may be the rank; equal means share theirs.
fn is_wrong(report: &ImportanceReport, means: &[f64]) -> bool {
    report.layers.iter().any(|layer| {
        let mean = means[layer.name["layers.".len()..]
            .parse::<usize>()
            .expect("a number")];
        let best = 1 + means.iter().filter(|m| **m > mean).count();
        let worst = means.iter().filter(|m| **m >= mean).count();
        let ranks = layer.ranks.expect("samples");
        ranks.worst < best || ranks.best > worst
    })
}
