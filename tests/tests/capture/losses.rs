//! Losses and labels: which logits a label belongs to, which labels count, what is drawn, and in
//! which type it is all summed.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use fisher_core::kind::FisherKind;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::GradientStoreConfig;
use fisher_tests::backend::Backend;
use fisher_train::Error;
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::capture::{Engine, PerSample, check};
use fisher_train::collect::CollectorConfig;
use fisher_train::labels::{Aligned, Class, IGNORE, Labels, NextToken};
use fisher_train::losses::SampleLosses;
use fisher_train::monitor::{HookConfig, HookSource, Schedule};
use fisher_train::sketch::SketchConfig;
use rstest::rstest;

/// The device, if it has this type: ndarray has no half precision, Vulkan no arithmetic in bfloat16.
fn device(backend: Backend, dtype: FloatDType) -> Option<Device> {
    let device = backend.device()?;
    device.supports_dtype(dtype).then_some(device)
}

fn classes(labels: &Tensor<2, Int>) -> Vec<i64> {
    labels.to_data().iter::<i64>().collect()
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Pearson's χ² of draws from 1000 classes, those of the smallest probability among them.
#[rstest]
fn each_class_is_drawn_as_often_as_it_is_likely(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(FloatDType::F32, FloatDType::F16, FloatDType::BF16)] dtype: FloatDType,
) {
    const COUNT: usize = 1000;
    const ROWS: usize = 1024;
    let Some(device) = device(backend, dtype) else {
        return;
    };
    let rounds = if backend == Backend::Wgpu { 12 } else { 24 };
    // Probabilities from 0.3 to 1.9 thousandths, and logits that half precision has.
    let logits: Vec<f32> = (0..COUNT).map(|k| (k % 8) as f32 / 4.0 - 1.0).collect();
    let whole: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let p: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp() / whole).collect();
    let logits = TensorData::new(logits, [1, 1, COUNT]);
    let logits = Tensor::<3>::from_data(logits, &device).cast(dtype);
    let logits = logits.expand([ROWS, 1, COUNT]);
    let labels = Labels::<Aligned>::from(Tensor::<2, Int>::zeros([ROWS, 1], &device));
    let mut counts = vec![0u32; COUNT];
    for _ in 0..rounds {
        for class in classes(labels.draw(logits.clone()).tensor()) {
            counts[class as usize] += 1;
        }
    }
    let n = (rounds * ROWS) as f64;
    let squares = counts.iter().zip(&p);
    let chi: f64 = squares
        .map(|(&found, p)| (f64::from(found) - n * p).powi(2) / (n * p))
        .sum();
    let degrees = (COUNT - 1) as f64;
    let deviations = (chi - degrees) / (2.0 * degrees).sqrt();
    let never = counts.iter().filter(|count| **count == 0).count();
    println!("{backend:?} {dtype:?}: χ² {chi:.0}, {never} classes never drawn");
    assert!(deviations.abs() < 5.0, "χ² {chi} of {degrees} degrees");
}

/// One of ten thousand, beside classes that half precision would sum up to 1 without it.
#[rstest]
fn rare_classes_are_drawn(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(FloatDType::F32, FloatDType::BF16)] dtype: FloatDType,
) {
    const ROWS: usize = 400_000;
    let Some(device) = device(backend, dtype) else {
        return;
    };
    // p of the last is 1e-4, as far as the type has it.
    let logits = Tensor::<2>::from_floats([[0.0, 0.0, -8.517]], &device).cast(dtype);
    let rounded = numbers(logits.clone().cast(FloatDType::F32));
    let weight = rounded[2].exp();
    let expected = ROWS as f64 * weight / (2.0 + weight);
    let labels = Labels::<Class>::from(Tensor::<1, Int>::zeros([ROWS], &device));
    let drawn = labels.draw(logits.expand([ROWS, 3]));
    let found = classes(drawn.tensor()).iter().filter(|k| **k == 2).count() as f64;
    let off = (found - expected).abs() / expected.sqrt();
    assert!(off < 5.0, "{found} where {expected} are likely");
}

