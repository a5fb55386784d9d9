//! A logistic regression trained again without each of its samples, and scores of influence.

use burn::tensor::{Device, Tensor};
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::GradientStoreConfig;
use fisher_metrics::curvature::influence::{InfluenceConfig, Inverse};
use fisher_metrics::damping::Damping;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::draws::normal;

const SAMPLES: usize = 200;
const QUERIES: usize = 40;
const WIDTH: usize = 8;
/// μ: `μ/2 |θ|²` is added to the mean loss, and λ = μ to the Fisher.
const RIDGE: f64 = 1e-2;
const SEEDS: u64 = 10;

pub(crate) fn table() -> String {
    let mut table = format!(
        "**Leaving one sample out** of a logistic regression of {SAMPLES} samples with {WIDTH} features: Pearson's correlation between scores and how far the losses of \
         {QUERIES} others rise, over all pairs, mean over {SEEDS} seeds (least to greatest); and the size of exact scores, divided by the number of samples, over that of \
         the changes. λ is the ridge that is trained with. Hessian: the second derivative in the place of the Fisher.\n\n\
         | features | Hessian | exact | diagonal | products | size |\n|---|--:|--:|--:|--:|--:|\n"
    );
    for (name, shared) in [("share a direction", 1.0), ("independent", 0.0)] {
        let runs: Vec<[f64; 5]> = (0..SEEDS)
            .map(|seed| run(shared, &mut StdRng::seed_from_u64(seed)))
            .collect();
        let column = |k: usize| range(&runs.iter().map(|run| run[k]).collect::<Vec<_>>());
        let columns: Vec<String> = (0..5).map(column).collect();
        table += &format!("| {name} | {} |\n", columns.join(" | "));
        eprintln!("left out: features {name}");
    }
    table
}

struct Labelled {
    inputs: Vec<Vec<f64>>,
    labels: Vec<f64>,
}

impl Labelled {
    /// Features of unequal size, with a direction that all share in this proportion.
    fn draw(count: usize, shared: f64, rng: &mut StdRng) -> Self {
        let truth = |k: usize| if k.is_multiple_of(2) { 1.0 } else { -0.7 };
        let truth: Vec<f64> = (0..WIDTH).map(truth).collect();
        let (mut inputs, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let common = shared * normal(rng);
            let feature = |k: usize| (normal(rng) + common) / (1.0 + k as f64).sqrt();
            let x: Vec<f64> = (0..WIDTH).map(feature).collect();
            labels.push(f64::from(u8::from(
                rng.random::<f64>() < probability(&x, &truth),
            )));
            inputs.push(x);
        }
        Self { inputs, labels }
    }

    fn pairs(&self) -> impl Iterator<Item = (&Vec<f64>, f64)> {
        self.inputs.iter().zip(self.labels.iter().copied())
    }

    /// The gradient of the mean loss, less that of a sample left out, times the number of samples; and the Hessian.
    fn derivatives(&self, theta: &[f64], left_out: Option<usize>) -> (Mat<f64>, Mat<f64>) {
        let n = self.labels.len() as f64;
        let mut gradient = Mat::from_fn(WIDTH, 1, |i, _| RIDGE * n * theta[i]);
        let mut hessian = Mat::from_fn(WIDTH, WIDTH, |i, j| if i == j { RIDGE * n } else { 0.0 });
        for (i, (x, y)) in self.pairs().enumerate() {
            if Some(i) == left_out {
                continue;
            }
            let p = probability(x, theta);
            for row in 0..WIDTH {
                gradient[(row, 0)] += (p - y) * x[row];
                for column in 0..WIDTH {
                    hessian[(row, column)] += p * (1.0 - p) * x[row] * x[column];
                }
            }
        }
        (gradient, hessian)
    }

    /// Weights that minimize the loss, by Newton's steps from `theta`.
    fn trained(&self, theta: &[f64], left_out: Option<usize>) -> Vec<f64> {
        let mut theta = theta.to_vec();
        for _ in 0..30 {
            let (gradient, hessian) = self.derivatives(&theta, left_out);
            let step = hessian.llt(Side::Lower).expect("convex").solve(&gradient);
            theta
                .iter_mut()
                .enumerate()
                .for_each(|(i, t)| *t -= step[(i, 0)]);
            if step.norm_l2() < 1e-12 {
                break;
            }
        }
        theta
    }

