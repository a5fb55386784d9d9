//! Conflicts that are known: they are planted, a network is trained, and what is found is held against the truth.

use std::collections::BTreeSet;
use std::error::Error;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::tanh};
use clap::Parser;
use fisher_core::clusters::clustered_mean;
use fisher_core::moments::IntervalMethod;
use fisher_examples::device::Backend;
use fisher_metrics::conflicts::{PairOrder, Verdict};
use fisher_train::apply::TransferConfig;
use fisher_train::prelude::*;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// Two tasks share their inputs, want opposite answers on a known part of them and the same elsewhere; two more have
/// nothing to do with each other. One network learns all four. Which samples conflict is then read off its
/// gradients, compared with what was planted, and tried: without the samples found, is the other task learnt
/// better than without as many at random?
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    device: Backend,
    /// The first seed of data and weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..))]
    seeds: u64,
    /// Two seeds and little training
    #[arg(long)]
    quick: bool,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Inputs of the tasks that share theirs, of the third and of the fourth, side by side.
const INPUTS: usize = 6;
/// Outputs: a pair for the tasks that share their inputs, one for the third, one for the fourth.
const OUTPUTS: usize = 6;
const TASKS: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

/// Samples with their answers.
#[derive(Clone, Debug)]
struct Batch {
    inputs: Tensor<2>,
    /// 0 for outputs of the sample's task, far below for those of others.
    mask: Tensor<2>,
    answers: Tensor<1, Int>,
    ids: Vec<String>,
}

#[derive(Module, Debug)]
struct Network {
    hidden: Linear,
    output: Linear,
}

impl Network {
    fn new(device: &Device) -> Self {
        Self {
            hidden: LinearConfig::new(3 * INPUTS, 32).init(device),
            output: LinearConfig::new(32, OUTPUTS).init(device),
        }
    }
}

sample_loss!(Network, Batch { inputs, mask, answers; ids }, |model, batch| {
    let hidden = tanh(model.hidden.forward(batch.inputs.clone()));
    let outputs = model.output.forward(hidden) + batch.mask.clone();
    SampleLosses::classification(outputs, batch.answers.clone())
});

/// One sample: inputs, answer, and whether the other task wants another.
#[derive(Clone, Debug)]
struct Item {
    id: usize,
    inputs: [f32; 3 * INPUTS],
    answer: i64,
    planted: bool,
}

fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// Samples of all four tasks. Where the first input is above 0.8, alpha wants 1 and beta 0.
fn draw(count: usize, weights: &[f32; INPUTS], rng: &mut StdRng) -> [Vec<Item>; 4] {
    let mut tasks: [Vec<Item>; 4] = Default::default();
    for id in 0..count {
        for (block, of) in [(0, [0, 1]), (1, [2, 2]), (2, [3, 3])] {
            let drawn: [f32; INPUTS] = std::array::from_fn(|_| normal(rng));
            let mut inputs = [0.0; 3 * INPUTS];
            inputs[block * INPUTS..][..INPUTS].copy_from_slice(&drawn);
            let sum: f32 = drawn.iter().zip(weights).map(|(x, w)| x * w).sum();
            let planted = block == 0 && drawn[0] > 0.8;
            for task in of {
                let answer = match (planted, task) {
                    (true, 0) => 1,
                    (true, _) => 0,
                    (false, _) => 2 * block as i64 + i64::from(sum > 0.0),
                };
                if tasks[task].last().is_none_or(|last| last.id != id) {
                    tasks[task].push(Item {
                        id,
                        inputs,
                        answer,
                        planted,
                    });
                }
            }
        }
    }
    tasks
}

fn batch(items: &[Item], device: &Device) -> Batch {
    let inputs: Vec<f32> = items.iter().flat_map(|item| item.inputs).collect();
    let other = |item: &Item, output: usize| output as i64 / 2 != item.answer / 2;
    let mask = items.iter().flat_map(|item| {
        (0..OUTPUTS).map(|output| if other(item, output) { -1e4f32 } else { 0.0 })
    });
    let mask = TensorData::new(mask.collect::<Vec<_>>(), [items.len(), OUTPUTS]);
    let answers: Vec<i64> = items.iter().map(|item| item.answer).collect();
    Batch {
        inputs: Tensor::from_data(TensorData::new(inputs, [items.len(), 3 * INPUTS]), device),
        mask: Tensor::from_data(mask, device),
        answers: Tensor::from_ints(answers.as_slice(), device),
        ids: items.iter().map(|item| item.id.to_string()).collect(),
    }
}