/// Drawn labels are scored by the very logits they were drawn from, however labels are laid out: the
/// gradient of their losses is 0 on average, at every position.
#[rstest]
fn drawn_labels_belong_to_the_logits_they_were_drawn_from(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    const ROWS: usize = 4096;
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    // Positions that all predict something else.
    let logits = [[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]];
    let logits = Tensor::<3>::from_data(logits, &device).repeat_dim(0, ROWS);
    let p = 2f64.exp() / (2.0 + 2f64.exp());
    let error = (p * (1.0 - p) / ROWS as f64).sqrt();
    let score = |losses: SampleLosses, logits: &Tensor<3>| {
        assert_eq!(losses.kind(), FisherKind::MonteCarlo);
        let gradients = losses.sums().clone().sum().backward();
        let gradient = logits.grad(&gradients).expect("a gradient");
        numbers(gradient.sum_dim(0).div_scalar(ROWS as f64))
    };
    let labels = Tensor::<2, Int>::from_data([[1, IGNORE, 1]], &device);
    let labels = labels.repeat_dim(0, ROWS);

    let shifted = Labels::<NextToken>::from(labels.clone()).draw(logits.clone());
    let leaf = logits.clone().detach().require_grad();
    let of_shifted = score(
        SampleLosses::next_token(leaf.clone(), shifted.clone()),
        &leaf,
    );
    let aligned = Labels::<Aligned>::from(labels).draw(logits.clone());
    let leaf = logits.clone().detach().require_grad();
    let of_aligned = score(
        SampleLosses::cross_entropy(leaf.clone(), aligned.clone()),
        &leaf,
    );
    for found in of_shifted.iter().chain(&of_aligned) {
        assert!(found.abs() < 5.0 * error, "{of_shifted:?} {of_aligned:?}");
    }

    // What does not count stays so; the first label of a sequence is never predicted.
    for (labels, kept) in [(shifted.tensor(), 0), (aligned.tensor(), 2)] {
        for row in classes(labels).chunks(3) {
            assert_eq!(row[1], IGNORE);
            assert!(kept == 2 || row[0] == 1, "{row:?}");
        }
    }
    let tokens = SampleLosses::next_token(logits, shifted).tokens();
    assert!(tokens.expect("labels").iter().all(|tokens| *tokens == 1));
}

/// A label that is no class is an error that names it, and its loss no number: never that of another
/// sample.
#[rstest]
fn a_label_out_of_range_is_named(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(5, 12, -1, -99)] wrong: i64,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let logits: Vec<f32> = (0..20).map(|k| (k as f32 * 0.7).sin()).collect();
    let logits = Tensor::<3>::from_data(TensorData::new(logits, [2, 2, 5]), &device);
    let of = |labels: [[i64; 2]; 2]| {
        let labels = Tensor::<2, Int>::from_data(labels, &device);
        SampleLosses::cross_entropy(logits.clone(), labels)
    };
    let right = of([[IGNORE, IGNORE], [1, 4]]);
    let losses = of([[0, wrong], [1, 4]]);
    let sums = numbers(losses.sums().clone());
    assert!(sums[0].is_nan(), "{sums:?}");
    assert_eq!(sums[1], numbers(right.sums().clone())[1]);
    let ids = ["one".to_owned(), "two".to_owned()];
    match losses.samples(&ids).expect_err("a wrong label") {
        Error::Label {
            sample,
            label,
            classes,
        } => assert_eq!((&*sample, label, classes), ("one", wrong, 5)),
        other => panic!("{other}"),
    }
    let error = losses.tokens().expect_err("a wrong label").to_string();
    assert!(error.contains(&wrong.to_string()), "{error}");
    let tokens = right.tokens().expect("labels");
    assert_eq!(tokens, [0, 2]);

    // Padding has names of its own.
    let labels = Tensor::<2, Int>::from_data([[0, wrong], [1, wrong]], &device);
    let padded = Labels::<Aligned>::from(labels).with_pad_tokens(&[wrong, 3]);
    let losses = SampleLosses::cross_entropy(logits.clone(), padded.clone());
    assert_eq!(losses.tokens().expect("labels"), [1, 1]);
    let short = of([[0, IGNORE], [1, IGNORE]]);
    assert_eq!(
        numbers(losses.sums().clone()),
        numbers(short.sums().clone())
    );
    assert_eq!(numbers(losses.means()), numbers(short.sums().clone()));
    assert_eq!(padded.sample(1).tensor().dims(), [1, 2]);

    // It is no reason to draw another.
    let labels = Tensor::<2, Int>::from_data([[0, wrong], [1, 4]], &device);
    let drawn = Labels::<Aligned>::from(labels).draw(logits.clone());
    assert_eq!(classes(drawn.tensor())[1], wrong);
    let classifier = logits.clone().narrow(1, 0, 1).squeeze_dim::<2>(1);
    let label = Tensor::<1, Int>::from_data([0, wrong], &device);
    let losses = SampleLosses::classification(classifier, label);
    assert!(matches!(losses.tokens(), Err(Error::Label { .. })));
}

