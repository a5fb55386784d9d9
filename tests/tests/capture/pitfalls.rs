//! Known wrong ways to compute a Fisher, each with the number that gives it away.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::gradient::{Gradient, GradientBatch, PerToken, Raw};
use fisher_core::grouping::{GroupReduction, HeadLayout, Scheme};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::{Sample, Tokens};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::models::{Sequences, Small};
use fisher_tests::tolerance::{REORDERED, assert_close};
use fisher_train::Error as TrainError;
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::capture::NonFinite;
use fisher_train::collect::CollectorConfig;
use fisher_train::labels::IGNORE;
use fisher_train::losses::SampleLosses;
use rstest::rstest;

fn samples(tokens: &[u64]) -> Vec<Sample> {
    let sample = |(i, &t): (usize, &u64)| Sample::new(i.to_string(), t).expect("tokens");
    tokens.iter().enumerate().map(sample).collect()
}

/// Statistics of one vector `v` of two elements.
fn vector(config: &StatisticsConfig, device: &Device) -> Statistics {
    let v = Parameter::new("v", [2], Role::Vector, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![v]).expect("a parameter");
    let heads = HeadLayout::none();
    config
        .init_for(&catalogue, &heads, "m".into(), device)
        .expect("statistics")
}

fn batch(rows: &[[f32; 2]], tokens: &[u64], device: &Device) -> GradientBatch {
    let data = TensorData::new(rows.concat(), [rows.len(), 2]);
    let mut batch = GradientBatch::new(samples(tokens));
    batch.insert(
        "v",
        Gradient::token_sum(Tensor::<2>::from_data(data, device)),
    );
    batch
}

fn elements(statistics: &Statistics, task: &str) -> fisher_core::moments::SampleMoments {
    let v = statistics
        .task(task)
        .expect("a task")
        .parameter("v")
        .expect("v");
    v.elementwise().expect("elements").read().expect("values")
}

/// Reduce after squaring: [1, −1] is 2, not 0; over samples, over elements, over groups.
#[rstest]
fn one_and_minus_one_make_two(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let scheme = vec![(burn::module::ParamGroup::from_path("v"), Scheme::Tensor)];
    let config = StatisticsConfig::new()
        .with_reduction(GroupReduction::Sum)
        .with_schemes(scheme);
    let mut statistics = vector(&config, &device);
    let gradients = batch(&[[1.0, -1.0], [-1.0, 1.0]], &[1, 1], &device);
    statistics.push("task", gradients).expect("gradients");
    let v = statistics
        .task("task")
        .expect("a task")
        .parameter("v")
        .expect("v");
    let sum = v.group("tensor").expect("groups").read().expect("values");
    assert_eq!(sum.mean, Some(vec![2.0]));
    // The gradient of the batch is 0; its square would be too.
    assert_eq!(elements(&statistics, "task").mean, Some(vec![1.0, 1.0]));
}

/// The gradient of a token mean must be told apart from that of a token sum, and so must the two
/// contributions.
#[rstest]
fn units_are_converted_once(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let tokens = Tokens::of(&samples(&[4, 2]), &device);
    let mean = Tensor::<2>::from_floats([[0.5, 1.0], [1.5, -2.0]], &device);
    let sum = Gradient::token_mean(mean).into_token_sum(&tokens);
    let read = |t: &Tensor<2>| t.to_data().iter::<f64>().collect::<Vec<_>>();
    assert_eq!(read(sum.tensor()), [2.0, 4.0, 3.0, -4.0]);
    let raw = sum.clone().contribution::<Raw>(&tokens);
    assert_eq!(read(raw.tensor()), [4.0, 16.0, 9.0, 16.0]);
    let per_token = sum.contribution::<PerToken>(&tokens);
    assert_eq!(read(per_token.tensor()), [1.0, 4.0, 4.5, 8.0]);
}

