//! Fishers of other kinds: against float64 numbers written apart, closed forms, the loop, and each other.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_cli::models::{Checkpoint, Sequence, Sequences};
use fisher_cli::samples::{Reader, TaskFile};
use fisher_core::gradient::{ContributionUnit, PerToken, Raw};
use fisher_core::kind::FisherKind;
use fisher_core::statistics::{Mixture, Statistics, StatisticsConfig};
use fisher_core::store::GradientStoreConfig;
use fisher_metrics::kinds::KindRatio;
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS, folder};
use fisher_tests::models::made_up;
use fisher_tests::tolerance::{BACKWARD, DEFINITION, GOLDEN, REORDERED, assert_close};
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::capture::{CaptureConfig, Engine, NonFinite, PerSample};
use fisher_train::collect::{CheckpointConfig, Collected, CollectorConfig};
use fisher_train::kinds::Fisher;
use fisher_train::labels::{Class, IGNORE, Labels};
use fisher_train::losses::SampleLosses;
use fisher_train::predictions::{Replacement, Values};
use fisher_train::sample_loss;
use fisher_train::targets::Targets;
use fisher_train::{Error, Result};
use rstest::rstest;
use serde_json::Value;

/// Points with classes.
#[derive(Debug, Clone)]
struct Points {
    x: Tensor<2>,
    labels: Labels<Class>,
    ids: Vec<String>,
}

impl Points {
    fn new(range: std::ops::Range<usize>, device: &Device) -> Self {
        let x: Vec<f32> = range
            .clone()
            .flat_map(|i| point(i).map(|x| x as f32))
            .collect();
        let labels: Vec<i64> = range.clone().map(|i| (i * i % 4) as i64).collect();
        let samples = range.len();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [samples]), device);
        Self {
            x: Tensor::from_data(TensorData::new(x, [samples, 3]), device),
            labels: labels.into(),
            ids: range.map(|i| format!("point {i}")).collect(),
        }
    }
}

fn point(i: usize) -> [f64; 3] {
    [0, 1, 2].map(|k| (1.7 * (3 * i + k) as f64).sin() * 1.5)
}

/// A softmax of four classes.
#[derive(Module, Debug)]
struct Softmax {
    linear: Linear,
}

impl Softmax {
    fn init(device: &Device) -> Self {
        let linear = LinearConfig::new(3, 4).init(device);
        made_up(Self { linear }, 0.4)
    }

    /// `p` of every point, in float64.
    fn p(&self, points: &Points) -> Vec<Vec<f64>> {
        let logits = self.linear.forward(points.x.clone());
        let p = softmax(logits, 1).into_data();
        let p: Vec<f64> = p.iter::<f64>().collect();
        p.chunks_exact(4).map(<[f64]>::to_vec).collect()
    }
}

sample_loss!(Softmax, Points { x, labels; ids }, |model, batch| {
    let logits = model.linear.forward(batch.x.clone());
    SampleLosses::classification(logits, batch.labels.clone())
});

fn statistics<C: ContributionUnit>(model: &impl Module, kind: FisherKind) -> Statistics<C> {
    let config = StatisticsConfig::new().with_kind(kind);
    config.init_as(model).expect("statistics")
}

fn collect<M: SampleLoss>(
    model: &M,
    fisher: Fisher,
    engine: Engine,
    batches: Vec<M::Batch>,
) -> Result<(Statistics, Collected)> {
    let config = CollectorConfig::new()
        .with_fisher(fisher)
        .with_engine(engine);
    let collector = config.with_compare(true).init()?;
    let mut found = statistics(model, fisher.kind().unwrap_or_default());
    let collected = collector.collect_batches(model, "task", batches, &mut found)?;
    Ok((found, collected))
}

fn mean<C: ContributionUnit>(statistics: &Statistics<C>, task: &str, path: &str) -> Vec<f64> {
    let task = statistics.task(task).expect("a task");
    let parameter = task.parameter(path).expect("a parameter");
    let elements = parameter.elementwise().expect("elements");
    elements.read().expect("values").mean.expect("samples")
}

