//! Traces of unmodified models against the loop: every layer, every device.

use crate::zoo::{
    Around, Attentions, Bare, Cached, Convolutions, Late, Layer, Made, Norms, Recurrences,
    Transformers,
};
use burn::data::dataloader::batcher::Batcher;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor};
use fisher_core::gradient::PerToken;
use fisher_core::grouping::AttentionConfig;
use fisher_core::model::Catalogue;
use fisher_core::statistics::StatisticsConfig;
use fisher_examples::model::CausalTransformerConfig;
use fisher_examples::tasks::{Item, Task, TaskBatcher};
use fisher_examples::usual::{DigitClassifier, Digits, Forecaster, Series, TextClassifier, Texts};
use fisher_tests::agree::agree;
use fisher_tests::backend::Backend;
use fisher_tests::layers::floats;
use fisher_tests::models::{Sequences, Small};
use fisher_tests::subjects::Pictures;
use fisher_train::batch::SampleLoss;
use fisher_train::capture::{CaptureConfig, Engine, check};
use fisher_train::collect::CollectorConfig;
use fisher_train::losses::SampleLosses;
use fisher_train::{Error, sample_loss};
use rstest::rstest;

/// All that is accumulated by traces is what the loop gives, and no parameter is left to the loop.
fn traced<M: SampleLoss>(model: &M, batches: &[M::Batch])
where
    M::Batch: Clone,
{
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(model, batches, &config, Engine::Trace);
}

fn around<L: Layer>(layer: L, device: &Device) {
    let model = Around::init(layer, device);
    // Two shapes, and samples as many as other axes are long.
    let batches = [(3, 5), (8, 5)].map(|(count, length)| Texts::random(count, length, 7, device));
    for batch in batches {
        traced(&model, &[batch]);
    }
}

#[rstest]
fn layers(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(
        "norms",
        "attentions",
        "norm first",
        "norm last",
        "cached",
        "recurrences",
        "bare",
        "adapters",
        "normalized"
    )]
    layer: &str,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = &device.autodiff();
    match layer {
        "norms" => around(Norms::init(device), device),
        "attentions" => around(Attentions::init(device), device),
        "norm first" => around(Transformers::init(true, device), device),
        "norm last" => around(Transformers::init(false, device), device),
        "cached" => around(Cached::init(device), device),
        "recurrences" => around(Recurrences::init(device), device),
        "bare" => around(Bare::init(5, device), device),
        "adapters" => around(Made::init(true, device), device),
        "normalized" => around(Made::init(false, device), device),
        other => panic!("no layer {other}"),
    }
}

#[rstest]
fn convolutions(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Convolutions::init(&device);
    traced(&model, &Pictures::made_up(5, &device).batches(3));
    traced(&model, &[Pictures::made_up(4, &device)]);
}

/// Models as their users write them, with dropout and batch norms.
#[rstest]
fn usual_models(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    device.seed(1);
    let device = device.autodiff();
    let texts = Texts::random(4, 9, 20, &device);
    traced(&TextClassifier::new(20, 9, 16, 2, &device), &[texts]);
    traced(
        &Forecaster::new(5, &device),
        &[Series::random(4, 6, &device)],
    );
    if backend != Backend::Wgpu {
        // 400 thousand elements by a software renderer are slow.
        traced(
            &DigitClassifier::new(&device),
            &[Digits::random(3, &device)],
        );
    }
}

/// What is at hand of a transformer is factors, not gradients.
#[test]
fn a_transformer_is_traced_by_factors() {
    let device = Device::flex().autodiff();
    let model = CausalTransformerConfig::new(20, 8).init(&device);
    let item = |i: i64| Item {
        id: format!("sequence {i}"),
        tokens: (0..8).map(|t| (t * t + 3 * i) % 20).collect(),
        labels: (1..9).map(|t| (t * t + 3 * i) % 20).collect(),
        task: Task::Induction,
    };
    let batch = TaskBatcher.batch((0..3).map(item).collect(), &device);
    let checkup = check(&model, &batch).expect("a checkup");
    assert!(checkup.is_sound() && checkup.is_fast(), "{checkup}");
    let catalogue = Catalogue::of(&model).expect("parameters");
    for parameter in catalogue.parameters() {
        let way = &checkup.traced[parameter.path()];
        let expected = match parameter.shape().len() {
            1 => "traced, whole gradients",
            _ if ["token.weight", "position.weight"].contains(&parameter.path()) => {
                "traced, lookups at 8 positions"
            }
            _ => "traced, products over 8 positions",
        };
        assert_eq!(way, expected, "{}", parameter.path());
    }
    let config = StatisticsConfig::new().with_attention(Some(AttentionConfig::new(4)));
    agree::<_, PerToken>(&model, &[batch], &config, Engine::Trace);
}