#[test]
fn a_mean_loss_is_multiplied_by_its_tokens_once() {
    let device = Device::flex();
    // In half precision too: bfloat16 would take 257 for 256.
    let half = Tensor::<1>::from_floats([1.0], &device).cast(DType::BF16);
    let losses = SampleLosses::token_mean(half.clone(), vec![257]);
    assert_eq!(
        losses.sums().to_data().iter::<f64>().collect::<Vec<_>>(),
        [257.0]
    );
    let tokens = Tokens::of(&samples(&[257]), &device);
    let sum = Gradient::token_mean(half.unsqueeze::<2>()).into_token_sum(&tokens);
    assert_eq!(
        sum.tensor().to_data().iter::<f64>().collect::<Vec<_>>(),
        [257.0]
    );

    let losses = Tensor::<1>::from_floats([0.5, 2.0], &device);
    let losses = SampleLosses::token_mean(losses, vec![4, 3]);
    assert_eq!(
        losses.sums().to_data().iter::<f64>().collect::<Vec<_>>(),
        [2.0, 6.0]
    );
}

/// n is samples: not tokens, not batches.
#[test]
fn error_bars_count_samples() {
    let device = Device::flex();
    let mut statistics = vector(&StatisticsConfig::new(), &device);
    let rows = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]];
    statistics
        .push("task", batch(&rows, &[1, 1, 1], &device))
        .expect("gradients");
    let read = elements(&statistics, "task");
    assert_eq!(read.count, 3);
    // C = 1, 4, 9: mean 14/3, variance 98/6, standard error √(98/18).
    let error = read.standard_error.expect("three samples");
    assert!((error[0] - (98.0f64 / 18.0).sqrt()).abs() < 1e-6);

    // A hundred tokens in three samples: the same count.
    let mut long = vector(&StatisticsConfig::new(), &device);
    long.push("task", batch(&rows, &[40, 50, 10], &device))
        .expect("gradients");
    assert_eq!(elements(&long, "task").count, 3);
    assert_eq!(long.task("task").expect("a task").tokens(), 100);
}

/// A task first seen late has the mean of its own samples alone.
#[test]
fn a_late_task_inherits_nothing() {
    let device = Device::flex();
    let mut statistics = vector(&StatisticsConfig::new(), &device);
    let gradients = batch(&[[100.0, 100.0]; 10], &[1; 10], &device);
    statistics.push("early", gradients).expect("gradients");
    statistics
        .push("late", batch(&[[2.0, 0.0]], &[1], &device))
        .expect("gradients");
    let late = elements(&statistics, "late");
    assert_eq!((late.count, late.mean), (1, Some(vec![4.0, 0.0])));
}

/// Squares of half-precision gradients are taken in float32: 1e-4 squared is below float16.
#[test]
fn squares_of_half_precision_do_not_underflow() {
    let device = Device::flex();
    let tokens = Tokens::of(&samples(&[1]), &device);
    for dtype in [DType::F16, DType::BF16] {
        let gradient = Tensor::<2>::from_floats([[1e-4, 300.0]], &device).cast(dtype);
        let contribution = Gradient::token_sum(gradient).contribution::<Raw>(&tokens);
        let values: Vec<f64> = contribution.tensor().to_data().iter::<f64>().collect();
        assert_close("squares", &values, &[1e-8, 90_000.0], 1e-2, 0.0);
    }
}

/// Nor in float32, where the device has float64.
#[rstest]
fn squares_keep_the_range_of_float64(#[values(Backend::Flex, Backend::Ndarray)] backend: Backend) {
    let device = backend.device().expect("a CPU");
    let tokens = Tokens::of(&samples(&[1]), &device);
    let gradient = Tensor::<2>::from_floats([[1e-30, 1e30]], &device);
    let contribution = Gradient::token_sum(gradient).contribution::<Raw>(&tokens);
    let values: Vec<f64> = contribution.tensor().to_data().iter::<f64>().collect();
    assert_close("squares", &values, &[1e-60, 1e60], 1e-6, 0.0);
}

/// The estimate is raw: no clamp, no epsilon. A dead entry is exactly 0, a tiny one itself.
#[rstest]
fn nothing_is_added_to_the_estimate(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let mut statistics = vector(&StatisticsConfig::new(), &device);
    let gradients = batch(&[[0.0, 1e-9], [0.0, 1e-9]], &[1, 1], &device);
    statistics.push("task", gradients).expect("gradients");
    let mean = elements(&statistics, "task").mean.expect("samples");
    assert_eq!(mean[0], 0.0);
    assert_close("tiny", &mean[1..], &[1e-18], 1e-6, 0.0);
}