fn batches(count: usize, size: usize, device: &Device) -> Vec<Points> {
    let starts = (0..count).step_by(size);
    starts
        .map(|start| Points::new(start..count.min(start + size), device))
        .collect()
}

/// Of a linear softmax, `F_(k,y) = E[(diag p − p pᵀ)_yy x_k²]`.
#[rstest]
fn exact_is_the_closed_form_of_a_softmax(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Engine::Loop, Engine::Trace)] engine: Engine,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Softmax::init(&device);
    let (found, collected) =
        collect(&model, Fisher::Exact, engine, batches(10, 4, &device)).expect("a collection");
    assert_eq!((collected.samples, collected.tokens), (10, 10));
    assert_eq!(found.provenance().kind, FisherKind::Exact);
    let p = model.p(&Points::new(0..10, &device));
    let of = |k: Option<usize>, y: usize| {
        let each =
            (0..10).map(|i| p[i][y] * (1.0 - p[i][y]) * k.map_or(1.0, |k| point(i)[k].powi(2)));
        each.sum::<f64>() / 10.0
    };
    let weight: Vec<f64> = (0..12).map(|at| of(Some(at / 4), at % 4)).collect();
    let bias: Vec<f64> = (0..4).map(|y| of(None, y)).collect();
    assert_close(
        "weight",
        &mean(&found, "task", "linear.weight"),
        &weight,
        DEFINITION,
        0.1,
    );
    assert_close(
        "bias",
        &mean(&found, "task", "linear.bias"),
        &bias,
        DEFINITION,
        0.1,
    );
}

/// Draws are of the sample, whatever the engine, the batch and the device; what is counted is the mean of the squares
/// of single gradients.
#[rstest]
fn draws_are_counted_as_defined(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Engine::Loop, Engine::Trace)] engine: Engine,
    #[values(3, 10)] size: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Softmax::init(&device);
    let fisher = Fisher::MonteCarlo { draws: 5, seed: 7 };
    let (found, collected) =
        collect(&model, fisher, engine, batches(10, size, &device)).expect("a collection");
    let points = Points::new(0..10, &device);
    let predictions = model
        .sample_losses(&points)
        .predictions()
        .expect("predictions");
    let alone = PerSample::new(&model, ["linear.weight"]).expect("a model");
    let mut expected = vec![0.0; 12];
    for draw in 0..5 {
        let labels = predictions.draw(7, &points.ids, draw);
        let batch = SampleMapper::replace(&points, labels).expect("labels");
        for i in 0..10 {
            let gradient = alone.gradient(&batch, i).expect("a gradient");
            assert_eq!(gradient.kind, FisherKind::MonteCarlo);
            let gradient = gradient
                .gradients
                .get("linear.weight")
                .expect("a gradient")
                .to_full();
            let squares = gradient.into_data();
            let squares = squares.iter::<f64>().map(|g| g * g / 50.0);
            expected
                .iter_mut()
                .zip(squares)
                .for_each(|(sum, x)| *sum += x);
        }
    }
    assert_close(
        "F",
        &mean(&found, "task", "linear.weight"),
        &expected,
        BACKWARD,
        0.1,
    );
    let data: Vec<f64> = model
        .sample_losses(&points)
        .sums()
        .to_data()
        .iter::<f64>()
        .collect();
    assert!((collected.loss - data.iter().sum::<f64>()).abs() < 1e-4);

    // The error of the draws, by its definition.
    let spread = collected.draws.expect("draws");
    assert_eq!((spread.draws, spread.samples), (5, 10));
    let layer = &spread.layers[0];
    let (mut totals, p) = (vec![Vec::new(); 10], &predictions);
    for draw in 0..5 {
        let Values::Classes(labels) = p.draw(7, &points.ids, draw).values else {
            panic!("classes");
        };
        for (i, label) in labels.iter().enumerate() {
            let p = &model.p(&points)[i];
            let off = (0..4).map(|y| (p[y] - f64::from(u8::from(y as i64 == *label))).powi(2));
            let x = 1.0 + point(i).iter().map(|x| x * x).sum::<f64>();
            totals[i].push(off.sum::<f64>() * x);
        }
    }
    let variance = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (x.len() - 1) as f64
    };
    let within: f64 = totals.iter().map(|draws| variance(draws)).sum();
    let means: Vec<f64> = totals
        .iter()
        .map(|draws| draws.iter().sum::<f64>() / 5.0)
        .collect();
    let (of_draws, all) = (
        (within / 5.0 / 100.0).sqrt(),
        (variance(&means) / 10.0).sqrt(),
    );
    let found = [
        layer.of_draws.expect("draws"),
        layer.standard_error.expect("samples"),
        layer.share.expect("a share"),
    ];
    let expected = [of_draws, all, (of_draws / all).powi(2)];
    assert_close("errors", &found, &expected, 1e-4, 0.0);
}

