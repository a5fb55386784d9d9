//! Fishers of other kinds, and the noise scale: whether their errors are what they say.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::sample::Sample;
use fisher_train::monitor::NoiseScaleConfig;
use fisher_train::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub(crate) fn tables(runs: usize) -> Vec<String> {
    vec![draws(runs), ratios(runs), noise_scales(runs)]
}

const INPUTS: usize = 4;
const CLASSES: usize = 5;

/// Inputs with the classes that the data says.
#[derive(Debug, Clone)]
struct Points {
    x: Tensor<2>,
    labels: Labels<Class>,
}

/// A softmax with weights that make it fairly sure.
#[derive(Module, Debug)]
struct Softmax {
    linear: Linear,
}

sample_loss!(Softmax, Points { x, labels }, |model, batch| {
    let logits = model.linear.forward(batch.x.clone());
    SampleLosses::classification(logits, batch.labels.clone())
});

fn weight(input: usize, class: usize) -> f64 {
    1.5 * (1.3 * (input * CLASSES + class) as f64 + 0.4).sin()
}

fn model(device: &Device) -> Softmax {
    let weights: Vec<f32> = (0..INPUTS * CLASSES)
        .map(|k| weight(k / CLASSES, k % CLASSES) as f32)
        .collect();
    let weights = Tensor::<2>::from_data(TensorData::new(weights, [INPUTS, CLASSES]), device);
    let mut linear = LinearConfig::new(INPUTS, CLASSES)
        .with_bias(false)
        .init(device);
    linear.weight = Param::from_tensor(weights);
    Softmax { linear }
}