fn collected(size: usize, data: &Sequences, model: &Small) -> Statistics {
    let config = StatisticsConfig::new();
    let mut statistics = config.init(model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    collector
        .collect_batches(model, "task", data.batches(size), &mut statistics)
        .expect("a collection");
    statistics
}

/// The result does not depend on the size of the loader's batches.
#[rstest]
fn the_batch_size_makes_no_difference(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(8, 4, &device);
    let one = collected(1, &data, &model);
    for size in [3, 8] {
        let other = collected(size, &data, &model);
        let (a, b) = (
            one.task("task").expect("a task"),
            other.task("task").expect("a task"),
        );
        assert_eq!(a.samples(), b.samples());
        for ((path, a), (_, b)) in a.parameters().zip(b.parameters()) {
            let mean = |p: &fisher_core::statistics::ParameterStatistics| {
                p.elementwise()
                    .expect("elements")
                    .read()
                    .expect("values")
                    .mean
                    .expect("samples")
            };
            assert_close(path, &mean(b), &mean(a), REORDERED, 1.0);
        }
    }
}

/// Every sample's gradient is its own and goes by its own id, whatever its place in the batch.
#[test]
fn contributions_go_by_their_own_sample() {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(4, 4, &device);
    let engine =
        fisher_train::capture::PerSample::new(&model, ["linear.weight"]).expect("an engine");
    for index in 0..4 {
        let in_batch = engine.gradient(&data, index).expect("a gradient");
        let alone = engine.gradient(&data.sample(index), 0).expect("a gradient");
        assert_eq!(
            in_batch.gradients.samples()[0].id(),
            format!("sample/{index}")
        );
        assert_eq!(in_batch.loss, alone.loss);
        let values = |g: &fisher_train::capture::LoopGradient| -> Vec<f64> {
            let gradient = g.gradients.get("linear.weight").expect("a gradient");
            gradient.to_full().to_data().iter::<f64>().collect()
        };
        assert_eq!(values(&in_batch), values(&alone));
        // And no other sample's.
        let next = engine.gradient(&data, (index + 1) % 4).expect("a gradient");
        assert_ne!(values(&in_batch), values(&next));
    }
}

/// Masked labels never count; labels are shifted once, by the function that says so.
#[test]
fn masked_tokens_do_not_count_and_labels_shift_once() {
    let device = Device::flex();
    // Position t predicts token t + 1 with logit 9 and everything else with 0.
    let tokens = [0usize, 2, 1, 3];
    let mut logits = vec![0.0f32; 4 * 5];
    for t in 0..3 {
        logits[t * 5 + tokens[t + 1]] = 9.0;
    }
    let logits = Tensor::<3>::from_data(TensorData::new(logits, [1, 4, 5]), &device);
    let labels = |l: [i64; 4]| Tensor::<2, Int>::from_data([l], &device);
    let right = (1.0 + 4.0 * (-9.0f64).exp()).ln();
    let check = |losses: SampleLosses, tokens: u64, loss: f64| {
        assert_eq!(losses.tokens().expect("labels"), [tokens]);
        let found: f64 = losses.sums().clone().into_scalar();
        assert!((found - loss).abs() < 1e-5, "{found} against {loss}");
    };
    check(
        SampleLosses::next_token(logits.clone(), labels([0, 2, 1, 3])),
        3,
        3.0 * right,
    );
    // The first label counts for nothing, masked ones neither.
    let masked = labels([IGNORE, IGNORE, 1, 3]);
    check(
        SampleLosses::next_token(logits.clone(), masked),
        2,
        2.0 * right,
    );
    let aligned = labels([2, 1, 3, IGNORE]);
    check(
        SampleLosses::cross_entropy(logits.clone(), aligned),
        3,
        3.0 * right,
    );
    let classes = logits.clone().narrow(1, 1, 1).squeeze_dim(1);
    let label = Tensor::<1, Int>::from_data([1], &device);
    check(SampleLosses::classification(classes, label), 1, right);

    // One token predicts nothing.
    let one = SampleLosses::next_token(
        logits.narrow(1, 0, 1),
        Tensor::<2, Int>::from_data([[1]], &device),
    );
    assert_eq!(one.tokens().expect("labels"), [0]);

    // A masked label has no gradient, also where the model forbids the token there (−∞).
    let forbidden = [[[f32::NEG_INFINITY, 0.0], [1.0, 0.0]]];
    let forbidden = Tensor::<3>::from_data(forbidden, &device.autodiff()).require_grad();
    let labels = Tensor::<2, Int>::from_data([[IGNORE, 0]], &forbidden.device());
    let losses = SampleLosses::cross_entropy(forbidden.clone(), labels);
    let loss = losses.sums().clone().sum();
    let gradient = forbidden.grad(&loss.backward()).expect("a gradient");
    let found: f64 = loss.into_scalar();
    let p = 1.0 / (1.0 + (-1.0f64).exp());
    assert!((found + p.ln()).abs() < 1e-6);
    let gradient: Vec<f64> = gradient.to_data().iter::<f64>().collect();
    assert_close(
        "gradient",
        &gradient,
        &[0.0, 0.0, p - 1.0, 1.0 - p],
        1e-5,
        0.0,
    );
}

#[test]
fn a_sample_without_active_tokens_is_refused_by_name() {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let mut data = Sequences::made_up(3, 4, &device);
    let row = Tensor::<2, Int>::full([1, 4], IGNORE, &device);
    data.labels = data.labels.slice_assign([1..2, 0..4], row);
    let config = StatisticsConfig::new();
    let mut statistics = config.init(&model).expect("statistics");
    let error = CollectorConfig::new()
        .init()
        .expect("a collector")
        .collect_batches(&model, "task", [data], &mut statistics)
        .expect_err("an empty sample");
    let TrainError::Core(Error::NoActiveTokens { sample }) = error else {
        panic!("{error}");
    };
    assert_eq!(sample, "sample/1");
}

/// Missing data is an error, never a 0; what was not asked for is refused.
#[test]
fn missing_and_unknown_parameters_are_errors() {
    let device = Device::flex();
    let mut statistics = vector(&StatisticsConfig::new(), &device);
    let mut missing = GradientBatch::new(samples(&[1]));
    let error = statistics
        .push("task", missing.clone())
        .expect_err("missing");
    assert!(matches!(&error, Error::MissingParameter { parameter } if parameter == "v"));
    missing.insert("v", Gradient::token_sum(Tensor::<2>::ones([1, 3], &device)));
    let error = statistics.push("task", missing).expect_err("misshapen");
    assert!(matches!(&error, Error::Shape { parameter, .. } if parameter == "v"));
    let empty = batch(&[], &[], &device);
    statistics.push("task", empty).expect("nothing to take in");
    let mut unknown = batch(&[[1.0, 1.0]], &[1], &device);
    unknown.insert("V", Gradient::token_sum(Tensor::<2>::ones([1, 2], &device)));
    let error = statistics.push("task", unknown).expect_err("unknown");
    assert!(matches!(&error, Error::UnknownParameter { parameter, .. } if parameter == "V"));
    assert!(statistics.task("task").is_err(), "nothing was taken in");
}

/// A linear layer with inputs of the caller's.
#[derive(Module, Debug)]
struct Line {
    linear: Linear,
}

#[derive(Clone)]
struct Points(Tensor<2>);

impl SampleBatch for Points {
    fn len(&self) -> usize {
        self.0.dims()[0]
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(format!("point-{index}"))
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self(mapper.tensor(&self.0))
    }
}

impl SampleLoss for Line {
    type Batch = Points;
    fn sample_losses(&self, batch: &Points) -> SampleLosses {
        let [count, _] = batch.0.dims();
        let outputs = self.linear.forward(batch.0.clone());
        SampleLosses::token_sum(outputs.sum_dim(1).reshape([count]), vec![1; count])
    }
}

#[rstest]
fn gradients_that_are_not_finite_are_named_or_skipped(
    #[values(f32::NAN, f32::INFINITY)] bad: f32,
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Line {
        linear: LinearConfig::new(2, 1).init(&device),
    };
    // The bias' gradient is 1 whatever the input is; only the weight's is not finite.
    let points = Points(Tensor::from_data(
        [[1.0, 2.0], [3.0, bad], [5.0, 6.0]],
        &device,
    ));
    let config = StatisticsConfig::new();
    let mut statistics = config.init(&model).expect("statistics");
    let error = CollectorConfig::new()
        .init()
        .expect("a collector")
        .collect_batches(&model, "task", [points.clone()], &mut statistics)
        .expect_err("not finite");
    let TrainError::Core(Error::NonFinite { sample, parameter }) = &error else {
        panic!("{error}");
    };
    assert_eq!((&**sample, &**parameter), ("point-1", "linear.weight"));

    let mut statistics = config.init(&model).expect("statistics");
    let collected = CollectorConfig::new()
        .with_non_finite(NonFinite::Skip)
        .init()
        .expect("a collector")
        .collect_batches(&model, "task", [points], &mut statistics)
        .expect("a collection");
    assert_eq!((collected.samples, collected.skipped), (2, 1));
    let task = statistics.task("task").expect("a task");
    assert_eq!(task.samples()[1].skipped.as_deref(), Some("linear.weight"));
    assert_eq!(task.count(), 2);
    for path in ["linear.weight", "linear.bias"] {
        let welford = task
            .parameter(path)
            .expect(path)
            .elementwise()
            .expect("elements");
        let read = welford.read().expect("values");
        assert_eq!(read.count, 2, "skipped for all parameters");
        assert!(read.mean.expect("samples").iter().all(|m| m.is_finite()));
    }
}

/// A pattern that matches nothing is a mistake, not an empty selection.
#[test]
fn patterns_that_match_nothing_are_errors() {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let typo = || burn::module::ParamGroup::from_predicate("no such layer");
    for config in [
        StatisticsConfig::new().with_elementwise_only(Some(typo())),
        StatisticsConfig::new().with_schemes(vec![(typo(), Scheme::Tensor)]),
    ] {
        let error = config.init(&model);
        let error = error.expect_err("a typo").to_string();
        assert!(error.contains("attention.query.weight"), "{error}");
    }
    let some = burn::module::ParamGroup::from_predicate("attention");
    let config = StatisticsConfig::new().with_elementwise_only(Some(some));
    let mut statistics = config.init(&model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    let data = Sequences::made_up(2, 4, &device);
    collector
        .collect_batches(&model, "task", [data], &mut statistics)
        .expect("a collection");
    for (path, parameter) in statistics.task("task").expect("a task").parameters() {
        assert_eq!(
            parameter.elementwise().is_some(),
            path.contains("attention"),
            "{path}"
        );
        assert!(!parameter.groups().is_empty());
    }
}

/// What was asked for is kept: no threshold drops small tensors.
#[test]
fn every_parameter_is_there() {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let statistics = collected(2, &Sequences::made_up(4, 4, &device), &model);
    let catalogue = Catalogue::of(&model).expect("parameters");
    let task = statistics.task("task").expect("a task");
    for parameter in catalogue.parameters() {
        let kept = task.parameter(parameter.path()).expect("a parameter");
        assert_eq!(
            kept.elementwise().expect("elements").elements(),
            parameter.elements()
        );
        assert!(!kept.groups().is_empty());
    }
}

/// Loss × c gives Fisher × c².
#[test]
fn the_fisher_scales_with_the_square_of_the_loss() {
    let device = Device::flex();
    let mut once = vector(&StatisticsConfig::new(), &device);
    let mut thrice = vector(&StatisticsConfig::new(), &device);
    let rows = [[0.5, -2.0], [1.5, 0.25]];
    once.push("task", batch(&rows, &[2, 3], &device))
        .expect("gradients");
    let rows = rows.map(|row| row.map(|g| 3.0 * g));
    thrice
        .push("task", batch(&rows, &[2, 3], &device))
        .expect("gradients");
    let nine_fold: Vec<f64> = elements(&once, "task")
        .mean
        .expect("samples")
        .iter()
        .map(|f| 9.0 * f)
        .collect();
    assert_close(
        "F",
        &elements(&thrice, "task").mean.expect("samples"),
        &nine_fold,
        1e-6,
        0.0,
    );
}
