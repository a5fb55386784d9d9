//! Steps and seconds until a task is learnt: natural gradients against AdamW and momentum, each at its best rate.
//!
//! `cargo bench -p fisher-examples --bench natural-gradient -- --help`

use std::time::Instant;

use burn::data::dataloader::batcher::Batcher;
use burn::module::Module;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Tensor};
use clap::Parser;
use fisher_core::factors::Positions;
use fisher_examples::digits::{Classifier, DigitBatcher, Digits, draw};
use fisher_examples::model::{CausalTransformer, CausalTransformerConfig};
use fisher_examples::tasks::{CONTEXT, Data, Item, TaskBatch, TaskBatcher, VOCABULARY};
use fisher_examples::training::marks;
use fisher_metrics::damping::Damping;
use fisher_train::apply::{NaturalGradient, NaturalGradientConfig};
use fisher_train::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;

/// Train the same models from the same weights on the same batches until held-out samples are right, and count steps.
#[derive(Parser, Debug)]
struct Arguments {
    /// Seeds of weights, data and batches
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Seeds for the choice of rates
    #[arg(long, default_value_t = 2)]
    tuning: u64,
    /// Steps at most
    #[arg(long, default_value_t = 1500)]
    steps: usize,
    /// `digits`, `induction`, or both
    #[arg(long)]
    only: Option<String>,
    /// Optimizers, by their first letters: all without
    #[arg(long)]
    method: Option<String>,
    /// λ of natural gradients, as a multiple of the mean eigenvalue
    #[arg(long, default_value_t = 0.1)]
    damping: f64,
    /// The longest a natural gradient may be
    #[arg(long, default_value_t = 1.0)]
    radius: f64,
    /// Momentum of natural gradients
    #[arg(long, default_value_t = 0.0)]
    momentum: f64,
    /// Steps between observations
    #[arg(long, default_value_t = 1)]
    observe: usize,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is learnt.
trait Subject {
    type Model: SampleLoss;

    fn name(&self) -> &'static str;
    fn fresh(&self, seed: u64) -> Self::Model;
    /// Batch `step`, the same for every optimizer.
    fn batch(&self, seed: u64, step: usize) -> <Self::Model as SampleLoss>::Batch;
    /// A part of it, that the Fisher is taken of.
    fn part(&self, seed: u64, step: usize) -> <Self::Model as SampleLoss>::Batch;
    /// The share of held-out samples that are right.
    fn accuracy(&self, model: &Self::Model) -> f64;
    fn positions(&self) -> Positions;
    /// What counts as learnt.
    fn learnt(&self) -> f64;
}

#[derive(Clone, Copy)]
enum Method {
    AdamW,
    Momentum,
    Natural,
}

impl Method {
    const ALL: [Self; 3] = [Self::AdamW, Self::Momentum, Self::Natural];

    fn name(self) -> &'static str {
        match self {
            Self::AdamW => "AdamW",
            Self::Momentum => "momentum 0.9",
            Self::Natural => "natural",
        }
    }

    fn rates(self) -> &'static [f64] {
        match self {
            Self::AdamW => &[1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
            Self::Momentum => &[1e-2, 3e-2, 1e-1, 3e-1],
            Self::Natural => &[1e-2, 3e-2, 1e-1, 3e-1],
        }
    }

    fn optimizer(self, arguments: &Arguments) -> ModuleOptimizer {
        let share = match self {
            Self::Natural => arguments.momentum,
            _ => 0.9,
        };
        let momentum = MomentumConfig::new()
            .with_momentum(share)
            .with_dampening(0.0);
        match self {
            Self::AdamW => AdamWConfig::new()
                .with_beta_2(0.98)
                .with_weight_decay(0.0)
                .init(),
            Self::Momentum | Self::Natural => SgdConfig::new().with_momentum(Some(momentum)).init(),
        }
    }
}

/// Steps between looks at held-out samples.
const LOOK: usize = 5;

