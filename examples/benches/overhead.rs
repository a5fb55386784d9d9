//! What collecting costs next to an ordinary training step.

use std::process::{Command, ExitCode};
use std::time::Instant;

use burn::data::dataloader::batcher::Batcher;
use burn::module::{Module, ParamGroup};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Int, Tensor, activation};
use clap::{Parser, ValueEnum};
use fisher_cli::memory::resident;
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::GradientStoreConfig;
use fisher_examples::device::Backend;
use fisher_examples::model::{CausalTransformer, CausalTransformerConfig};
use fisher_examples::tasks::{Item, Task, TaskBatch, TaskBatcher};
use fisher_examples::usual::{DigitClassifier, Digits, Forecaster, Series, TextClassifier, Texts};
use fisher_train::batch::{SampleBatch, SampleLoss};
use fisher_train::capture::{Capture, CaptureConfig, Engine};
use fisher_train::losses::SampleLosses;
use fisher_train::sample_loss;
use fisher_train::sketch::SketchConfig;
use serde_json::json;

/// Time and peak memory of every way to collect, next to forward and backward of the same batch.
///
/// All ways take turns, so that they see the same weather; the ratio is the median over rounds. Peak
/// memory is that of a process of its own. Prints a table, then one line of JSON for each case and
/// way.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    device: Backend,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Small shapes, one round: whether it runs, not how fast
    #[arg(long)]
    quick: bool,
    /// Only this case
    #[arg(long, value_enum)]
    case: Vec<Case>,
    /// Only these ways, and plain
    #[arg(long, value_enum)]
    way: Vec<Way>,
    /// Do not measure memory
    #[arg(long)]
    no_memory: bool,
    /// Run one way some times, print the peak memory, and nothing else
    #[arg(long, hide = true)]
    peak: bool,
    /// Seed of weights and data
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What `cargo bench` adds to every command line
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Causal transformer, 4 layers, width 256, 16 × 128 tokens
    Transformer256,
    /// Causal transformer, 4 layers, width 512, 16 × 128 tokens
    Transformer512,
    /// Causal transformer, 4 layers, width 512, 64 × 16 tokens
    Short512,
    /// Perceptron 784-512-512-10, batch of 256
    Mlp,
    /// Perceptron 784-32-32-10, batch of 16
    Tiny,
    /// Three convolutions with batch norms on 64 pictures of 28 × 28
    Digits,
    /// Transformer, 4 layers, width 256, that classifies 16 padded texts of 64 tokens
    Texts,
    /// LSTM of 64 numbers on 64 series of 32 steps
    Series,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Forward and backward of the batch
    Plain,
    /// One backward pass per sample
    Loop,
    /// What gives all gradients, by a trace, and nothing made of it
    Factors,
    /// Mean of all elements by a trace
    Mean,
    /// Mean and variance of all elements by a trace
    Elementwise,
    /// Groups by a trace, from gradients
    Grouped,
    /// Groups by a trace, by whatever is cheaper
    Ghost,
    /// Attention gradients into the store
    Store,
    /// Random signs
    Sketch,
}

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    // `RUST_LOG=fisher_train=debug` tells where the time of a trace goes.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome {
    let device = arguments.device.device()?;
    device.seed(arguments.seed);
    let device = device.autodiff();
    let mut lines = Vec::new();
    if !arguments.peak {
        println!(
            "{:<16} {:<12} {:>10} {:>10} {:>8} {:>12} {:>8}",
            "case", "way", "first s", "seconds", "ratio", "peak MB", "ratio"
        );
    }
    for &case in Case::value_variants() {
        if !arguments.case.is_empty() && !arguments.case.contains(&case) {
            continue;
        }
        let [width, samples, length] = match (case, arguments.quick) {
            (Case::Transformer256, false) => [256, 16, 128],
            (Case::Transformer512, false) => [512, 16, 128],
            (Case::Short512, false) => [512, 64, 16],
            (Case::Mlp, false) => [512, 256, 1],
            (Case::Tiny, _) | (Case::Mlp, true) => [32, 16, 1],
            (Case::Digits, false) => [0, 64, 1],
            (Case::Texts, false) => [256, 16, 64],
            (Case::Series, false) => [64, 64, 32],
            (_, true) => [32, 4, 8],
        };
        match case {
            Case::Mlp | Case::Tiny => {
                let model = Perceptron::init(width, &device);
                let batch = Vectors::random(samples, &device);
                measure(arguments, case, &model, &batch, &mut lines)?;
            }
            Case::Digits => {
                let model = DigitClassifier::new(&device);
                let batch = Digits::random(samples, &device);
                measure(arguments, case, &model, &batch, &mut lines)?;
            }
            Case::Texts => {
                let model = TextClassifier::new(1000, length, width, 4, &device);
                let batch = Texts::random(samples, length, 1000, &device);
                measure(arguments, case, &model, &batch, &mut lines)?;
            }
            Case::Series => {
                let model = Forecaster::new(width, &device);
                let batch = Series::random(samples, length, &device);
                measure(arguments, case, &model, &batch, &mut lines)?;
            }
            _ => {
                let vocabulary = 512;
                let model = CausalTransformerConfig::new(vocabulary, length)
                    .with_d_model(width)
                    .with_d_ff(4 * width)
                    .with_heads(8)
                    .with_layers(4)
                    .init(&device);
                let batch = sequences(samples, length, vocabulary, &device);
                measure(arguments, case, &model, &batch, &mut lines)?;
            }
        }
    }
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn measure<M: Subject>(
    arguments: &Arguments,
    case: Case,
    model: &M,
    batch: &M::Batch,
    lines: &mut Vec<serde_json::Value>,
) -> Outcome {
    let ways = Way::value_variants().iter().copied();
    let ways = ways.filter(|way| {
        let asked = arguments.way.is_empty() || arguments.way.contains(way);
        (asked || *way == Way::Plain) && (*way != Way::Store || M::HEADS.is_some())
    });
    let mut ways: Vec<Way> = ways.collect();
    if arguments.peak {
        ways.retain(|way| arguments.way.contains(way));
    }
    let mut runners = Vec::new();
    for &way in &ways {
        runners.push(runner(way, model, batch)?);
    }
    let rounds = if arguments.quick || arguments.peak {
        1
    } else {
        arguments.rounds.max(1)
    };
    // Once to warm up; the loop is slow and steady enough for fewer rounds.
    let mut seconds = vec![Vec::new(); ways.len()];
    let mut first = vec![0.0; ways.len()];
    for round in 0..=rounds {
        for turn in 0..ways.len() {
            // Not always behind the same one.
            let index = (turn + round) % ways.len();
            let runner = &mut runners[index];
            if ways[index] == Way::Loop && round > 3 {
                continue;
            }
            let start = Instant::now();
            runner()?;
            model.devices().iter().try_for_each(Device::sync)?;
            let took = start.elapsed().as_secs_f64();
            match round {
                0 => first[index] = took,
                _ => seconds[index].push(took),
            }
        }
    }
    if arguments.peak {
        println!("{}", resident("VmHWM:").unwrap_or_default() * 1e9);
        return Ok(());
    }
    drop(runners);
    let name = case.to_possible_value().map(|v| v.get_name().to_owned());
    let name = name.unwrap_or_default();
    let mut plain_peak = None;
    for ((&way, times), first) in ways.iter().zip(&seconds).zip(first) {
        let ratios = times
            .iter()
            .zip(&seconds[0])
            .map(|(way, plain)| way / plain);
        let (ratio, time) = (median(ratios.collect()), median(times.clone()));
        // Of a device with memory of its own the host's says nothing.
        let on_host = matches!(arguments.device, Backend::Flex | Backend::Ndarray);
        let peak = if on_host && !arguments.no_memory {
            peak(arguments, case, way)?
        } else {
            None
        };
        let accumulators = accumulators(way, model, batch)? as f64;
        let beyond = peak.map(|peak| peak - accumulators);
        plain_peak = plain_peak.or(beyond);
        let peak_ratio = beyond.zip(plain_peak).map(|(way, plain)| way / plain);
        let way_name = way.to_possible_value().map(|v| v.get_name().to_owned());
        let way_name = way_name.unwrap_or_default();
        println!(
            "{name:<16} {way_name:<12} {first:>10.4} {time:>10.4} {ratio:>8.2} {:>12} {:>8}",
            peak.map_or("-".into(), |peak| format!("{:.0}", peak / 1e6)),
            peak_ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
        );
        lines.push(json!({
            "case": name,
            "way": way_name,
            "device": format!("{:?}", arguments.device).to_lowercase(),
            "first_seconds": first,
            "seconds": time,
            "ratio": ratio,
            "rounds": times.len(),
            "peak_bytes": peak,
            "accumulator_bytes": accumulators,
            "peak_ratio_beyond_accumulators": peak_ratio,
        }));
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => 0.5 * (values[middle - 1] + values[middle]),
    }
}