fn normal(rng: &mut StdRng) -> f64 {
    let [u, v]: [f64; 2] = [rng.random(), rng.random()];
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

fn input(rng: &mut StdRng) -> [f64; INPUTS] {
    std::array::from_fn(|_| normal(rng))
}

fn probabilities(x: &[f64; INPUTS]) -> [f64; CLASSES] {
    let logits: [f64; CLASSES] =
        std::array::from_fn(|y| (0..INPUTS).map(|k| x[k] * weight(k, y)).sum());
    let weights = logits.map(f64::exp);
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

/// What a sample contributes to the exact trace, and on average to the empirical one where its label is of `q`.
fn traces(x: &[f64; INPUTS], q: &[f64; CLASSES]) -> [f64; 2] {
    let p = probabilities(x);
    let size: f64 = x.iter().map(|x| x * x).sum();
    let squares: f64 = p.iter().map(|p| p * p).sum();
    let off = |y: usize| squares - 2.0 * p[y] + 1.0;
    let expectation = |of: &[f64; CLASSES]| (0..CLASSES).map(|y| of[y] * off(y)).sum::<f64>();
    [size * expectation(&p), size * expectation(q)]
}

/// Both over very many inputs.
fn population(q: impl Fn(&[f64; INPUTS]) -> [f64; CLASSES]) -> [f64; 2] {
    let mut rng = StdRng::seed_from_u64(99);
    let count = 1_000_000;
    let mut sums = [0.0; 2];
    for _ in 0..count {
        let x = input(&mut rng);
        let of = traces(&x, &q(&x));
        sums[0] += of[0];
        sums[1] += of[1];
    }
    sums.map(|sum| sum / f64::from(count))
}

fn choose(p: &[f64; CLASSES], rng: &mut StdRng) -> i64 {
    let mut left: f64 = rng.random();
    for (y, p) in p.iter().enumerate() {
        left -= p;
        if left < 0.0 {
            return y as i64;
        }
    }
    CLASSES as i64 - 1
}

fn batch(x: &[[f64; INPUTS]], labels: Vec<i64>, device: &Device) -> Points {
    let samples = x.len();
    let x: Vec<f32> = x.iter().flatten().map(|x| *x as f32).collect();
    Points {
        x: Tensor::from_data(TensorData::new(x, [samples, INPUTS]), device),
        labels: Tensor::<1, Int>::from_data(TensorData::new(labels, [samples]), device).into(),
    }
}

fn percent(count: usize, of: usize) -> String {
    format!("{:.1} %", 100.0 * count as f64 / of as f64)
}

/// Of a Monte-Carlo Fisher: the error of the draws holds the exact Fisher of the same samples, that of the samples the one of the
/// population.
fn draws(runs: usize) -> String {
    let device = Device::flex().autodiff();
    let model = model(&device);
    let [truth, _] = population(probabilities);
    let mut table = "Monte-Carlo Fisher of a softmax layer (trace): 95 % intervals, mean ± 1.96 errors\n\n\
                     | samples | draws | holds the exact F of the samples | holds the population's F | variance that is of draws |\n\
                     |---|---|---|---|---|\n"
        .to_owned();
    for samples in [16, 64, 256] {
        for draws in [2, 4, 16] {
            let (mut of_samples, mut of_population, mut shares) = (0, 0, 0.0);
            for run in 0..runs {
                let mut rng = StdRng::seed_from_u64(run as u64);
                let x: Vec<[f64; INPUTS]> = (0..samples).map(|_| input(&mut rng)).collect();
                let exact = x.iter().map(|x| traces(x, &probabilities(x))[0]);
                let exact = exact.sum::<f64>() / samples as f64;
                let fisher = Fisher::MonteCarlo {
                    draws,
                    seed: run as u64,
                };
                let config = CollectorConfig::new()
                    .with_fisher(fisher)
                    .with_progress(false);
                let kind = StatisticsConfig::new().with_kind(FisherKind::MonteCarlo);
                let mut statistics = kind.init(&model).expect("statistics");
                let points = batch(&x, vec![0; samples], &device);
                let collected = config.init().expect("a collector").collect_batches(
                    &model,
                    "task",
                    [points],
                    &mut statistics,
                );
                let spread = collected.expect("a collection").draws.expect("draws");
                let layer = &spread.layers[0];
                let within = |truth: f64, error: Option<f64>| {
                    usize::from((layer.mean - truth).abs() <= 1.96 * error.expect("an error"))
                };
                of_samples += within(exact, layer.of_draws);
                of_population += within(truth, layer.standard_error);
                shares += layer.share.expect("a share");
            }
            table += &format!(
                "| {samples} | {draws} | {} | {} | {:.0} % |\n",
                percent(of_samples, runs),
                percent(of_population, runs),
                100.0 * shares / runs as f64
            );
        }
    }
    table
}

/// The empirical Fisher over the true one, where labels are the model's and where they are anything.
fn ratios(runs: usize) -> String {
    let device = Device::flex().autodiff();
    let model = model(&device);
    let uniform = [1.0 / CLASSES as f64; CLASSES];
    let mut table = "Empirical over Monte-Carlo trace, 4 draws, the same samples: 95 % intervals\n\n\
                     | labels of the data | samples | true ratio | holds it | has an interval |\n|---|---|---|---|---|\n"
        .to_owned();
    for own in [true, false] {
        let [exact, empirical] = population(|x| if own { probabilities(x) } else { uniform });
        let truth = empirical / exact;
        for samples in [16, 64, 256] {
            let (mut inside, mut told) = (0, 0);
            for run in 0..runs {
                let mut rng = StdRng::seed_from_u64(1000 + run as u64);
                let x: Vec<[f64; INPUTS]> = (0..samples).map(|_| input(&mut rng)).collect();
                let q = |x| if own { probabilities(x) } else { uniform };
                let labels = x.iter().map(|x| choose(&q(x), &mut rng)).collect();
                let fisher = Fisher::MonteCarlo {
                    draws: 4,
                    seed: run as u64,
                };
                let config = CollectorConfig::new()
                    .with_fisher(fisher)
                    .with_progress(false);
                let collector = config.with_compare(true).init().expect("a collector");
                let kind = StatisticsConfig::new().with_kind(FisherKind::MonteCarlo);
                let mut statistics = kind.init(&model).expect("statistics");
                let points = batch(&x, labels, &device);
                let collected =
                    collector.collect_batches(&model, "task", [points], &mut statistics);
                let ratio = collected.expect("a collection").ratio.expect("a ratio");
                if let Some(interval) = ratio.layers[0].interval {
                    told += 1;
                    inside += usize::from(interval.lower <= truth && truth <= interval.upper);
                }
            }
            let labels = if own { "the model's own" } else { "uniform" };
            table += &format!(
                "| {labels} | {samples} | {truth:.2} | {} | {} |\n",
                percent(inside, told.max(1)),
                percent(told, runs)
            );
        }
    }
    table
}

/// How the noise of a sample is spread: all have variance 1 an element.
#[derive(Debug, Clone, Copy)]
enum Noise {
    Normal,
    StudentT3,
    Lognormal,
    Rare,
}

impl Noise {
    const ALL: [Self; 4] = [Self::Normal, Self::StudentT3, Self::Lognormal, Self::Rare];

    fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::StudentT3 => "Student's t, 3 degrees",
            Self::Lognormal => "normal × lognormal size",
            Self::Rare => "nine tenths in 5 % of samples",
        }
    }

    /// What the noise of a sample is multiplied by.
    fn size(self, rng: &mut StdRng) -> f64 {
        match self {
            Self::Normal => 1.0,
            Self::StudentT3 => (0..3)
                .map(|_| normal(rng).powi(2))
                .sum::<f64>()
                .sqrt()
                .recip(),
            Self::Lognormal => (normal(rng) - 1.0).exp(),
            Self::Rare if rng.random::<f64>() < 0.05 => (0.9f64 / 0.05).sqrt(),
            Self::Rare => (0.1f64 / 0.95).sqrt(),
        }
    }
}