/// Train on all tasks at once.
fn train(fresh: &Network, tasks: &[&[Item]], steps: usize, device: &Device) -> Network {
    let all: Vec<Item> = tasks
        .iter()
        .flat_map(|items| items.iter().cloned())
        .collect();
    let all = batch(&all, device);
    let mut model = fresh.clone();
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.05).init();
    for _ in 0..steps {
        let loss = model.sample_losses(&all).means().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-2, model, gradients);
    }
    model
}

/// Mean loss.
fn loss(model: &Network, items: &[Item], device: &Device) -> f64 {
    let losses = model.sample_losses(&batch(items, device)).means().mean();
    losses.into_scalar()
}

/// What one seed gave.
struct Found {
    /// Pairs planted, called, and both.
    pairs: [usize; 3],
    /// Of the pairs planted, those with a cosine of −0.5 or less in a layer; and how many of them were called.
    strong: [usize; 2],
    /// Samples of alpha planted, flagged, and both.
    samples: [usize; 3],
    /// Conflicts and opposed slices of the tasks that have nothing to do with each other.
    unrelated: [usize; 2],
    /// Test loss of beta: trained on everything, without the flagged samples, without as many at random.
    losses: [f64; 3],
    /// Change of beta's losses by a small step on alpha: predicted, measured with its interval.
    transfer: (f64, f64, [f64; 2]),
}

