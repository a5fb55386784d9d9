//! The signs of mean scores: how often they are resolved where there is none, how often intervals hold
//! the truth, and what is found.

use std::fmt::Write;

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::{AttentionConfig, Block, HeadLayout};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::damping::Ridge;
use fisher_metrics::interference::{
    InterferenceConfig, InterferenceReport, Pool, Significance, Variant, Verdict,
};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// Two heads of a layer this wide: eight cells of eight elements.
const WIDTH: usize = 4;
const ELEMENTS: usize = 4 * WIDTH * WIDTH;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Noise {
    Normal,
    Heavy,
    Skewed,
    LogNormal,
}

impl Noise {
    fn draw(self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Self::Normal => normal(rng),
            // Student's with three degrees of freedom.
            Self::Heavy => {
                let chi: f64 = (0..3).map(|_| normal(rng).powi(2)).sum();
                normal(rng) / chi.sqrt()
            }
            Self::Skewed => -(1.0 - rng.random::<f64>()).ln() - 1.0,
            Self::LogNormal => (normal(rng).exp() - 0.5f64.exp()) / 2.161,
        }
    }
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let [u, v]: [f64; 2] = [rng.random(), rng.random()];
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// How the gradients of a task come about: `T μ + √T noise`, times a factor.
#[derive(Clone, Copy)]
struct Task<'a> {
    samples: usize,
    tokens: u64,
    noise: Noise,
    loss: f64,
    mean: &'a dyn Fn(usize) -> f64,
    /// All noise along one direction.
    low_rank: bool,
    /// So many samples share nine tenths of their noise's variance, and whether they say so.
    clusters: (usize, bool),
}