fn noise_scales(runs: usize) -> String {
    const ELEMENTS: usize = 60;
    let device = Device::flex();
    let mut table = "Noise scale B: its 95 % interval\n\n\
                     | noise | samples | B | holds B | no upper end | B ± s.e. is given | and 1.96 s.e. hold B |\n\
                     |---|---|---|---|---|---|---|\n"
        .to_owned();
    for noise in Noise::ALL {
        for samples in [64, 256] {
            for scale in [1.0, 30.0, 1000.0] {
                let (mut inside, mut open, mut given, mut held) = (0, 0, 0, 0);
                for run in 0..runs {
                    let mut rng = StdRng::seed_from_u64(run as u64);
                    // Elements of unlike size, as a model's are.
                    let deviation = |k: usize| 1.0 / (1.0 + k as f64).sqrt();
                    let trace: f64 = (0..ELEMENTS).map(|k| deviation(k).powi(2)).sum();
                    let mean = (trace / scale / ELEMENTS as f64).sqrt();
                    let mut rows = Vec::with_capacity(samples * ELEMENTS);
                    for _ in 0..samples {
                        let size = noise.size(&mut rng);
                        let row =
                            (0..ELEMENTS).map(|k| mean + size * deviation(k) * normal(&mut rng));
                        rows.extend(row.map(|g| g as f32));
                    }
                    let rows = TensorData::new(rows, [samples, ELEMENTS]);
                    let ids = (0..samples).map(|i| Sample::new(i.to_string(), 1).expect("a token"));
                    let mut gradients = GradientBatch::new(ids.collect());
                    gradients.insert("w", SampleGradient::full(Tensor::from_data(rows, &device)));
                    let mut moments = NoiseScaleConfig::new().init().expect("moments");
                    moments.push_batch("task", gradients).expect("gradients");
                    let found = moments.read().expect("sums").expect("samples");
                    let interval = found.interval.expect("an interval");
                    let below = interval.at_most.is_none_or(|at_most| scale <= at_most);
                    inside += usize::from(interval.at_least <= scale && below);
                    open += usize::from(interval.at_most.is_none());
                    if let Some(estimate) = found.scale {
                        let error = estimate.standard_error.expect("an error");
                        given += 1;
                        held += usize::from((estimate.value - scale).abs() <= 1.96 * error);
                    }
                }
                table += &format!(
                    "| {} | {samples} | {scale} | {} | {} | {} | {} |\n",
                    noise.name(),
                    percent(inside, runs),
                    percent(open, runs),
                    percent(given, runs),
                    if given > 0 {
                        percent(held, given)
                    } else {
                        "–".into()
                    }
                );
            }
        }
    }
    table
}
