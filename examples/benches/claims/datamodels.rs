//! How often the interval of a linear datamodeling score holds.

use fisher_metrics::curvature::influence::linear_datamodeling_score;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::draws::normal;

const QUERIES: usize = 16;
const RUNS: usize = 400;

pub(crate) fn table() -> String {
    let mut table = format!(
        "**The interval of a linear datamodeling score.** What scores predict and what losses do are normal over subsets, correlated by ρ for each of {QUERIES} queries and \
         by c between queries; the true score is 6/π asin(ρ/2). Mean of the score over {RUNS} runs, and per cent of nominal 95 % intervals that hold the truth.\n\n\
         | subsets | c | ρ | true | mean | covers |\n|--:|--:|--:|--:|--:|--:|\n"
    );
    for subsets in [16, 32, 64] {
        for between in [0.0, 0.5, 0.9] {
            for rho in [0.0f64, 0.4, 0.8] {
                let truth = 6.0 / std::f64::consts::PI * (rho / 2.0).asin();
                let rng = &mut StdRng::seed_from_u64(subsets as u64);
                let (mut sum, mut held) = (0.0, 0);
                for _ in 0..RUNS {
                    let [predicted, other] = [0, 1].map(|_| draw(subsets, between, rng));
                    let noise = (1.0 - rho * rho).sqrt();
                    let pairs = predicted.iter().zip(&other);
                    let losses: Vec<f64> = pairs.map(|(p, o)| -rho * p - noise * o).collect();
                    let score = linear_datamodeling_score(&predicted, &each(subsets), &losses);
                    let score = score.expect("a score");
                    let [low, high] = score.interval.expect("an interval");
                    sum += score.mean.expect("ranks");
                    held += usize::from(low <= truth && truth <= high);
                }
                let runs = RUNS as f64;
                table += &format!(
                    "| {subsets} | {between} | {rho} | {truth:.2} | {:.2} | {:.0} |\n",
                    sum / runs,
                    100.0 * held as f64 / runs
                );
            }
        }
    }
    table
}

/// `[queries, subsets]`, correlated by `between` between queries.
fn draw(subsets: usize, between: f64, rng: &mut StdRng) -> Vec<f64> {
    let shared: Vec<f64> = (0..subsets).map(|_| normal(rng)).collect();
    let of_query = |_| -> Vec<f64> {
        let own = shared.iter();
        own.map(|shared| between.sqrt() * shared + (1.0 - between).sqrt() * normal(rng))
            .collect()
    };
    (0..QUERIES).flat_map(of_query).collect()
}

/// Subsets of one sample each: then scores are what is predicted.
pub(crate) fn each(subsets: usize) -> Vec<Vec<bool>> {
    let row = |s: usize| (0..subsets).map(|k| k == s).collect();
    (0..subsets).map(row).collect()
}