#[test]
#[should_panic(expected = "before labels are drawn")]
fn padding_is_named_before_labels_are_drawn() {
    let device = Device::flex();
    let labels = Tensor::<2, Int>::from_data([[0, 1]], &device);
    let drawn = Labels::<Aligned>::from(labels).draw(Tensor::zeros([1, 2, 3], &device));
    let _ = drawn.with_pad_tokens(&[0]);
}

/// Half precision adds up to 256 and no further.
#[rstest]
fn losses_of_half_precision_are_summed_in_float32(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(FloatDType::F16, FloatDType::BF16)] dtype: FloatDType,
) {
    const TOKENS: usize = 1001;
    let Some(device) = device(backend, dtype) else {
        return;
    };
    let device = device.autodiff();
    let logits = Tensor::<3>::zeros([2, TOKENS, 3], &device).cast(dtype);
    let logits = logits.require_grad();
    let labels = Tensor::<2, Int>::zeros([2, TOKENS], &device);
    let losses = SampleLosses::cross_entropy(logits.clone(), labels);
    assert_eq!(losses.sums().dtype(), DType::F32);
    assert_eq!(losses.tokens().expect("labels"), [TOKENS as u64; 2]);
    for sum in numbers(losses.sums().clone()) {
        let expected = TOKENS as f64 * 3f64.ln();
        assert!((sum - expected).abs() < 1e-5 * expected, "{sum}");
    }
    for mean in numbers(losses.means()) {
        assert!((mean - 3f64.ln()).abs() < 1e-5, "{mean}");
    }
    let gradients = losses.sums().clone().sum().backward();
    let gradient = logits.grad(&gradients).expect("a gradient");
    let third = numbers(gradient.cast(FloatDType::F32))[1];
    assert!((third - 1.0 / 3.0).abs() < 2e-3, "{third}");

    let given = Tensor::<1>::from_floats([0.5], &device).cast(dtype);
    let given = SampleLosses::token_sum(given, vec![1]);
    assert_eq!(given.sums().dtype(), DType::F32);
}

#[derive(Debug, Clone)]
struct Points {
    inputs: Tensor<2>,
    labels: Labels<Class>,
    ids: Vec<String>,
}

impl Points {
    fn new(labels: [i64; 4], device: &Device) -> Self {
        let inputs = (0..8).map(|k| (k as f32).sin()).collect();
        Self {
            inputs: Tensor::from_data(TensorData::new(inputs, [4, 2]), device),
            labels: Tensor::<1, Int>::from_data(labels, device).into(),
            ids: (0..4).map(|i| format!("point {i}")).collect(),
        }
    }

    fn drawn(&self, model: &Model) -> Self {
        let logits = model.linear.forward(self.inputs.clone());
        Self {
            labels: self.labels.draw(logits),
            ..self.clone()
        }
    }
}

impl SampleBatch for Points {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(self.ids[index].clone())
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self {
            inputs: mapper.tensor(&self.inputs),
            labels: mapper.tensor(&self.labels),
            ids: mapper.list(&self.ids),
        }
    }
}

#[derive(Module, Debug)]
struct Model {
    linear: Linear,
}

impl SampleLoss for Model {
    type Batch = Points;

    fn sample_losses(&self, batch: &Points) -> SampleLosses {
        let logits = self.linear.forward(batch.inputs.clone());
        SampleLosses::classification(logits, batch.labels.clone())
    }
}