#[test]
fn a_trace_leaves_the_model_as_it_is() {
    let device = Device::flex().autodiff();
    let model = DigitClassifier::new(&device);
    let batch = Digits::random(4, &device);
    // So that running statistics are not those of the beginning.
    let _ = model.forward(batch.images.clone());
    let before = floats(&model.valid());
    let mut statistics = StatisticsConfig::new()
        .with_elementwise(false)
        .init(&model)
        .expect("statistics");
    let paths: Vec<String> = statistics.paths().map(str::to_owned).collect();
    let mut capture = CaptureConfig::new()
        .with_engine(Engine::Trace)
        .init(&model, paths.iter().map(String::as_str))
        .expect("a capture");
    capture
        .accumulate(&batch, "digits", &mut statistics)
        .expect("a batch");
    // Not as a whole in a message.
    assert!(floats(&model.valid()) == before, "the model has changed");
    assert_eq!(model.devices(), [device]);
}

#[test]
fn threads_do_not_get_in_each_others_way() {
    let mean = || {
        let device = Device::flex().autodiff();
        let model = Small::init(&device);
        let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
        let collector = CollectorConfig::new()
            .with_engine(Engine::Trace)
            .init()
            .expect("a collector");
        let batches = Sequences::made_up(12, 6, &device).batches(4);
        collector
            .collect_batches(&model, "task", batches, &mut statistics)
            .expect("a collection");
        let task = statistics.task("task").expect("a task");
        let layers = task.layers();
        layers.mean.expect("a mean")
    };
    let expected = mean();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(mean)).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("no panic"), expected);
        }
    });
}

#[derive(Debug, Clone)]
struct Points {
    x: Tensor<2>,
    ids: Vec<String>,
}

impl Points {
    fn of(count: usize, device: &Device) -> Self {
        let values: Vec<f32> = (0..2 * count).map(|k| (k as f32).sin()).collect();
        Self {
            x: Tensor::<1>::from_floats(values.as_slice(), device).reshape([count, 2]),
            ids: (0..count).map(|i| format!("point {i}")).collect(),
        }
    }
}

/// Makes a tensor where it once was told to.
#[derive(Module, Debug)]
struct Remembering {
    linear: Linear,
    #[module(skip)]
    device: Device,
}

sample_loss!(Remembering, Points { x; ids }, |model, batch| {
    let x = batch.x.clone() + Tensor::ones([1, 2], &model.device);
    let samples = batch.ids.len();
    let losses = model.linear.forward(x).square().sum_dim(1).reshape([samples]);
    SampleLosses::token_sum(losses, vec![1; samples])
});

#[test]
fn a_remembered_device_goes_by_the_loop() {
    let device = Device::flex().autodiff();
    let model = Remembering {
        linear: LinearConfig::new(2, 3).init(&device),
        device: Device::flex(),
    };
    let batch = Points::of(4, &device);
    let config = StatisticsConfig::new();
    let batches = std::slice::from_ref(&batch);
    agree::<_, PerToken>(&model, batches, &config, Engine::Auto);
    let checkup = check(&model, &batch).expect("a checkup");
    assert!(checkup.is_sound() && !checkup.is_fast(), "{checkup}");
    assert!(
        checkup.to_string().contains("a device it remembers"),
        "{checkup}"
    );
    let mut statistics = config.init(&model).expect("statistics");
    let collector = CollectorConfig::new()
        .with_engine(Engine::Trace)
        .init()
        .expect("a collector");
    let error = collector.collect_batches(&model, "task", [batch], &mut statistics);
    assert!(matches!(error, Err(Error::Untraced { .. })), "{error:?}");
}

/// Statistics of the batch by hand: samples see each other.
#[derive(Module, Debug)]
struct Centered {
    linear: Linear,
    norm: BatchNorm,
}