/// Many draws come to the exact Fisher, within the error that is reported of them.
#[test]
fn draws_come_to_the_exact_fisher() {
    let device = Device::flex().autodiff();
    let model = Softmax::init(&device);
    let all = || batches(40, 20, &device);
    let (exact, _) = collect(&model, Fisher::Exact, Engine::Auto, all()).expect("a collection");
    let exact = exact.task("task").expect("a task").layers();
    let exact = exact.mean.expect("samples")[0];
    let mut inside = 0;
    for seed in 0..40 {
        let fisher = Fisher::MonteCarlo { draws: 4, seed };
        let (_, collected) = collect(&model, fisher, Engine::Auto, all()).expect("a collection");
        let layer = &collected.draws.expect("draws").layers[0];
        let error = layer.of_draws.expect("draws");
        inside += u32::from((layer.mean - exact).abs() < 2.0 * error);
        assert!(
            (layer.mean - exact).abs() < 5.0 * error,
            "{layer:?} against {exact}"
        );
        assert!(error < layer.standard_error.expect("samples"));
    }
    assert!(inside >= 34, "{inside} of 40 within two errors");
}

/// A multi-label model and a regression: closed forms of what is drawn.
#[derive(Debug, Clone)]
struct Numbers {
    x: Tensor<2>,
    y: Targets,
}

impl Numbers {
    fn new(count: usize, device: &Device) -> Self {
        let points = Points::new(0..count, device);
        let y: Vec<f32> = (0..2 * count).map(|k| (k % 3 % 2) as f32).collect();
        let y = Tensor::<2>::from_data(TensorData::new(y, [count, 2]), device);
        Self {
            x: points.x,
            y: y.into(),
        }
    }
}

#[derive(Module, Debug)]
struct Yes {
    linear: Linear,
}

#[derive(Module, Debug)]
struct Regression {
    linear: Linear,
}

const SIGMA: f64 = 0.7;

sample_loss!(Yes, Numbers { x, y }, |model, batch| {
    let logits = model.linear.forward(batch.x.clone());
    SampleLosses::bernoulli(logits, batch.y.clone())
});

sample_loss!(Regression, Numbers, |model, batch| {
    let means = model.linear.forward(batch.x.clone());
    SampleLosses::gaussian(means, batch.y.clone(), SIGMA)
});