fn model(device: &Device) -> Model {
    Model {
        linear: LinearConfig::new(2, 3).init(device),
    }
}

fn statistics(model: &Model, kind: FisherKind) -> Statistics {
    let config = StatisticsConfig::new().with_kind(kind);
    config.init(model).expect("statistics")
}

/// A Monte-Carlo Fisher is one whose labels were drawn, whatever the configuration claims.
#[rstest]
fn the_kind_follows_from_the_labels(#[values(Engine::Loop, Engine::Trace)] engine: Engine) {
    let device = Device::flex().autodiff();
    let model = model(&device);
    let data = Points::new([0, 2, 1, 1], &device);
    let drawn = data.drawn(&model);
    let collector = CollectorConfig::new()
        .with_engine(engine)
        .init()
        .expect("a collector");
    let (of_data, of_draws) = (FisherKind::Empirical, FisherKind::MonteCarlo);
    for (kind, right, wrong) in [(of_data, &data, &drawn), (of_draws, &drawn, &data)] {
        let mut statistics = statistics(&model, kind);
        let store = GradientStoreConfig::new(1 << 20)
            .with_kind(kind)
            .init(&model);
        let mut store = store.expect("a store");
        let into = (&mut statistics, &mut store);
        let error = collector.collect_batches(&model, "task", [wrong.clone()], into);
        match error.expect_err("labels of another kind") {
            Error::LossKind { expected, found } => assert!(expected == kind && found != kind),
            other => panic!("{other}"),
        }
        assert!(statistics.task("task").is_err() && store.samples("task").is_empty());
        let into = (&mut statistics, &mut store);
        let collected = collector.collect_batches(&model, "task", [right.clone()], into);
        assert_eq!(collected.expect("a collection").samples, 4);
        assert_eq!(statistics.provenance().kind, kind);
        let alone = PerSample::new(&model, ["linear.weight"]).expect("a model");
        assert_eq!(alone.gradient(right, 0).expect("a gradient").kind, kind);
        let sketch = SketchConfig::new().init().expect("a sketch");
        let sketched =
            sketch.collect::<_, fisher_core::gradient::PerToken>(&model, [right.clone()]);
        assert_eq!(sketched.expect("a sketch").kind(), kind);
    }
    let sketch = SketchConfig::new().init().expect("a sketch");
    let mixed =
        sketch.collect::<_, fisher_core::gradient::PerToken>(&model, [data.clone(), drawn.clone()]);
    assert!(matches!(mixed, Err(Error::LossKind { .. })));

    let config = HookConfig::new(Schedule::new().with_at_end(true))
        .with_statistics(StatisticsConfig::new().with_kind(of_draws));
    for (batch, right) in [(data, false), (drawn, true)] {
        let source = HookSource::Probes(vec![("task".into(), vec![batch])]);
        let hook = config.init(&model, source);
        let finished = hook.expect("a hook").finish(&model);
        assert_eq!(finished.is_ok(), right, "{finished:?}");
    }
}

/// Where a model has no classes, the loss says that its targets were drawn.
#[test]
fn losses_of_drawn_targets_say_so() {
    let device = Device::flex();
    let losses = SampleLosses::token_sum(Tensor::<1>::ones([2], &device), vec![1, 1]);
    assert_eq!(losses.kind(), FisherKind::Empirical);
    let drawn = losses.of_drawn_targets().map(|losses| losses * 2.0);
    assert_eq!(drawn.kind(), FisherKind::MonteCarlo);
    assert_eq!(numbers(drawn.sums().clone()), [2.0, 2.0]);
}

/// The engines name the sample, and count nothing.
#[rstest]
fn collection_names_a_wrong_label(#[values(Engine::Loop, Engine::Trace)] engine: Engine) {
    let device = Device::flex().autodiff();
    let model = model(&device);
    let data = Points::new([0, 2, 3, 1], &device);
    let mut statistics = statistics(&model, FisherKind::Empirical);
    let skipping = CollectorConfig::new()
        .with_engine(engine)
        .with_non_finite(fisher_train::capture::NonFinite::Skip);
    let error = skipping.init().expect("a collector").collect_batches(
        &model,
        "task",
        [data.clone()],
        &mut statistics,
    );
    let is_named = |error: Error| match error {
        Error::Label { sample, label, .. } => assert_eq!((&*sample, label), ("point 2", 3)),
        other => panic!("{other}"),
    };
    is_named(error.expect_err("a wrong label"));
    is_named(check(&model, &data).expect_err("a wrong label"));
    let sketch = SketchConfig::new().init().expect("a sketch");
    let sketched = sketch.collect::<_, fisher_core::gradient::PerToken>(&model, [data]);
    is_named(sketched.expect_err("a wrong label"));
}