    fn gradients(&self, theta: &[f64]) -> Vec<Vec<f64>> {
        let of = |(x, y): (&Vec<f64>, f64)| {
            let error = probability(x, theta) - y;
            x.iter().map(|x| error * x).collect()
        };
        self.pairs().map(of).collect()
    }
}

fn probability(x: &[f64], theta: &[f64]) -> f64 {
    let score: f64 = x.iter().zip(theta).map(|(x, t)| x * t).sum();
    1.0 / (1.0 + (-score).exp())
}

fn loss(x: &[f64], y: f64, theta: &[f64]) -> f64 {
    let p = probability(x, theta);
    -(y * p.ln() + (1.0 - y) * (1.0 - p).ln())
}

/// Correlations of scores by the Hessian, exactly, by the diagonal and by products; the size of exact ones.
fn run(shared: f64, rng: &mut StdRng) -> [f64; 5] {
    let train = Labelled::draw(SAMPLES, shared, rng);
    let queries = Labelled::draw(QUERIES, shared, rng);
    let theta = train.trained(&[0.0; WIDTH], None);
    let mut rises = vec![0.0; QUERIES * SAMPLES];
    for i in 0..SAMPLES {
        let without = train.trained(&theta, Some(i));
        for (j, (x, y)) in queries.pairs().enumerate() {
            rises[j * SAMPLES + i] = loss(x, y, &without) - loss(x, y, &theta);
        }
    }
    let gradients = [&train, &queries].map(|of| of.gradients(&theta));
    let (_, hessian) = train.derivatives(&theta, None);
    let factor = hessian.llt(Side::Lower).expect("convex");
    let by_hessian = gradients[1].iter().flat_map(|query| {
        let solved = factor.solve(Mat::from_fn(WIDTH, 1, |i, _| query[i]));
        let product = move |of: &Vec<f64>| (0..WIDTH).map(|i| of[i] * solved[(i, 0)]).sum::<f64>();
        gradients[0].iter().map(product)
    });
    let by_hessian: Vec<f64> = by_hessian.collect();
    let [exact, diagonal, products] = scores(&gradients);
    let size = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    [
        pearson(&by_hessian, &rises),
        pearson(&exact, &rises),
        pearson(&diagonal, &rises),
        pearson(&products, &rises),
        size(&exact) / SAMPLES as f64 / size(&rises),
    ]
}

/// Scores of training samples, the first gradients, for queries, the second: exactly, by the diagonal, by products.
fn scores(gradients: &[Vec<Vec<f64>>; 2]) -> [Vec<f64>; 3] {
    let weight = Parameter::new("theta", [WIDTH, 1], Role::Matrix, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![weight]).expect("a path");
    let device = Device::flex();
    let store = GradientStoreConfig::new(1 << 26).init_for(&catalogue, "m".into());
    let mut store = store.expect("a store").with_device(&device);
    let statistics = StatisticsConfig::new();
    let statistics = statistics.init_for(&catalogue, &HeadLayout::none(), "m".into(), &device);
    let mut statistics: Statistics = statistics.expect("statistics");
    for (task, rows) in ["train", "queries"].into_iter().zip(gradients) {
        let sample = |i: usize| Sample::new(format!("{task}-{i}"), 1).expect("a token");
        let mut batch = GradientBatch::new((0..rows.len()).map(sample).collect());
        let values: Vec<f32> = rows.iter().flatten().map(|&g| g as f32).collect();
        let tensor = Tensor::<1>::from_floats(values.as_slice(), &device);
        batch.insert(
            "theta",
            SampleGradient::full(tensor.reshape([rows.len(), WIDTH])),
        );
        let mut sinks = (&mut statistics, &mut store);
        sinks.push_batch(task, batch).expect("gradients");
    }
    let config = InfluenceConfig::new()
        .with_damping(Damping::Absolute(RIDGE))
        .with_progress(false);
    let influence = config.init().expect("settings");
    [
        Inverse::Exact,
        Inverse::Diagonal(&statistics, "train"),
        Inverse::Identity,
    ]
    .map(|inverse| {
        let report = influence.forward((&store, "train"), (&store, "queries"), inverse);
        report.expect("scores").scores
    })
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let centred = |x: &[f64]| x.iter().map(|value| value - mean(x)).collect::<Vec<f64>>();
    let (a, b) = (centred(a), centred(b));
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// The mean of some numbers, the least and the greatest.
pub(crate) fn range(values: &[f64]) -> String {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{mean:.2} ({least:.2} to {greatest:.2})")
}