#[rstest]
fn targets_are_drawn_from_their_likelihoods(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let linear = || made_up(LinearConfig::new(3, 2).init(&device), 0.2);
    let (yes, regression) = (Yes { linear: linear() }, Regression { linear: linear() });
    let numbers = Numbers::new(12, &device);
    let x = |i: usize| 1.0 + point(i).iter().map(|x| x * x).sum::<f64>();
    let logits = linear().forward(numbers.x.clone()).into_data();
    let logits: Vec<f64> = logits.iter::<f64>().collect();
    let p = |z: f64| 1.0 / (1.0 + (-z).exp());
    let of_yes = (0..12).map(|i| {
        let outputs = logits[2 * i..2 * i + 2]
            .iter()
            .map(|&z| p(z) * (1.0 - p(z)));
        x(i) * outputs.sum::<f64>() / 12.0
    });
    let of_yes: f64 = of_yes.sum();
    let of_regression: f64 = (0..12).map(|i| x(i) * 2.0 / SIGMA.powi(2) / 12.0).sum();
    let losses: f64 = (0..24)
        .map(|k| {
            let (z, y) = (logits[k], f64::from((k % 3 % 2) as u8));
            -(y * p(z).ln() + (1.0 - y) * (1.0 - p(z)).ln())
        })
        .sum();
    let engines = [Engine::Loop, Engine::Auto];
    for engine in engines {
        let fisher = Fisher::MonteCarlo { draws: 50, seed: 1 };
        let of = |collected: Collected| collected.draws.expect("draws").layers[0].clone();
        let (_, collected) = collect(&yes, fisher, engine, vec![numbers.clone()]).expect("yes");
        assert!((collected.loss - losses).abs() < 1e-4 * losses);
        let (found, expected) = (of(collected), of_yes);
        let off = (found.mean - expected).abs() / found.of_draws.expect("draws");
        assert!(off < 5.0, "{engine:?}: {} against {expected}", found.mean);
        let collected = collect(&regression, fisher, engine, vec![numbers.clone()]);
        let (found, expected) = (of(collected.expect("a regression").1), of_regression);
        let off = (found.mean - expected).abs() / found.of_draws.expect("draws");
        assert!(off < 5.0, "{engine:?}: {} against {expected}", found.mean);
    }
    let exact = collect(&yes, Fisher::Exact, Engine::Auto, vec![numbers.clone()]);
    let told = exact.expect_err("no classes").to_string();
    assert!(
        told.contains("exact") && told.contains("MonteCarlo"),
        "{told}"
    );

    // By hand, from the device's random numbers.
    let logits = Tensor::<2>::zeros([2000, 2], &device) + 1.0;
    let targets = Targets::from(Tensor::<2>::zeros([2000, 2], &device));
    let drawn = targets.draw_bernoulli(logits.clone());
    assert_eq!(drawn.kind(), FisherKind::MonteCarlo);
    let share: f64 = drawn.tensor().clone().mean().into_scalar();
    assert!(
        (share - p(1.0)).abs() < 5.0 * (0.25f64 / 4000.0).sqrt(),
        "{share}"
    );
    let drawn = targets.draw_gaussian(logits, 3.0).tensor().clone();
    let (mean, square): (f64, f64) = (
        drawn.clone().mean().into_scalar(),
        (drawn - 1.0).square().mean().into_scalar(),
    );
    assert!(
        (mean - 1.0).abs() < 0.25 && (square - 9.0).abs() < 1.0,
        "{mean} {square}"
    );
}

/// A decoder with the numbers of its checkpoint's oracle.
struct Decoder {
    checkpoint: Checkpoint,
    expected: Value,
    device: Device,
}

impl Decoder {
    fn load(case: &'static str, device: &Device) -> Self {
        let device = device.clone().autodiff();
        Self {
            checkpoint: Checkpoint::load(&folder(case), &device).expect("a checkpoint"),
            expected: Golden::load(case).topic("kinds"),
            device,
        }
    }

    fn samples(&self, task: &str) -> Vec<Sequence> {
        let reader = Reader::new(&self.checkpoint.config, &self.checkpoint.folder);
        let file = TaskFile {
            name: task.into(),
            path: self.checkpoint.folder.join(format!("{task}.jsonl")),
        };
        reader.read(&file).expect("samples").samples
    }

    fn batches(&self, task: &str, size: usize) -> Vec<Sequences> {
        let samples = self.samples(task);
        let batches = samples.chunks(size);
        batches
            .map(|samples| Sequences::new(samples, &self.device))
            .collect()
    }

    fn statistics<C: ContributionUnit>(&self, kind: FisherKind) -> Statistics<C> {
        let Checkpoint {
            catalogue, heads, ..
        } = &self.checkpoint;
        let config = StatisticsConfig::new().with_kind(kind);
        let hash = self.checkpoint.hash().expect("a hash");
        let device = self.device.clone().without_autodiff();
        config
            .init_for(catalogue, heads, hash, &device)
            .expect("statistics")
    }