/// A loss that is no number is a gradient of nothing, also where that is finite.
#[rstest]
fn a_loss_that_is_no_number_is_not_counted(#[values(Engine::Loop, Engine::Auto)] engine: Engine) {
    #[derive(Module, Debug)]
    struct Broken {
        model: Model,
    }
    impl SampleLoss for Broken {
        type Batch = Points;
        fn sample_losses(&self, batch: &Points) -> SampleLosses {
            let losses = self.model.sample_losses(batch);
            let broken = batch.ids.iter().map(|id| id == "point 1");
            let broken: Vec<bool> = broken.collect();
            let data = TensorData::new(broken, [batch.ids.len()]);
            let broken = Tensor::from_bool(data, &losses.sums().device());
            losses.map(|losses| losses.mask_fill(broken, f32::INFINITY))
        }
    }
    let device = Device::flex().autodiff();
    let model = Broken {
        model: model(&device),
    };
    let data = Points::new([0, 2, 1, 1], &device);
    let config = CollectorConfig::new().with_engine(engine);
    let init = || {
        let config = StatisticsConfig::new();
        config.init(&model).expect("statistics")
    };
    let mut statistics = init();
    let collector = config.clone().init().expect("a collector");
    let error = collector.collect_batches(&model, "task", [data.clone()], &mut statistics);
    let error = error.expect_err("an infinite loss").to_string();
    assert!(
        error.contains("point 1") && error.contains("loss"),
        "{error}"
    );
    let mut statistics = init();
    let collector = config
        .with_non_finite(fisher_train::capture::NonFinite::Skip)
        .init()
        .expect("a collector");
    let collected = collector.collect_batches(&model, "task", [data], &mut statistics);
    let collected = collected.expect("a collection");
    assert_eq!((collected.samples, collected.skipped), (3, 1));
    assert!(collected.loss.is_finite());
}

/// The mean of what is drawn is the model's distribution, also over float64 logits.
#[test]
fn float64_stays_float64() {
    let device = Device::flex();
    let logits = Tensor::<3>::from_data(
        TensorData::new(vec![0.1f64, -0.7, 1.3], [1, 1, 3]),
        (&device, DType::F64),
    );
    let labels = Tensor::<2, Int>::from_data([[2]], &device);
    let losses = SampleLosses::cross_entropy(logits.clone(), labels.clone());
    assert_eq!(losses.sums().dtype(), DType::F64);
    let p = numbers(softmax(logits.clone(), 2));
    assert!((numbers(losses.sums().clone())[0] + p[2].ln()).abs() < 1e-12);
    let drawn = Labels::<Aligned>::from(labels).draw(logits);
    assert!((0..3).contains(&classes(drawn.tensor())[0]));
}

/// A byte holds 127, and 156 is −100 in one without a sign.
#[rstest]
#[case::signed(DType::I8)]
#[case::unsigned(DType::U8)]
fn labels_of_a_byte_are_counted(#[case] dtype: DType) {
    let device = Device::flex();
    let logits = Tensor::<3>::zeros([1, 300, 200], &device);
    let class = if dtype == DType::U8 { 156 } else { 100 };
    let labels = TensorData::new(vec![class; 300], [1, 300]).convert_dtype(dtype);
    let labels = Tensor::<2, Int>::from_data(labels, (&device, dtype));
    let losses = SampleLosses::cross_entropy(logits, labels);
    assert_eq!(losses.tokens().expect("classes"), [300]);
    let expected = 300.0 * 200f64.ln();
    assert!((numbers(losses.sums().clone())[0] - expected).abs() < 1e-3 * expected);
}