struct Run {
    /// Until learnt.
    steps: Option<usize>,
    accuracy: f64,
    /// A step takes so long.
    seconds: f64,
}

fn train<S: Subject>(
    subject: &S,
    method: Method,
    rate: f64,
    seed: u64,
    arguments: &Arguments,
) -> Run {
    let most = arguments.steps;
    let mut model = subject.fresh(seed);
    let mut optimizer = method.optimizer(arguments);
    let mut natural: Option<NaturalGradient> = matches!(method, Method::Natural).then(|| {
        let config = NaturalGradientConfig::new()
            .with_positions(subject.positions())
            .with_damping(Damping::Relative(arguments.damping))
            .with_radius(Some(arguments.radius));
        config
            .init(method.optimizer(arguments), &model)
            .expect("settings")
    });
    let (mut seconds, mut accuracy) = (0.0, 0.0);
    for step in 0..most {
        let batch = subject.batch(seed, step);
        let part =
            (natural.is_some() && step % arguments.observe == 0).then(|| subject.part(seed, step));
        let start = Instant::now();
        if let (Some(natural), Some(part)) = (&mut natural, part) {
            // A model that has gone astray may have no gradients to tell: what was seen before stays.
            if let Err(error) = natural.observe(&model, &part) {
                eprintln!("step {step} at rate {rate}: {error}");
            }
        }
        let loss: Tensor<1> = model.sample_losses(&batch).means().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = match &mut natural {
            Some(natural) => match natural.step(rate, model, gradients) {
                Ok(model) => model,
                Err(error) => {
                    eprintln!("step {step} at rate {rate}: {error}");
                    break;
                }
            },
            None => optimizer.step(rate, model, gradients),
        };
        seconds += start.elapsed().as_secs_f64();
        if (step + 1) % LOOK == 0 {
            accuracy = subject.accuracy(&model);
            if accuracy >= subject.learnt() {
                return Run {
                    steps: Some(step + 1),
                    accuracy,
                    seconds: seconds / (step + 1) as f64,
                };
            }
        }
    }
    Run {
        steps: None,
        accuracy,
        seconds: seconds / most as f64,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn race<S: Subject>(subject: &S, arguments: &Arguments) {
    println!(
        "\n{}: steps until {:.0} % of held-out samples are right\n",
        subject.name(),
        100.0 * subject.learnt()
    );
    println!(
        "| optimizer | rate | steps: median [range] of {} seeds | not learnt | ms a step | seconds |",
        arguments.seeds
    );
    println!("|---|--:|--:|--:|--:|--:|");
    let wanted = |method: &Method| {
        let asked = arguments.method.as_deref();
        asked.is_none_or(|asked| method.name().to_lowercase().starts_with(asked))
    };
    for method in Method::ALL.into_iter().filter(wanted) {
        // Rates are chosen on seeds of their own.
        let of_rate = |rate: f64| {
            let seeds = 1000..1000 + arguments.tuning;
            let runs = seeds.map(|seed| train(subject, method, rate, seed, arguments));
            let cost = runs.map(|run| match run.steps {
                Some(steps) => steps as f64,
                None => arguments.steps as f64 * (2.0 - run.accuracy),
            });
            let cost: f64 = cost.sum::<f64>() / arguments.tuning as f64;
            eprintln!("{} {} at {rate}: {cost:.0}", subject.name(), method.name());
            cost
        };
        let costs: Vec<(f64, f64)> = method
            .rates()
            .iter()
            .map(|&rate| (of_rate(rate), rate))
            .collect();
        let best = costs.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0));
        let (_, rate) = best.expect("rates");
        let seeds = 0..arguments.seeds;
        let runs: Vec<Run> = seeds
            .map(|seed| train(subject, method, rate, seed, arguments))
            .collect();
        let steps: Vec<f64> = runs
            .iter()
            .map(|run| run.steps.map_or(f64::INFINITY, |s| s as f64))
            .collect();
        let ends = [f64::min, f64::max].map(|of| steps.iter().copied().reduce(of).expect("seeds"));
        let step = median(runs.iter().map(|run| run.seconds).collect());
        let middle = median(steps.clone());
        println!(
            "| {} | {rate} | {middle} [{}, {}] | {} | {:.1} | {:.1} |",
            method.name(),
            ends[0],
            ends[1],
            steps.iter().filter(|s| s.is_infinite()).count(),
            1e3 * step,
            middle * step
        );
    }
}