sample_loss!(Centered, Points, |model, batch| {
    let x = model.norm.forward(batch.x.clone());
    let x = x.clone() - x.mean_dim(0);
    let samples = batch.ids.len();
    let losses = model
        .linear
        .forward(x)
        .square()
        .sum_dim(1)
        .reshape([samples]);
    SampleLosses::token_sum(losses, vec![1; samples])
});

#[test]
fn a_mean_over_the_batch_is_named() {
    let device = Device::flex().autodiff();
    let model = Centered {
        linear: LinearConfig::new(2, 3).init(&device),
        norm: BatchNormConfig::new(2).init(&device),
    };
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    let batch = Points::of(4, &device);
    let mut refused = |engine| {
        let collector = CollectorConfig::new()
            .with_engine(engine)
            .init()
            .expect("a collector");
        let batches = [batch.clone()];
        let error = collector.collect_batches(&model, "task", batches, &mut statistics);
        error.expect_err("it mixes").to_string()
    };
    let error = refused(Engine::Trace);
    assert!(
        error.contains("a sum over all samples goes into Sub"),
        "{error}"
    );
    let error = refused(Engine::Auto);
    assert!(error.contains("in its batch and"), "{error}");
    // The losses themselves are one for all.
    let one = OneForAll {
        linear: LinearConfig::new(2, 3).init(&device),
    };
    let checkup = check(&one, &batch).expect("a checkup");
    assert_eq!(checkup.mixed.as_deref(), Some("the losses"), "{checkup}");
}

#[derive(Module, Debug)]
struct OneForAll {
    linear: Linear,
}

sample_loss!(OneForAll, Points, |model, batch| {
    let samples = batch.ids.len();
    let losses = model.linear.forward(batch.x.clone()).square().sum();
    SampleLosses::token_sum(losses.expand([samples]), vec![1; samples])
});

/// Each sample's own sum, by places in a list: it looks like a sum over all of them.
#[derive(Module, Debug)]
struct Segments {
    linear: Linear,
}

sample_loss!(Segments, Points, |model, batch| {
    let samples = batch.ids.len();
    let values = model
        .linear
        .forward(batch.x.clone())
        .square()
        .reshape([3 * samples]);
    let places: Vec<i64> = (0..3 * samples as i64).map(|k| k / 3).collect();
    let device = values.device();
    let places = Tensor::<1, Int>::from_ints(places.as_slice(), &device);
    let sums = Tensor::<1>::zeros([samples], &device);
    let sums = sums.select_assign(0, places, values, IndexingUpdateOp::Add);
    SampleLosses::token_sum(
        sums * (batch.x.clone().sum_dim(1).reshape([samples]) + 2.0),
        vec![1; samples],
    )
});

#[test]
fn sums_by_segments_go_by_the_loop() {
    let device = Device::flex().autodiff();
    let model = Segments {
        linear: LinearConfig::new(2, 3).init(&device),
    };
    let batch = Points::of(4, &device);
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(&model, &[batch], &config, Engine::Auto);
}

/// What comes as factors, of a model around a layer.
fn ways<L: Layer>(layer: L, device: &Device) -> Vec<(String, String)> {
    let model = Around::init(layer, device);
    let checkup = check(&model, &Texts::random(3, 5, 7, device)).expect("a checkup");
    assert!(checkup.is_sound() && checkup.is_fast(), "{checkup}");
    checkup.traced.into_iter().collect()
}

/// Also where the first state is zeros that have no samples, and where samples are the same rows.
#[test]
fn recurrent_weights_are_products_over_steps() {
    let device = Device::flex().autodiff();
    for (path, way) in ways(Recurrences::init(&device), &device) {
        if path.ends_with("transform.weight") {
            assert_eq!(way, "traced, products over 5 positions", "{path}");
        }
    }
}

/// Convolutions whose gradients are larger than what they are made of, of frames too.
#[rstest]
fn late_convolutions_are_products_of_patches(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1, 2)] frames: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Late::init(frames, &device);
    let batch = Pictures::made_up(4, &device);
    traced(&model, std::slice::from_ref(&batch));
    let checkup = check(&model, &batch).expect("a checkup");
    for path in ["plane.weight", "line.weight"] {
        let way = &checkup.traced[path];
        assert!(way.starts_with("traced, products"), "{path}: {way}");
    }
}
