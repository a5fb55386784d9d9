//! Scores of influence against losses of models retrained on subsets.

use fisher_core::moments::student_quantile;
use fisher_metrics::curvature::influence::linear_datamodeling_score;
use fisher_metrics::pruning::spearman;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Subsets, and losses of queries by models retrained on them, `[queries, subsets]`.
pub(crate) struct Retrained<'a> {
    pub(crate) subsets: &'a [Vec<bool>],
    pub(crate) losses: &'a [f64],
}

impl Retrained<'_> {
    pub(crate) fn score(&self, scores: &[f64]) -> String {
        let score = linear_datamodeling_score(scores, self.subsets, self.losses);
        let score = score.expect("a score");
        match (score.mean, score.interval) {
            (Some(mean), Some([low, high])) => format!("{mean:.2} [{low:.2}, {high:.2}]"),
            _ => "–".into(),
        }
    }

    /// Of some subsets: the mean over queries of the rank correlation of the sum of scores with minus the loss.
    pub(crate) fn correlations(&self, scores: &[f64]) -> impl Fn(&[usize]) -> f64 {
        let n = self.subsets[0].len();
        let rows = scores.chunks(n).zip(self.losses.chunks(self.subsets.len()));
        let rows: Vec<[Vec<f64>; 2]> = rows
            .map(|(scores, losses)| {
                let sum = |subset: &Vec<bool>| {
                    let chosen = scores.iter().zip(subset).filter(|(_, is_in)| **is_in);
                    chosen.map(|(score, _)| score).sum()
                };
                let fell = losses.iter().map(|loss| -loss);
                [self.subsets.iter().map(sum).collect(), fell.collect()]
            })
            .collect();
        move |draw| {
            let of_row = |row: &[Vec<f64>; 2]| {
                let [a, b] = row
                    .each_ref()
                    .map(|of| draw.iter().map(|&s| of[s]).collect::<Vec<f64>>());
                spearman(&a, &b)
            };
            let found: Vec<f64> = rows.iter().filter_map(of_row).collect();
            found.iter().sum::<f64>() / found.len() as f64
        }
    }

    /// How much better `scores` do than `others`, with a 95 % interval by leaving out one subset after the other.
    pub(crate) fn difference(&self, scores: &[f64], others: &[f64]) -> String {
        let [ours, theirs] = [scores, others].map(|scores| self.correlations(scores));
        let all: Vec<usize> = (0..self.subsets.len()).collect();
        let m = all.len() as f64;
        let without = all.iter().map(|out| {
            let kept: Vec<usize> = all.iter().copied().filter(|s| s != out).collect();
            ours(&kept) - theirs(&kept)
        });
        let without: Vec<f64> = without.collect();
        let centre = without.iter().sum::<f64>() / m;
        let squares: f64 = without.iter().map(|x| (x - centre).powi(2)).sum();
        let reach = student_quantile(0.975, m - 1.0) * ((m - 1.0) / m * squares).sqrt();
        let found = ours(&all) - theirs(&all);
        format!("{found:+.2} [{:+.2}, {:+.2}]", found - reach, found + reach)
    }
}

/// Standard deviations of a query's loss between subsets, without what is of orders, and between two orders: roots of means over
/// queries of variances.
pub(crate) fn deviations(of_orders: &[Vec<f64>], subsets: usize) -> [f64; 2] {
    let (mut of_means, mut of_orders_alone, mut queries) = (0.0, 0.0, 0.0);
    for (a, b) in of_orders[0]
        .chunks(subsets)
        .zip(of_orders[1].chunks(subsets))
    {
        let means: Vec<f64> = a.iter().zip(b).map(|(a, b)| 0.5 * (a + b)).collect();
        let mean = means.iter().sum::<f64>() / subsets as f64;
        of_means += means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (subsets - 1) as f64;
        of_orders_alone += a
            .iter()
            .zip(b)
            .map(|(a, b)| 0.5 * (a - b).powi(2))
            .sum::<f64>()
            / subsets as f64;
        queries += 1.0;
    }
    let between = (of_means - 0.5 * of_orders_alone).max(0.0);
    [between, of_orders_alone].map(|sum| (sum / queries).sqrt())
}

/// Scores `[queries, n]` with the training samples in another order, the same for all queries.
pub(crate) fn shuffled(scores: &[f64], n: usize, seed: u64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    let rows = scores.chunks(n);
    rows.flat_map(|row| order.iter().map(|&i| row[i])).collect()
}
