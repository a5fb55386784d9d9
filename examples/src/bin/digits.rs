//! A small convolutional network learns to read digits in Burn's own training while a hook looks on. It is
//! pruned, and taught new digits with and without elastic weight consolidation.

use std::{error::Error, ops::Range, path::PathBuf, time::Instant};

use burn::data::dataloader::{DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamConfig;
use burn::tensor::{Device, Int, Tensor, TensorData, activation::relu};
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use burn::train::{Learner, SupervisedTraining};
use clap::Parser;
use fisher_examples::{device::Backend, training::progress_bar};
use fisher_train::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Ten digits of 5 × 7 dots.
const FONT: &str = "
.###.  ..#..  .###.  .###.  ...#.  #####  ..##.  #####  .###.  .###.
#...#  .##..  #...#  #...#  ..##.  #....  .#...  ....#  #...#  #...#
#..##  ..#..  ....#  ....#  .#.#.  ####.  #....  ...#.  #...#  #...#
#.#.#  ..#..  ...#.  ..##.  #..#.  ....#  ####.  ..#..  .###.  .####
##..#  ..#..  ..#..  ....#  #####  ....#  #...#  .#...  #...#  ....#
#...#  ..#..  .#...  #...#  ...#.  #...#  #...#  .#...  #...#  ...#.
.###.  .###.  #####  .###.  ...#.  .###.  .###.  .#...  .###.  .##..
";
const SIDE: usize = 8;
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

/// The dots, row by row, and the class.
type Digit = ([f32; SIDE * SIDE], i64);

/// Digits of these classes in turn: shifted by a dot or so, more or less bright, in noise.
fn draw(classes: Range<usize>, count: usize, rng: &mut StdRng) -> Vec<Digit> {
    let digit = |class| {
        let (right, down) = (rng.random_range(0..=3), rng.random_range(0..=1));
        let ink = rng.random_range(0.5..1.0);
        let mut dots = [0.0; SIDE * SIDE].map(|_| rng.random_range(-0.3..0.3));
        for (y, line) in FONT.trim().lines().enumerate() {
            let glyph = line.split_whitespace().nth(class).unwrap_or_default();
            for (x, _) in glyph.match_indices('#') {
                dots[(y + down) * SIDE + x + right] += ink;
            }
        }
        (dots, class as i64)
    };
    classes.cycle().take(count).map(digit).collect()
}

#[derive(Clone, Debug)]
struct Digits {
    images: Tensor<4>,
    targets: Tensor<1, Int>,
}

#[derive(Clone)]
struct DigitBatcher;

impl Batcher<Digit, Digits> for DigitBatcher {
    fn batch(&self, digits: Vec<Digit>, device: &Device) -> Digits {
        let shape = [digits.len(), 1, SIDE, SIDE];
        let (dots, targets): (Vec<_>, Vec<_>) = digits.into_iter().unzip();
        let dots = TensorData::new(dots.concat(), shape);
        Digits {
            images: Tensor::from_data(dots, device),
            targets: Tensor::from_ints(targets.as_slice(), device),
        }
    }
}

#[derive(Module, Debug)]
struct Classifier {
    conv1: Conv2d,
    conv2: Conv2d,
    pool: MaxPool2d,
    hidden: Linear,
    output: Linear,
    /// What is not to be forgotten while training.
    #[module(skip)]
    ewc: Option<Ewc>,
}

impl Classifier {
    fn new(device: &Device) -> Self {
        Self {
            conv1: Conv2dConfig::new([1, 8], [3, 3]).init(device),
            conv2: Conv2dConfig::new([8, 16], [3, 3]).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            hidden: LinearConfig::new(16 * 2 * 2, 32).init(device),
            output: LinearConfig::new(32, 10).init(device),
            ewc: None,
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(self.conv1.forward(images));
        let x = self.pool.forward(relu(self.conv2.forward(x)));
        let x = relu(self.hidden.forward(x.flatten(1, 3)));
        self.output.forward(x)
    }
}

// What the gradient of each sample is taken of. All else below is Burn's, or made of these gradients.
sample_loss!(Classifier, Digits { images, targets }, |model, batch| {
    SampleLosses::classification(model.forward(batch.images.clone()), batch.targets.clone())
});

impl TrainStep for Classifier {
    type Input = Digits;
    type Output = ClassificationOutput;

    fn step(&self, batch: Digits) -> TrainOutput<ClassificationOutput> {
        let item = InferenceStep::step(self, batch);
        let mut loss = item.loss.clone();
        if let Some(ewc) = &self.ewc {
            let penalty = ewc.penalty(self).expect("the model that is protected");
            loss = penalty.into_iter().fold(loss, Tensor::add);
        }
        TrainOutput::new(self, loss.backward(), item)
    }
}

impl InferenceStep for Classifier {
    type Input = Digits;
    type Output = ClassificationOutput;

    fn step(&self, batch: Digits) -> ClassificationOutput {
        let logits = self.forward(batch.images);
        let losses = SampleLosses::classification(logits.clone(), batch.targets.clone());
        ClassificationOutput::new(losses.means().mean(), logits, batch.targets)
    }
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