    fn check<C: ContributionUnit>(&self, found: &Statistics<C>, task: &str, kind: &str) {
        for (path, numbers) in self.expected[task][kind].as_object().expect("parameters") {
            let expected: Vec<f64> = numbers
                .as_array()
                .expect("numbers")
                .iter()
                .filter_map(Value::as_f64)
                .collect();
            let found = mean(found, task, path);
            let probe = found
                .iter()
                .enumerate()
                .map(|(k, f)| f * (1.0 + (k as f64).cos()) / 2.0);
            let found = [found.iter().sum::<f64>(), probe.sum::<f64>()];
            assert_close(
                &format!("{task} {kind} {path}"),
                &found,
                &expected,
                10.0 * GOLDEN,
                0.0,
            );
        }
    }
}

/// Exact, token-level and centred Fishers of transformers, masked labels and unequal lengths, against float64.
#[rstest]
#[case(Backend::Flex, Engine::Trace, 4)]
#[case(Backend::Flex, Engine::Loop, 4)]
#[case(Backend::Ndarray, Engine::Trace, 3)]
#[case(Backend::Wgpu, Engine::Trace, 6)]
fn decoders_have_the_golden_kinds(
    #[case] backend: Backend,
    #[case] engine: Engine,
    #[case] size: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let decoder = Decoder::load(case, &device);
        // Where there is no hardware for it, one task will do.
        let tasks = if backend == Backend::Wgpu {
            &TASKS[1..]
        } else {
            &TASKS[..]
        };
        for task in tasks {
            let names = decoder.checkpoint.naming.names();
            let collector = |fisher| {
                let config = CollectorConfig::new()
                    .with_engine(engine)
                    .with_fisher(fisher);
                config
                    .init()
                    .expect("a collector")
                    .with_names(names.clone())
            };
            let batches = || decoder.batches(task, size);
            let model = &decoder.checkpoint.model;
            for (fisher, name) in [
                (Fisher::Exact, "exact"),
                (Fisher::TokenLevel, "token_level"),
            ] {
                let mut found = decoder.statistics::<PerToken>(fisher.kind().expect("a kind"));
                let collector = collector(fisher);
                let collected = collector.collect_batches(model, task, batches(), &mut found);
                let collected = collected.expect("a collection");
                let tokens = decoder.expected[task]["tokens"].as_u64().expect("tokens");
                assert_eq!(collected.tokens, tokens);
                decoder.check(&found, task, name);
            }
            let given = collector(Fisher::AsGiven);
            let mut found = decoder.statistics::<PerToken>(FisherKind::Centred);
            let mean = given
                .mean_gradient(model, task, batches(), &found)
                .expect("a mean");
            given
                .collect_centred(model, task, batches(), &mean, &mut found)
                .expect("a collection");
            decoder.check(&found, task, "centred");
            let mut found = decoder.statistics::<Raw>(FisherKind::Centred);
            let mean = given
                .mean_gradient(model, task, batches(), &found)
                .expect("a mean");
            given
                .collect_centred(model, task, batches(), &mean, &mut found)
                .expect("a collection");
            decoder.check(&found, task, "centred_raw");
        }
    }
}

/// Labels that were drawn elsewhere, three for each sample.
#[rstest]
fn given_draws_have_the_golden_fisher(#[values(Engine::Loop, Engine::Trace)] engine: Engine) {
    for case in CASES {
        let decoder = Decoder::load(case, &Device::flex());
        for task in TASKS {
            let mut found = decoder.statistics::<PerToken>(FisherKind::MonteCarlo);
            let names = decoder.checkpoint.naming.names();
            let model = &decoder.checkpoint.model;
            let capture = CaptureConfig::new().with_engine(engine);
            let paths: Vec<String> = found.paths().map(Into::into).collect();
            let paths = paths.iter().map(String::as_str);
            let mut capture = capture.init_named(model, paths, &names).expect("a model");
            for batch in decoder.batches(task, 3) {
                let ids: Vec<String> = (0..batch.len()).filter_map(|i| batch.id(i)).collect();
                let samples = model.sample_losses(&batch).samples(&ids).expect("samples");
                let mut mixture = Mixture::new(&found, samples);
                let longest = batch.tokens.dims()[1];
                for draw in 0..3 {
                    let rows = ids.iter().flat_map(|id| {
                        let row = decoder.expected[task]["draws"][id][draw]
                            .as_array()
                            .expect("labels");
                        let row = row
                            .iter()
                            .skip(1)
                            .map(|label| label.as_i64().expect("a label"));
                        let row: Vec<i64> = row.collect();
                        row.into_iter()
                            .chain(std::iter::repeat(IGNORE))
                            .take(longest - 1)
                            .collect::<Vec<_>>()
                    });
                    let labels = Replacement {
                        kind: FisherKind::MonteCarlo,
                        values: Values::Classes(rows.collect()),
                    };
                    let drawn = SampleMapper::replace(&batch, labels).expect("labels");
                    capture
                        .accumulate(&drawn, task, &mut mixture)
                        .expect("gradients");
                    mixture
                        .end_round(&vec![1.0 / 3.0; ids.len()])
                        .expect("a round");
                }
                let mixed = mixture.into_batch();
                assert!(mixed.skipped.is_empty());
                found.push(task, mixed.batch).expect("a batch");
            }

            decoder.check(&found, task, "monte_carlo");
        }
    }
}