impl<'a> Task<'a> {
    fn new(samples: usize, noise: Noise, mean: &'a dyn Fn(usize) -> f64) -> Self {
        Self {
            samples,
            tokens: 12,
            noise,
            loss: 1.0,
            mean,
            low_rank: false,
            clusters: (1, false),
        }
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<(Sample, Vec<f64>)> {
        let t = self.tokens as f64;
        let (size, named) = self.clusters;
        let mut shared = vec![0.0; ELEMENTS];
        let sample = |i: usize| {
            if size > 1 && i.is_multiple_of(size) {
                shared.fill_with(|| self.noise.draw(rng));
            }
            let along = self.noise.draw(rng);
            let values = (0..ELEMENTS).map(|e| {
                let noise = match (self.low_rank, size > 1) {
                    (true, _) => along * (1.0 + e as f64).cos(),
                    (_, true) => 0.9f64.sqrt() * shared[e] + 0.1f64.sqrt() * self.noise.draw(rng),
                    _ => self.noise.draw(rng),
                };
                self.loss * (t * (self.mean)(e) + t.sqrt() * noise)
            });
            let values = values.collect();
            let sample = Sample::new(format!("{i}"), self.tokens).expect("tokens");
            match named {
                true => (sample.with_cluster(format!("{}", i / size)), values),
                false => (sample, values),
            }
        };
        (0..self.samples).map(sample).collect()
    }
}

fn store(tasks: [Vec<(Sample, Vec<f64>)>; 2]) -> GradientStore {
    let matrix = |name: &str| {
        let path = format!("attention.{name}.weight");
        Parameter::new(path, [WIDTH, WIDTH], Role::Matrix, Orientation::InputOutput)
    };
    let catalogue = ["query", "key", "value", "output"].map(matrix).to_vec();
    let catalogue = Catalogue::new(catalogue).expect("parameters");
    let heads = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("a layout");
    let store = GradientStoreConfig::new(1 << 28).init_for(&catalogue, "made".into());
    let mut store = store.expect("a store").with_heads(heads);
    for (name, task) in ["a", "b"].into_iter().zip(tasks) {
        let samples: Vec<Sample> = task.iter().map(|(sample, _)| sample.clone()).collect();
        let mut batch = GradientBatch::new(samples);
        for (p, parameter) in catalogue.parameters().iter().enumerate() {
            let n = WIDTH * WIDTH;
            let rows = task.iter().flat_map(|(_, g)| &g[p * n..(p + 1) * n]);
            let rows: Vec<f32> = rows.map(|g| *g as f32).collect();
            let data = TensorData::new(rows, [task.len(), n]);
            let tensor = Tensor::<2>::from_data(data, &Device::flex());
            batch.insert(parameter.path(), Gradient::token_sum(tensor));
        }
        store.push(name, &batch).expect("gradients");
    }
    store.with_device(&Device::flex())
}

const WAYS: [(&str, Variant, Pool); 4] = [
    ("signed, pool A", Variant::Signed, Pool::A),
    ("signed, pooled", Variant::Signed, Pool::Pooled),
    ("full, pool A", Variant::Full, Pool::A),
    ("full, pooled", Variant::Full, Pool::Pooled),
];

fn run(store: &GradientStore, variant: Variant, pool: Pool) -> InterferenceReport {
    let config = InterferenceConfig::new()
        .with_variant(variant)
        .with_pool(pool)
        .with_ridge(Ridge::new().with_ridge(1e-30).with_epsilon(1e-30))
        .with_progress(false);
    let interference = config.init().expect("settings");
    interference.forward(store, ["a", "b"]).expect("a report")
}

fn tests(report: &InterferenceReport) -> impl Iterator<Item = Significance> {
    report.slices.iter().filter_map(|slice| slice.significance)
}

pub(crate) fn tables(runs: usize) -> Vec<String> {
    vec![nulls(runs), coverage(runs), power(runs)]
}

/// Tasks whose mean gradients are orthogonal.
fn nulls(runs: usize) -> String {
    let none = |_: usize| 0.0;
    let even = |e: usize| if e.is_multiple_of(2) { 0.3 } else { 0.0 };
    let odd = |e: usize| if e.is_multiple_of(2) { 0.0 } else { 0.3 };
    let large = |e: usize| if e.is_multiple_of(2) { 0.0 } else { 3.0 };
    let task = |n, noise, mean| Task::new(n, noise, mean);
    use Noise::{Heavy, LogNormal, Normal, Skewed};
    let pair = |n, m, noise| {
        [
            task(n, noise, &even as &dyn Fn(usize) -> f64),
            task(m, noise, &odd),
        ]
    };
    let [mut doubled, mut low, mut silent, mut named] = [
        pair(16, 16, Normal),
        pair(16, 16, Normal),
        pair(32, 32, Normal),
        pair(32, 32, Normal),
    ];
    (doubled[1].tokens, doubled[1].loss) = (20, 2.0);
    low.iter_mut().for_each(|task| task.low_rank = true);
    silent
        .iter_mut()
        .for_each(|task| task.clusters = (4, false));
    named.iter_mut().for_each(|task| task.clusters = (4, true));
    let cases = [
        (
            "no mean, normal, 16 and 16",
            [
                task(16, Normal, &none as &dyn Fn(usize) -> f64),
                task(16, Normal, &none),
            ],
        ),
        ("orthogonal, normal, 16 and 16", pair(16, 16, Normal)),
        ("orthogonal, normal, 48 and 48", pair(48, 48, Normal)),
        ("orthogonal, normal, 8 and 32", pair(8, 32, Normal)),
        ("orthogonal, t3, 16 and 16", pair(16, 16, Heavy)),
        ("orthogonal, exponential, 16 and 16", pair(16, 16, Skewed)),
        ("orthogonal, exponential, 48 and 48", pair(48, 48, Skewed)),
        ("orthogonal, lognormal, 16 and 16", pair(16, 16, LogNormal)),
        (
            "the same, B's mean ten times its noise",
            [task(16, LogNormal, &even), task(16, LogNormal, &large)],
        ),
        ("orthogonal, normal, T 12 and 20, loss doubled", doubled),
        ("orthogonal, noise of rank 1", low),
        ("orthogonal, clusters of 4 not named", silent),
        ("orthogonal, clusters of 4 named", named),
    ];
    let mut text = String::from(
        "**Cells whose mean is 0**: share with p ≤ 0.05, and of runs with any of eight cells resolved \
         (q ≤ 0.05)\n\n| tasks |",
    );
    for (name, ..) in WAYS {
        let _ = write!(text, " {name} | any |");
    }
    text += &format!("\n|---|{}", "--:|".repeat(2 * WAYS.len()));
    for (at, (name, tasks)) in cases.iter().enumerate() {
        let mut counts = [[0usize; 3]; WAYS.len()];
        for seed in 0..runs {
            let rng = &mut ChaCha8Rng::seed_from_u64((1000 * at + 7_000_000 + seed) as u64);
            let store = store(tasks.map(|task| task.draw(rng)));
            for (counts, (_, variant, pool)) in counts.iter_mut().zip(WAYS) {
                let report = run(&store, variant, pool);
                let low = tests(&report).filter(|test| test.p <= 0.05).count();
                let any = tests(&report).any(|test| test.resolved());
                *counts = [
                    counts[0] + low,
                    counts[1] + tests(&report).count(),
                    counts[2] + usize::from(any),
                ];
            }
        }
        let _ = write!(text, "\n| {name} |");
        for [low, tested, any] in counts {
            let _ = write!(
                text,
                " {:.3} | {:.3} |",
                low as f64 / tested.max(1) as f64,
                any as f64 / runs as f64
            );
        }
    }
    text
}

/// Tasks that agree in some elements and not in others: the mean over pools is known for normal noise.
fn coverage(runs: usize) -> String {
    let means = [
        |e: usize| 0.3 * (e as f64).sin(),
        |e: usize| 0.3 * (e as f64 + 0.7).sin(),
    ];
    let mut text = String::from(
        "**Intervals of 95 %** of the signed mean: how often they hold ⟨E g_A, E g_B⟩ over E Î\n\n\
         | samples | noise | pool A | pooled |\n|---|---|--:|--:|",
    );
    for (n, m) in [(8, 8), (16, 16), (8, 32), (48, 48)] {
        for (noise, name, variance) in [
            (Noise::Normal, "normal", 1.0),
            (Noise::Skewed, "exponential", 1.0),
            (Noise::LogNormal, "lognormal", 1.0),
        ] {
            let mut held = [[0usize; 2]; 2];
            for seed in 0..runs {
                let rng = &mut ChaCha8Rng::seed_from_u64((8_000_000 + 1000 * n + seed) as u64);
                let tasks = [
                    Task::new(n, noise, &means[0] as &dyn Fn(usize) -> f64),
                    Task::new(m, noise, &means[1]),
                ];
                let store = store(tasks.map(|task| task.draw(rng)));
                for (held, pool) in held.iter_mut().zip([Pool::A, Pool::Pooled]) {
                    let report = run(&store, Variant::Signed, pool);
                    // Q's two heads are its columns 0, 1 and 2, 3.
                    for head in 0..2 {
                        let slice = report.slice(Block::Q, 0, head).expect("a slice");
                        let Some(found) = slice.significance else {
                            continue;
                        };
                        let truth = truth(&means, variance, pool, head);
                        let interval = found.test.at_level(0.95).expect("a level").interval;
                        held[0] += usize::from(interval[0] <= truth && truth <= interval[1]);
                        held[1] += 1;
                    }
                }
            }
            let [a, pooled] = held.map(|[held, all]| held as f64 / all.max(1) as f64);
            let _ = write!(text, "\n| {n} and {m} | {name} | {a:.3} | {pooled:.3} |");
        }
    }
    text
}

fn truth(means: &[fn(usize) -> f64; 2], variance: f64, pool: Pool, head: usize) -> f64 {
    let t = 12.0;
    let elements = (0..WIDTH).flat_map(|row| (0..2).map(move |c| row * WIDTH + 2 * head + c));
    let term = |e: usize| {
        let [a, b] = [means[0](e), means[1](e)];
        let fisher = |mean: f64| t * mean * mean + variance;
        let scale = match pool {
            Pool::A => fisher(a),
            _ => 0.5 * (fisher(a) + fisher(b)),
        };
        t * t * a * b / scale
    };
    elements.map(term).sum::<f64>() / (2 * WIDTH) as f64
}

/// One cell of eight in which the tasks are opposed.
fn power(runs: usize) -> String {
    let mut text = String::from(
        "**One opposed cell of eight**, mean gradient of a token ± size beside noise of 1 (12 tokens a \
         sample): how often it is called a conflict, and how often any other cell is resolved\n\n\
         | samples | noise | size |",
    );
    for (name, ..) in WAYS {
        let _ = write!(text, " {name} | other |");
    }
    text += &format!("\n|---|---|--:|{}", "--:|".repeat(2 * WAYS.len()));
    for n in [8, 16, 48] {
        for (noise, name) in [
            (Noise::Normal, "normal"),
            (Noise::Heavy, "t3"),
            (Noise::Skewed, "exponential"),
        ] {
            for size in [0.1, 0.3] {
                let planted = |e: usize| e < WIDTH * WIDTH && e % WIDTH < 2;
                let up = |e: usize| if planted(e) { size } else { 0.0 };
                let down = |e: usize| if planted(e) { -size } else { 0.0 };
                let tasks = [
                    Task::new(n, noise, &up as &dyn Fn(usize) -> f64),
                    Task::new(n, noise, &down),
                ];
                let mut counts = [[0usize; 2]; WAYS.len()];
                for seed in 0..runs {
                    let rng = &mut ChaCha8Rng::seed_from_u64((9_000_000 + seed) as u64);
                    let store = store(tasks.map(|task| task.draw(rng)));
                    for (counts, (_, variant, pool)) in counts.iter_mut().zip(WAYS) {
                        let report = run(&store, variant, pool);
                        let mut others = report.slices[1..].iter();
                        let first = report.slices[0].significance.map(|s| s.verdict);
                        counts[0] += usize::from(first == Some(Verdict::Conflict));
                        let other = others.any(|s| s.significance.is_some_and(|s| s.resolved()));
                        counts[1] += usize::from(other);
                    }
                }
                let _ = write!(text, "\n| {n} and {n} | {name} | {size} |");
                for counts in counts {
                    let [found, other] = counts.map(|count| count as f64 / runs as f64);
                    let _ = write!(text, " {found:.3} | {other:.3} |");
                }
            }
        }
    }
    text
}
