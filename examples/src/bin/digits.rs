//! A small convolutional network learns to read digits in Burn's own training while a hook looks on. It is
//! pruned, and taught new digits with and without elastic weight consolidation.

use std::{error::Error, ops::Range, path::PathBuf, time::Instant};

use burn::data::dataloader::{DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::optim::AdamConfig;
use burn::tensor::Device;
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{ClassificationOutput, InferenceStep, Learner, SupervisedTraining};
use clap::Parser;
use fisher_examples::digits::{Classifier, Digit, DigitBatcher, Digits, draw};
use fisher_examples::{device::Backend, training::progress_bar};
use fisher_train::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

const HALVES: [Range<usize>; 2] = [0..5, 5..10];
const NAMES: [&str; 2] = ["0 to 4", "5 to 9"];

/// Train a network on digits of 8 × 8 dots that this program draws, and look at its Fisher information.
#[derive(Parser, Debug)]
struct Arguments {
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    device: Backend,
    /// Seed of digits, weights and order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for Burn's logs and what hooks write
    #[arg(long, default_value = "out/digits")]
    out: PathBuf,
    /// Few digits and little training
    #[arg(long)]
    quick: bool,
}

/// Digits of both halves, none of them in two sets.
struct School {
    train: [Vec<Digit>; 2],
    probe: [Vec<Digit>; 2],
    test: [Vec<Digit>; 2],
    epochs: usize,
    device: Device,
    arguments: Arguments,
}

type Fallible<T> = Result<T, Box<dyn Error>>;
type Taught = (Classifier, FisherHook<Digits>);

impl School {
    /// Train with Burn. Every 50 batches and at the end a hook takes the Fisher of the probes.
    fn teach(&self, model: Classifier, digits: Vec<Digit>, name: &str) -> Fallible<Taught> {
        let (device, seed) = (self.device.clone().autodiff(), self.arguments.seed);
        let probe = |half: usize| {
            let batch = DigitBatcher.batch(self.probe[half].clone(), &device);
            (NAMES[half].to_owned(), vec![batch])
        };
        let folder = self.arguments.out.join(name);
        let schedule = Schedule::new().with_every_steps(Some(50));
        let hook = HookConfig::new(schedule.with_at_end(true))
            .with_statistics(StatisticsConfig::new())
            .with_folder(Some(folder.clone()))
            .init(&model, HookSource::Probes(vec![probe(0), probe(1)]))?;

        let loader = |digits: Vec<Digit>, device: &Device| {
            let loader = DataLoaderBuilder::new(DigitBatcher).batch_size(64);
            let loader = loader.shuffle(seed).set_device(device.clone());
            loader.build(InMemDataset::new(digits))
        };
        let (train, test) = (digits, self.test.concat());
        let (train, test) = (loader(train, &device), loader(test, &self.device));
        let result = SupervisedTraining::new(folder, train, test)
            .with_training_strategy(hook.strategy())
            .metric_train_numeric(hook.metric(Quantity::Trace(NAMES[0].into())))
            .metrics((AccuracyMetric::new(), LossMetric::new()))
            .with_application_logger(None)
            .renderer(progress_bar())
            .num_epochs(self.epochs)
            .launch(Learner::new(model, AdamConfig::new().init(), 3e-3));
        match result.error {
            Some(error) => Err(error.into()),
            None => Ok((result.model.train(), hook)),
        }
    }

    /// Logits and mean loss of test digits.
    fn test(&self, model: &Classifier, digits: &[Digit]) -> ClassificationOutput {
        let batch = DigitBatcher.batch(digits.to_vec(), &self.device);
        InferenceStep::step(&model.valid(), batch)
    }
}

/// The share of samples whose logit is the largest of `classes`.
fn accuracy(output: &ClassificationOutput, classes: Range<usize>) -> f64 {
    let (first, count) = (classes.start, classes.len());
    let logits = output.output.clone().narrow(1, first, count);
    let guesses = logits.argmax(1).squeeze_dim::<1>(1) + first as i64;
    let right = guesses.equal(output.targets.clone()).float();
    right.mean().into_scalar()
}

/// What the hook saw, and the Fisher of each layer at the end.
fn tell(hook: &FisherHook<Digits>) -> Fallible<()> {
    println!("batches    0 to 4: loss  trace    5 to 9: loss  trace");
    for reading in hook.history().readings() {
        print!("{:>7}", reading.step);
        for task in reading.tasks.values() {
            let [loss, trace] = [task.loss, task.trace].map(|x| x.unwrap_or(f64::NAN));
            print!("  {loss:>14.3} {trace:>6.1}");
        }
        println!();
    }
    let statistics = hook.latest().ok_or("no capture")?;
    let importance = ImportanceConfig::new().init()?;
    println!("\n{}", importance.forward(&statistics, NAMES[0])?);
    Ok(())
}

/// Set the weights with the lowest scores to 0, and see what that costs.
fn prune(school: &School, model: &Classifier, hook: &FisherHook<Digits>) -> Fallible<()> {
    println!("\n== Pruning: all ten digits\n\npruned  lowest     accuracy   loss  rise by ½Fθ²");
    let row = |sparsity: f64, name: &str, model: &Classifier, rise: Option<f64>| {
        let output = school.test(model, &school.test.concat());
        let rise = rise.map_or("–".into(), |rise| format!("{rise:.3}"));
        let [share, right] = [sparsity, accuracy(&output, 0..10)].map(|x| 100.0 * x);
        let loss: f64 = output.loss.into_scalar();
        println!("{share:>4.0} %  {name:<9}  {right:>6.1} %  {loss:>5.3}  {rise:>13}");
    };
    row(0.0, "–", model, None);
    // Of the weights at the end: the last capture came after the last step.
    let statistics = hook.latest().ok_or("no capture")?;
    let weights = Weights::of(model)?;
    let [old, new] = NAMES.map(|task| Scores::brain_damage(&statistics, task, &weights));
    let damage = old?.mean_with(&new?)?;
    let magnitude = damage.magnitude(&weights)?;
    for sparsity in [0.5, 0.6, 0.7] {
        for (name, scores) in [("½Fθ²", &damage), ("magnitude", &magnitude)] {
            let masks = PruningConfig::new(sparsity).init()?.forward(scores)?;
            let (pruned, _) = masks.apply(model.clone())?;
            row(sparsity, name, &pruned, masks.predicted_increase);
        }
    }
    Ok(())
}

/// Learn the second half after the first, holding on to the first more or less.
fn go_on(school: &School, fresh: &Classifier) -> Fallible<()> {
    println!("\n== 0 to 4, then 5 to 9: accuracy among all ten, and among the five of the half\n");
    println!("{:<22}    0 to 4: ten   five    5 to 9: ten   five", "");
    let row = |name: &str, model: &Classifier| {
        print!("{name:<22}");
        for (half, digits) in HALVES.into_iter().zip(&school.test) {
            let output = school.test(model, digits);
            let [ten, five] = [0..10, half].map(|classes| 100.0 * accuracy(&output, classes));
            print!("  {ten:>11.1} % {five:>4.1} %");
        }
        println!();
    };
    let [old, new] = &school.train;
    let (first, hook) = school.teach(fresh.clone(), old.clone(), "first")?;
    row("0 to 4", &first);
    let statistics = hook.latest().ok_or("no capture")?;
    let strengths = [0.0, 100.0, 1_000.0, 10_000.0];
    for strength in &strengths[..if school.arguments.quick { 2 } else { 4 }] {
        let mut ewc = EwcConfig::new(*strength).init()?;
        ewc.protect(&statistics, NAMES[0], &first)?;
        let mut pupil = first.clone();
        pupil.ewc = Some(ewc);
        let (then, _) = school.teach(pupil, new.clone(), &format!("then-{strength}"))?;
        row(&format!("5 to 9, λ = {strength}"), &then);
    }
    let scores = Scores::elementwise(&statistics, NAMES[0])?;
    let biases = scores.of_path("output.bias").flat_map(|bias| bias.values());
    let biases: Vec<f64> = biases.copied().collect();
    let [old, new] = HALVES.map(|half| biases[half].iter().sum::<f64>());
    println!("\nλ = 0 is without EWC, which holds each weight by the F of 0 to 4. Over the biases");
    println!("of the outputs that adds up to {old:.1e} for 0 to 4 and {new:.1e} for 5 to 9.");
    Ok(())
}

fn main() -> Fallible<()> {
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN);
    log.init();
    let start = Instant::now();
    let arguments = Arguments::parse();
    let device = arguments.device.device()?;
    device.seed(arguments.seed);
    let fresh = Classifier::new(&device.clone().autodiff());
    let rng = &mut StdRng::seed_from_u64(arguments.seed);
    let mut halves = |count| HALVES.map(|classes| draw(classes, count, rng));
    let (digits, epochs) = if arguments.quick {
        (1000, 5)
    } else {
        (2000, 6)
    };
    let school = School {
        train: halves(digits),
        probe: halves(500),
        test: halves(1000),
        epochs,
        device,
        arguments,
    };
    println!("== Training on all ten digits, and the Fisher of 500 others of each half\n");
    let (model, hook) = school.teach(fresh.clone(), school.train.concat(), "all")?;
    tell(&hook)?;
    prune(&school, &model, &hook)?;
    go_on(&school, &fresh)?;
    let (took, out) = (start.elapsed().as_secs(), school.arguments.out.display());
    println!("\nWrote history.jsonl and statistics of each training under {out} in {took} s.");
    Ok(())
}