/// Where a sample has one token, centred is the covariance's diagonal; and it is `F − ū ⊙ ū` of the same samples.
#[rstest]
fn centred_is_the_variance(#[values(Backend::Flex, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Softmax::init(&device);
    let collector = CollectorConfig::new().init().expect("a collector");
    let all = || batches(10, 4, &device);
    let mut found = statistics::<PerToken>(&model, FisherKind::Centred);
    let mean_gradient = collector
        .mean_gradient(&model, "task", all(), &found)
        .expect("a mean");
    assert_eq!(mean_gradient.count(), 10);
    let collected = collector.collect_centred(&model, "task", all(), &mean_gradient, &mut found);
    assert_eq!(collected.expect("a collection").samples, 10);
    let (empirical, _) =
        collect(&model, Fisher::AsGiven, Engine::Auto, all()).expect("a collection");
    let u = mean_gradient
        .get("linear.weight")
        .expect("a mean")
        .into_data();
    let expected: Vec<f64> = mean(&empirical, "task", "linear.weight")
        .into_iter()
        .zip(u.iter::<f64>())
        .map(|(f, u)| f - u * u)
        .collect();
    assert_close(
        "F − u²",
        &mean(&found, "task", "linear.weight"),
        &expected,
        DEFINITION,
        0.1,
    );

    let strangers = collector.collect_centred(
        &model,
        "task",
        vec![Points::new(8..12, &device)],
        &mean_gradient,
        &mut statistics::<PerToken>(&model, FisherKind::Centred),
    );
    let told = strangers.expect_err("a stranger").to_string();
    assert!(told.contains("point 10"), "{told}");
    let wrong = collector.collect_centred(
        &model,
        "task",
        all(),
        &mean_gradient,
        &mut statistics::<PerToken>(&model, FisherKind::Empirical),
    );
    assert!(matches!(wrong, Err(Error::LossKind { .. })));
}

/// Tokens are samples with the sample for their cluster, and go on from a checkpoint.
#[test]
fn tokens_are_samples() {
    let decoder = Decoder::load("llama-gqa", &Device::flex());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokens.safetensors");
    let config = CollectorConfig::new().with_fisher(Fisher::TokenLevel);
    let saving = config
        .clone()
        .with_checkpoint(Some(CheckpointConfig::new(path, 5)));
    let model = &decoder.checkpoint.model;
    let names = decoder.checkpoint.naming.names();
    let collect = |config: &CollectorConfig, count: usize| {
        let collector = config
            .init()
            .expect("a collector")
            .with_names(names.clone());
        let fresh = decoder.statistics::<PerToken>(FisherKind::TokenLevel);
        let mut statistics = collector.resume(fresh).expect("statistics");
        let batches = decoder.batches("alpha", 2).into_iter().take(count);
        let collected = collector.collect_batches(model, "alpha", batches, &mut statistics);
        (collected.expect("a collection"), statistics)
    };
    let (first, _) = collect(&saving, 2);
    let (rest, resumed) = collect(&saving, 3);
    assert_eq!(rest.resumed, first.samples);
    let (all, whole) = collect(&config, 3);
    assert_eq!(all.samples, first.samples + rest.samples);
    let of = |statistics: &Statistics| {
        let task = statistics.task("alpha").expect("a task");
        (
            task.samples().to_vec(),
            task.layers().mean.expect("samples"),
        )
    };
    let ((records, means), (others, expected)) = (of(&resumed), of(&whole));
    assert_eq!(records, others);
    assert_close("layers", &means, &expected, REORDERED, 0.0);
    let mut of_cluster: BTreeMap<String, usize> = BTreeMap::new();
    for record in &records {
        assert_eq!(record.tokens, 1);
        let cluster = record.cluster.clone().expect("a cluster");
        let number = of_cluster.entry(cluster.clone()).or_default();
        assert_eq!(record.id, format!("{cluster}#{number}"));
        *number += 1;
    }
    let active: BTreeMap<String, usize> = decoder
        .samples("alpha")
        .iter()
        .map(|sample| (sample.id.clone(), sample.active()))
        .collect();
    assert_eq!(of_cluster, active);
}