fn experiment(seed: u64, steps: usize, device: &Device, bar: &ProgressBar) -> Result<Found> {
    let rng = &mut StdRng::seed_from_u64(seed);
    device.seed(seed);
    let fresh = Network::new(device);
    let weights = std::array::from_fn(|_| normal(rng));
    let [learnt, test] = [200, 1000].map(|count| draw(count, &weights, rng));
    let [alpha, beta, gamma, delta] = learnt.each_ref().map(|items| &items[..]);
    let model = train(&fresh, &[alpha, beta, gamma, delta], steps, device);
    bar.inc(1);

    let mut store = GradientStoreConfig::new(1 << 30).init(&model)?;
    let paths: Vec<String> = store
        .catalogue()
        .parameters()
        .iter()
        .map(|p| p.path().into())
        .collect();
    let mut capture = CaptureConfig::new().init(&model, paths.iter().map(String::as_str))?;
    for (task, items) in TASKS.into_iter().zip(&learnt) {
        capture.accumulate(&batch(items, device), task, &mut store)?;
    }
    // By what a step on one sample does to the other: samples that the network knows weigh nothing.
    let config = ConflictsConfig::new()
        .with_by(SliceBy::Layer)
        .with_order(PairOrder::Product)
        .with_listed(usize::MAX)
        .with_keep_pairs(true)
        .with_progress(false)
        .with_seed(seed);
    let conflicts = config.init()?;
    let report = conflicts.forward(&store, [TASKS[0], TASKS[1]])?;
    let unrelated = conflicts.forward(&store, [TASKS[2], TASKS[3]])?;
    if seed == 0 {
        bar.suspend(|| println!("{report}\n\n{unrelated}\n"));
    }

    let number = |id: &str| id.parse::<usize>();
    let called = report
        .conflicts
        .iter()
        .map(|c| Ok((number(&c.a.id)?, number(&c.b.id)?)));
    let called: BTreeSet<(usize, usize)> = called.collect::<Result<_>>()?;
    let planted: BTreeSet<usize> = alpha
        .iter()
        .filter(|item| item.planted)
        .map(|item| item.id)
        .collect();
    let both = called
        .iter()
        .filter(|(a, b)| planted.contains(a) && planted.contains(b));
    let mut strong = BTreeSet::new();
    for pairs in report
        .slices
        .iter()
        .filter_map(|slice| slice.pairs.as_ref())
    {
        for (a, row) in pairs.a.iter().zip(&pairs.cosine) {
            for (b, cosine) in pairs.b.iter().zip(row) {
                let pair = (number(a)?, number(b)?);
                if *cosine <= -0.5 && planted.contains(&pair.0) && planted.contains(&pair.1) {
                    strong.insert(pair);
                }
            }
        }
    }
    let flagged: BTreeSet<usize> = called.iter().map(|(a, _)| *a).collect();
    let mut random: Vec<usize> = (0..alpha.len()).collect();
    random.shuffle(rng);
    let random: BTreeSet<usize> = random.into_iter().take(flagged.len()).collect();
    let without = |out: &BTreeSet<usize>| {
        let rest: Vec<Item> = alpha
            .iter()
            .filter(|item| !out.contains(&item.id))
            .cloned()
            .collect();
        let model = train(&fresh, &[&rest, beta, gamma, delta], steps, device);
        bar.inc(1);
        loss(&model, &test[1], device)
    };
    let transfer = TransferConfig::new(1e-2).init()?;
    let [a, b] = [alpha, beta].map(|items| [batch(items, device)]);
    let transfer = transfer.forward(&model, &a, &b)?;
    Ok(Found {
        pairs: [planted.len().pow(2), called.len(), both.count()],
        strong: [strong.len(), strong.intersection(&called).count()],
        samples: [
            planted.len(),
            flagged.len(),
            flagged.intersection(&planted).count(),
        ],
        unrelated: [unrelated.total, unrelated.count(Verdict::Opposed)],
        losses: [
            loss(&model, &test[1], device),
            without(&flagged),
            without(&random),
        ],
        transfer: (
            transfer.predicted.mean,
            transfer.measured.mean,
            transfer.measured.interval.unwrap_or([f64::NAN; 2]),
        ),
    })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = arguments.device.device()?.autodiff();
    let (seeds, steps) = if arguments.quick {
        (2, 100)
    } else {
        (arguments.seeds, 200)
    };
    let bar = ProgressBar::new(3 * seeds);
    bar.set_style(ProgressStyle::with_template(
        "trainings {wide_bar} {pos}/{len}, {eta} left",
    )?);
    let seeds = arguments.seed..arguments.seed + seeds;
    let found = seeds
        .clone()
        .map(|seed| experiment(seed, steps, &device, &bar));
    let found: Vec<Found> = found.collect::<Result<_>>()?;
    bar.finish_and_clear();

    let share = |part: usize, all: usize| match all {
        0 => "–".to_owned(),
        all => format!("{:.0} %", 100.0 * part as f64 / all as f64),
    };
    println!(
        "alpha against beta: found of what was planted (recall), planted of what was found (precision)\n"
    );
    println!(
        "{:4}  {:^41}   {:^31}\nseed  planted  strong   found  recall (strong)  precision   planted  found  recall  precision",
        "", "pairs of samples", "samples of alpha"
    );
    for (seed, of) in seeds.clone().zip(&found) {
        let [p, c, b] = of.pairs;
        let [q, d, e] = of.samples;
        let [f, g] = of.strong;
        println!(
            "{seed:>4}  {p:>7} {f:>7} {c:>7}  {:>6}  {:>7}  {:>9}   {q:>7} {d:>6}  {:>6}  {:>9}",
            share(b, p),
            share(g, f),
            share(b, c),
            share(e, q),
            share(e, d)
        );
    }
    let sum = |of: &dyn Fn(&Found) -> usize| found.iter().map(of).sum::<usize>();
    println!(
        "\ngamma against delta, which share nothing but the network: {} conflicting pairs, {} opposed layers of {}",
        sum(&|f| f.unrelated[0]),
        sum(&|f| f.unrelated[1]),
        2 * found.len()
    );
    println!(
        "\nbeta's loss by a step on alpha (0.01 of its mean gradient): change a sample, mean over samples"
    );
    println!("seed    predicted    measured   95 % interval");
    for (seed, of) in seeds.clone().zip(&found) {
        let (predicted, measured, [low, high]) = of.transfer;
        println!("{seed:>4}  {predicted:>+11.2e} {measured:>+11.2e}   {low:+.2e} … {high:+.2e}");
    }
    println!("\nbeta's loss on a thousand other samples, trained");
    println!("seed   on everything   without those found   without as many at random");
    for (seed, of) in seeds.zip(&found) {
        let [all, without, random] = of.losses;
        println!("{seed:>4}  {all:>14.3} {without:>21.3} {random:>27.3}");
    }
    let gains: Vec<f64> = found.iter().map(|of| of.losses[2] - of.losses[1]).collect();
    let seeds: Vec<usize> = (0..gains.len()).collect();
    let gain = clustered_mean(&gains, &seeds);
    let interval = gain.interval(0.95, IntervalMethod::StudentT)?;
    let said = match &interval {
        Some(of) if of.lower > 0.0 => format!("lowers beta's loss by {:.3} more than", gain.mean),
        Some(of) if of.upper < 0.0 => format!("raises beta's loss by {:.3} more than", -gain.mean),
        _ => format!("changes beta's loss by {:+.3} beside", -gain.mean),
    };
    let interval = interval.map(|of| format!("95 % interval {:.3} … {:.3}", of.lower, of.upper));
    println!(
        "\nLeaving out what was found {said} leaving out as many at random (gain: {}, {} seeds, paired).",
        interval.unwrap_or_else(|| "no interval of one seed".into()),
        gains.len()
    );
    Ok(())
}