/// A model that can be measured.
trait Subject: SampleLoss<Batch: Clone> {
    const HEADS: Option<usize>;

    /// The ids of a batch.
    fn ids(batch: &mut Self::Batch) -> &mut [String];
}

impl Subject for CausalTransformer {
    const HEADS: Option<usize> = Some(8);

    fn ids(batch: &mut TaskBatch) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for Perceptron {
    const HEADS: Option<usize> = None;

    fn ids(batch: &mut Vectors) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for DigitClassifier {
    const HEADS: Option<usize> = None;

    fn ids(batch: &mut Digits) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for TextClassifier {
    const HEADS: Option<usize> = Some(8);

    fn ids(batch: &mut Texts) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for Forecaster {
    const HEADS: Option<usize> = None;

    fn ids(batch: &mut Series) -> &mut [String] {
        &mut batch.ids
    }
}

type Runner<'a> = Box<dyn FnMut() -> Outcome + 'a>;

/// One way, ready to take the batch again and again.
fn runner<'a, M: Subject>(way: Way, model: &'a M, batch: &'a M::Batch) -> Outcome<Runner<'a>> {
    Ok(match way {
        Way::Plain => {
            // With dropout, where the model has it.
            Box::new(move || {
                let loss = model.sample_losses(batch).sums().clone().mean();
                let _gradients = loss.backward();
                Ok(())
            })
        }
        Way::Sketch => {
            let sketch = SketchConfig::new().init()?;
            Box::new(move || {
                let one = batch.clone();
                sketch.collect::<M, fisher_core::gradient::PerToken>(model, [one])?;
                Ok(())
            })
        }
        Way::Store => {
            let attention = ParamGroup::from_predicate("mha");
            let catalogue = Catalogue::of(model)?.filter(&attention)?;
            let config = StatisticsConfig::new()
                .with_elementwise(false)
                .with_attention(M::HEADS.map(AttentionConfig::new));
            let layout = config.heads(&catalogue)?;
            let weights = hash_weights(model)?;
            let device = model.devices()[0].clone();
            let empty: Statistics = config.init_for(&catalogue, &layout, weights, &device)?;
            let paths: Vec<&str> = catalogue.parameters().iter().map(|p| p.path()).collect();
            let mut capture = CaptureConfig::new()
                .with_engine(Engine::Trace)
                .init(model, paths)?;
            Box::new(move || {
                let mut statistics = empty.clone();
                let store = GradientStoreConfig::new(usize::MAX).with_only(Some(attention.clone()));
                let mut store = store.init(model)?;
                capture.accumulate(batch, "task", (&mut statistics, &mut store))?;
                Ok(())
            })
        }
        Way::Factors => {
            let catalogue = Catalogue::of(model)?;
            let paths: Vec<&str> = catalogue.parameters().iter().map(|p| p.path()).collect();
            let smallest = catalogue.parameters().iter().min_by_key(|p| p.elements());
            let one = ParamGroup::from_path(smallest.ok_or("no parameters")?.path());
            let device = model.devices()[0].clone();
            let config = StatisticsConfig::new();
            let empty: Statistics = config.init_for(
                &catalogue.filter(&one)?,
                &HeadLayout::none(),
                hash_weights(model)?,
                &device,
            )?;
            let mut capture = CaptureConfig::new()
                .with_engine(Engine::Trace)
                .init(model, paths)?;
            Box::new(move || {
                let mut statistics = empty.clone();
                capture.accumulate(batch, "task", &mut statistics)?;
                Ok(())
            })
        }
        _ => {
            let config = StatisticsConfig::new()
                .with_elementwise(!matches!(way, Way::Grouped | Way::Ghost))
                .with_variance(way != Way::Mean)
                .with_grouped(matches!(way, Way::Grouped | Way::Ghost))
                .with_ghost(way != Way::Grouped)
                .with_attention(M::HEADS.map(AttentionConfig::new));
            let mut statistics = config.init(model)?;
            let paths: Vec<String> = statistics.paths().map(str::to_owned).collect();
            let engine = match way {
                Way::Loop => Engine::Loop,
                _ => Engine::Trace,
            };
            let mut capture: Capture<M> = CaptureConfig::new()
                .with_engine(engine)
                .init(model, paths.iter().map(String::as_str))?;
            let mut batch = batch.clone();
            // On and on, as in a collection: a sample counts once in statistics.
            Box::new(move || {
                M::ids(&mut batch).iter_mut().for_each(|id| id.push('+'));
                capture.accumulate(&batch, "task", &mut statistics)?;
                Ok(())
            })
        }
    })
}

/// Bytes that a way's result takes: they are not overhead.
fn accumulators<M: Subject>(way: Way, model: &M, batch: &M::Batch) -> Outcome<usize> {
    let catalogue = Catalogue::of(model)?;
    let elements = |only: &str| -> usize {
        let parameters = catalogue.parameters().iter();
        let parameters = parameters.filter(|p| p.path().contains(only));
        parameters.map(|p| p.elements()).sum()
    };
    Ok(match way {
        Way::Plain | Way::Factors | Way::Grouped | Way::Ghost => 0,
        Way::Mean => 8 * elements(""),
        Way::Loop | Way::Elementwise | Way::Sketch => 16 * elements(""),
        // Gradients of one batch, in float32.
        Way::Store => 4 * elements("mha") * batch.len(),
    })
}

/// Peak memory of a process that does nothing else.
fn peak(arguments: &Arguments, case: Case, way: Way) -> Outcome<Option<f64>> {
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map(|v| v.get_name().to_owned()).unwrap_or_default()
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--peak", "--case", &name(case.to_possible_value())]);
    command.args(["--way", &name(way.to_possible_value())]);
    command.args(["--device", &name(arguments.device.to_possible_value())]);
    if arguments.quick {
        command.arg("--quick");
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let peak: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok((peak > 0.0).then_some(peak))
}

/// Random tokens, every position predicting the next.
fn sequences(samples: usize, length: usize, vocabulary: usize, device: &Device) -> TaskBatch {
    let token = |k: usize| ((k * k * 31 + 17 * k + k / 5) % vocabulary) as i64;
    let item = |i: usize| Item {
        id: format!("sequence {i}"),
        tokens: (0..length).map(|t| token(i * length + t)).collect(),
        labels: (0..length).map(|t| token(i * length + t + 1)).collect(),
        task: Task::Induction,
    };
    TaskBatcher.batch((0..samples).map(item).collect(), device)
}

/// Pictures as vectors.
#[derive(Debug, Clone)]
struct Vectors {
    pixels: Tensor<2>,
    labels: Tensor<1, Int>,
    ids: Vec<String>,
}

impl Vectors {
    fn random(samples: usize, device: &Device) -> Self {
        let labels: Vec<i64> = (0..samples as i64).map(|i| i % 10).collect();
        Self {
            pixels: Tensor::random([samples, 784], Distribution::Uniform(0.0, 1.0), device),
            labels: Tensor::from_ints(labels.as_slice(), device),
            ids: (0..samples).map(|i| format!("digit {i}")).collect(),
        }
    }
}

/// Two hidden layers.
#[derive(Module, Debug)]
struct Perceptron {
    first: Linear,
    second: Linear,
    third: Linear,
}

impl Perceptron {
    fn init(width: usize, device: &Device) -> Self {
        Self {
            first: LinearConfig::new(784, width).init(device),
            second: LinearConfig::new(width, width).init(device),
            third: LinearConfig::new(width, 10).init(device),
        }
    }
}

sample_loss!(Perceptron, Vectors { pixels, labels; ids }, |model, batch| {
    let x = activation::relu(model.first.forward(batch.pixels.clone()));
    let x = activation::relu(model.second.forward(x));
    SampleLosses::classification(model.third.forward(x), batch.labels.clone())
});