struct Reading {
    device: Device,
    train: Vec<fisher_examples::digits::Digit>,
    test: Digits,
}

/// Of `all` items, those of batch `step`.
fn chosen<T: Clone>(all: &[T], size: usize, seed: u64, step: usize) -> Vec<T> {
    let random = &mut StdRng::seed_from_u64(seed << 32 | step as u64);
    let places = index::sample(random, all.len(), size);
    places.into_iter().map(|at| all[at].clone()).collect()
}

impl Subject for Reading {
    type Model = Classifier;

    fn name(&self) -> &'static str {
        "digits, two convolutions and two linear layers, batch 64"
    }

    fn fresh(&self, seed: u64) -> Classifier {
        self.device.seed(seed);
        Classifier::new(&self.device)
    }

    fn batch(&self, seed: u64, step: usize) -> Digits {
        DigitBatcher.batch(chosen(&self.train, 64, seed, step), &self.device)
    }

    fn part(&self, seed: u64, step: usize) -> Digits {
        self.batch(seed, step)
    }

    fn accuracy(&self, model: &Classifier) -> f64 {
        let model = model.valid();
        let found = model
            .forward(self.test.images.clone())
            .argmax(1)
            .flatten::<1>(0, 1);
        let right = found.equal(self.test.targets.clone()).float();
        right.mean().into_scalar::<f64>()
    }

    fn positions(&self) -> Positions {
        Positions::Expand
    }

    fn learnt(&self) -> f64 {
        0.97
    }
}

struct Tasks {
    device: Device,
    data: Data,
    items: Vec<Item>,
}

impl Subject for Tasks {
    type Model = CausalTransformer;

    fn name(&self) -> &'static str {
        "two tasks, a transformer of 2 layers of width 64, batch 64"
    }

    fn fresh(&self, seed: u64) -> CausalTransformer {
        self.device.seed(seed);
        CausalTransformerConfig::new(VOCABULARY, CONTEXT).init(&self.device)
    }

    fn batch(&self, seed: u64, step: usize) -> TaskBatch {
        TaskBatcher.batch(chosen(&self.items, 64, seed, step), &self.device)
    }

    fn part(&self, seed: u64, step: usize) -> TaskBatch {
        let mut items = chosen(&self.items, 64, seed, step);
        items.truncate(32);
        TaskBatcher.batch(items, &self.device)
    }

    /// Of the task that is learnt less.
    fn accuracy(&self, model: &CausalTransformer) -> f64 {
        let marks = marks(model, &self.data, &self.device).expect("samples");
        marks[0].accuracy.min(marks[1].accuracy)
    }

    fn positions(&self) -> Positions {
        Positions::Expand
    }

    fn learnt(&self) -> f64 {
        0.95
    }
}

fn main() {
    let arguments = Arguments::parse();
    let device = Device::flex().autodiff();
    let wanted = |name: &str| arguments.only.as_deref().is_none_or(|only| only == name);
    if wanted("digits") {
        let random = &mut StdRng::seed_from_u64(77);
        let train = draw(0..10, 2000, random);
        let test = draw(0..10, 1000, random);
        let test = DigitBatcher.batch(test, &device.clone().inner());
        let reading = Reading {
            device: device.clone(),
            train,
            test,
        };
        race(&reading, &arguments);
    }
    if wanted("induction") {
        let data = Data::generate([4000, 200, 0], 77);
        let tasks = Tasks {
            items: data.train.clone(),
            device,
            data,
        };
        race(&tasks, &arguments);
    }
}