/// The empirical Fisher over the true one, by its definition, paired and not.
#[test]
fn kinds_are_compared() {
    let device = Device::flex().autodiff();
    let model = Softmax::init(&device);
    let all = || batches(60, 20, &device);
    let fisher = Fisher::MonteCarlo { draws: 3, seed: 2 };
    let (drawn, collected) = collect(&model, fisher, Engine::Auto, all()).expect("a collection");
    let (empirical, _) =
        collect(&model, Fisher::AsGiven, Engine::Auto, all()).expect("a collection");
    let paired = collected.ratio.expect("a ratio");
    let unpaired = KindRatio::unpaired((&empirical, "task"), (&drawn, "task")).expect("a ratio");
    assert!(paired.paired && !unpaired.paired);
    let layer = |statistics: &Statistics| {
        let task = statistics.task("task").expect("a task");
        task.layers().mean.expect("samples")[0]
    };
    let expected = [
        layer(&empirical),
        layer(&drawn),
        layer(&empirical) / layer(&drawn),
    ];
    for ratio in [&paired, &unpaired] {
        let of = &ratio.layers[0];
        let found = [of.empirical, of.model, of.ratio.expect("a ratio")];
        assert_close("ratio", &found, &expected, DEFINITION, 0.0);
        let interval = of.interval.expect("an interval");
        assert!(interval.lower < expected[2] && expected[2] < interval.upper);
        assert!(ratio.sentences()[0].contains("times the model's own"));
    }
    assert!(unpaired.sentences()[0].contains("unpaired"));
    assert!(KindRatio::unpaired((&drawn, "task"), (&empirical, "task")).is_err());
}

/// What cannot be is told, with what to do.
#[test]
fn errors_say_what_to_do() {
    let device = Device::flex().autodiff();
    let model = Softmax::init(&device);
    let all = || batches(4, 4, &device);
    let exact = CollectorConfig::new()
        .with_fisher(Fisher::Exact)
        .init()
        .expect("a collector");
    let mut empirical = statistics::<PerToken>(&model, FisherKind::Empirical);
    let wrong = exact.collect_batches(&model, "task", all(), &mut empirical);
    assert!(matches!(wrong, Err(Error::LossKind { .. })));
    let mut found = statistics::<PerToken>(&model, FisherKind::Exact);
    let store = GradientStoreConfig::new(1 << 20).with_kind(FisherKind::Exact);
    let mut store = store.init(&model).expect("a store");
    let stored = exact.collect_batches(&model, "task", all(), (&mut found, &mut store));
    assert!(stored.expect_err("a store").to_string().contains("store"));
    let none = Fisher::MonteCarlo { draws: 0, seed: 0 };
    assert!(CollectorConfig::new().with_fisher(none).init().is_err());

    let scaled = Scaled {
        linear: model.linear.clone(),
    };
    let told = collect(&scaled, Fisher::Exact, Engine::Auto, all()).expect_err("no likelihood");
    assert!(told.to_string().contains("do not `map`"), "{told}");
    let plain = Plain {
        linear: model.linear.clone(),
    };
    let batch = Bare {
        x: Points::new(0..4, &device).x,
        y: Tensor::zeros([4], &device),
    };
    let told = collect(&plain, Fisher::Exact, Engine::Auto, vec![batch]).expect_err("no labels");
    assert!(
        told.to_string().contains("Labels::<NextToken>::from"),
        "{told}"
    );

    // A sample whose loss is no number.
    let mut points = Points::new(0..4, &device);
    points.x = points
        .x
        .clone()
        .slice_assign([2..3, 0..1], Tensor::full([1, 1], f32::NAN, &device));
    let told = collect(&model, Fisher::Exact, Engine::Auto, vec![points.clone()]);
    assert!(told.expect_err("NaN").to_string().contains("point 2"));
    for fisher in [Fisher::Exact, Fisher::MonteCarlo { draws: 2, seed: 0 }] {
        let config = CollectorConfig::new()
            .with_fisher(fisher)
            .with_non_finite(NonFinite::Skip);
        let collector = config.init().expect("a collector");
        let mut found = statistics::<PerToken>(&model, fisher.kind().expect("a kind"));
        let collected = collector.collect_batches(&model, "task", [points.clone()], &mut found);
        let collected = collected.expect("a collection");
        assert_eq!((collected.samples, collected.skipped), (3, 1));
    }
}

#[derive(Module, Debug)]
struct Scaled {
    linear: Linear,
}

sample_loss!(Scaled, Points, |model, batch| {
    let logits = model.linear.forward(batch.x.clone());
    SampleLosses::classification(logits, batch.labels.clone()).map(|losses| losses * 2.0)
});

#[derive(Debug, Clone)]
struct Bare {
    x: Tensor<2>,
    y: Tensor<1, Int>,
}

#[derive(Module, Debug)]
struct Plain {
    linear: Linear,
}

sample_loss!(Plain, Bare { x, y }, |model, batch| {
    SampleLosses::classification(model.linear.forward(batch.x.clone()), batch.y.clone())
});

/// Soft labels are averaged before they are squared: nothing is left where they are the model's own.
#[test]
fn soft_labels_are_one_gradient() {
    let device = Device::flex().autodiff();
    let logits =
        Tensor::<3>::from_data([[[1.0, 0.0, -1.0], [0.5, 0.2, 0.0]]], &device).require_grad();
    let own = softmax(logits.clone().detach(), 2);
    let rest = own.clone().narrow(1, 1, 1);
    let hard = Tensor::<3>::from_data([[[0.0, 1.0, 0.0]]], &device);
    let gradient = |q: Tensor<3>| {
        let losses = SampleLosses::soft_labels(logits.clone(), q);
        let gradients = losses.sums().clone().sum().backward();
        let gradient = logits.grad(&gradients).expect("a gradient").into_data();
        (
            losses.tokens().expect("tokens")[0],
            gradient.iter::<f64>().collect::<Vec<f64>>(),
        )
    };
    let (tokens, of_own) = gradient(own);
    assert_eq!(tokens, 2);
    assert!(of_own.iter().all(|g| g.abs() < 1e-6), "{of_own:?}");
    // A hard label is one; a row of zeros does not count.
    let q = Tensor::cat(vec![hard.clone(), rest.zeros_like()], 1);
    let (tokens, of_hard) = gradient(q);
    assert_eq!(tokens, 1);
    let labels = Tensor::<2, Int>::from_data([[1, IGNORE]], &device);
    let expected = SampleLosses::cross_entropy(logits.clone(), labels);
    let gradients = expected.sums().clone().sum().backward();
    let expected = logits.grad(&gradients).expect("a gradient").into_data();
    let expected: Vec<f64> = expected.iter::<f64>().collect();
    assert_close("hard", &of_hard, &expected, BACKWARD, 1.0);
    let wrong = SampleLosses::soft_labels(
        logits.clone(),
        Tensor::cat(vec![hard.clone() * 2.0, hard], 1),
    );
    let sum: f64 = wrong.sums().clone().into_scalar();
    assert!(sum.is_nan());
}
