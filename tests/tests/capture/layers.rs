//! Engines against each other and against finite differences: layers, types and devices that are
//! unlike the usual.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, Device};
use fisher_core::gradient::PerToken;
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::statistics::StatisticsConfig;
use fisher_tests::agree::agree;
use fisher_tests::backend::{Backend, absent};
use fisher_tests::differences::{agree_with_differences, by_loop};
use fisher_tests::layers::{Normed, Recurrent, floats, in_type};
use fisher_tests::models::{Sequences, Small};
use fisher_tests::subjects::{Mixing, Odd, Oddity, Pictures, Seer, Talker};
use fisher_tests::tolerance::{BACKWARD, HALF, assert_close};
use fisher_train::Error;
use fisher_train::batch::{SampleBatch, SampleLoss};
use fisher_train::capture::{CaptureConfig, Engine, PerSample, check};
use fisher_train::collect::CollectorConfig;
use fisher_train::monitor::{HookConfig, HookSource};
use rstest::rstest;

fn paths<M: Module>(model: &M) -> Vec<String> {
    let catalogue = Catalogue::of(model).expect("parameters");
    let paths = catalogue.parameters().iter().map(|p| p.path().to_owned());
    paths.collect()
}

/// The loop against differences of its own losses.
fn differentiate<M: SampleLoss>(model: &M, data: &M::Batch) {
    let rows = by_loop(model, data, &paths(model));
    agree_with_differences(model, &rows, |moved| {
        let engine = PerSample::new(moved, paths(moved).iter().map(String::as_str));
        let engine = engine.expect("an engine");
        let samples = 0..data.len();
        let loss = |index| engine.gradient(data, index).expect("a gradient").loss;
        samples.map(loss).collect()
    });
}

#[rstest]
fn recurrent_layers(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Recurrent::init(&device);
    let data = Sequences::made_up(5, 4, &device);
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(&model, &data.batches(3), &config, Engine::Auto);
    if backend == Backend::Flex {
        differentiate(&model, &data.slice(0..2));
    }
}

#[rstest]
fn norms_of_samples_and_transposed_convolutions(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Normed::init(&device);
    let batches = Pictures::made_up(5, &device).batches(3);
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(&model, &batches, &config, Engine::Auto);
    if backend == Backend::Flex {
        differentiate(&model, &batches[1]);
    }
}

#[rstest]
fn checkpointed_autodiff(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let plain = device.autodiff();
    let device = plain.clone().gradient_checkpointing();
    let config = StatisticsConfig::new();
    let data = Sequences::made_up(5, 4, &device);
    let model = Talker::init(&device);
    agree::<_, PerToken>(&model, &data.batches(3), &config, Engine::Trace);
    let pictures = Pictures::made_up(4, &device);
    let seer = Seer::init(true, &device);
    agree::<_, PerToken>(&seer, &pictures.batches(4), &config, Engine::Auto);

    // The numbers are those without checkpoints.
    let small = Small::init(&device);
    let found = by_loop(&small, &data, &paths(&small));
    let (small, data) = (Small::init(&plain), Sequences::made_up(5, 4, &plain));
    let expected = by_loop(&small, &data, &paths(&small));
    for (path, expected) in &expected {
        for (found, expected) in found[path].iter().zip(expected) {
            assert_close(path, found, expected, BACKWARD, 1.0);
        }
    }
}

/// Backends that have these types: ndarray has neither half.
fn half(backend: Backend, dtype: DType) -> Option<Device> {
    let device = backend.device()?;
    if device.supports_dtype(dtype) {
        return Some(device.autodiff());
    }
    absent(&format!(
        "{dtype:?} on {backend:?}: the device says that it has none"
    ));
    None
}

fn pictures_in(dtype: DType, count: usize, device: &Device) -> Pictures {
    let mut pictures = Pictures::made_up(count, device);
    pictures.pixels = pictures.pixels.cast(dtype);
    pictures
}

/// Elementwise means, by parameter.
fn means<M: SampleLoss>(
    model: &M,
    batches: &[M::Batch],
    engine: Engine,
) -> BTreeMap<String, Vec<f64>>
where
    M::Batch: Clone,
{
    let mut statistics = StatisticsConfig::new().init(model).expect("statistics");
    let collector = CollectorConfig::new()
        .with_engine(engine)
        .init()
        .expect("a collector");
    collector
        .collect_batches(model, "task", batches.to_vec(), &mut statistics)
        .unwrap_or_else(|error| panic!("{engine:?}: {error}"));
    let task = statistics.task("task").expect("a task");
    let means = task.parameters().map(|(path, parameter)| {
        let moments = parameter.elementwise().expect("elements");
        let moments = moments.read().expect("values");
        (path.to_owned(), moments.mean.expect("a mean"))
    });
    means.collect()
}

/// Relative distance of all parameters together.
fn distance(found: &BTreeMap<String, Vec<f64>>, expected: &BTreeMap<String, Vec<f64>>) -> f64 {
    let square = |x: f64| x * x;
    let pairs = expected
        .iter()
        .flat_map(|(path, e)| found[path].iter().zip(e));
    let off: f64 = pairs.map(|(f, e)| square(f - e)).sum();
    let size: f64 = expected.values().flatten().map(|e| square(*e)).sum();
    (off / size).sqrt()
}

#[rstest]
fn attention_in_half_precision(
    #[values(Backend::Flex, Backend::Wgpu)] backend: Backend,
    #[values(DType::F16, DType::BF16)] dtype: DType,
) {
    let Some(device) = half(backend, dtype) else {
        return;
    };
    let single = Talker::init(&device);
    let model = in_type(single.clone(), dtype);
    let data = Sequences::made_up(7, 5, &device);
    let expected = means(&single, &data.batches(3), Engine::Loop);
    for engine in [Engine::Loop, Engine::Auto, Engine::Trace] {
        let found = means(&model, &data.batches(3), engine);
        let off = distance(&found, &expected);
        assert!(off < HALF, "{dtype:?} {engine:?}: off by {off}");
    }
    let checkup = check(&model, &data.slice(0..4)).expect("a checkup");
    assert!(checkup.is_sound(), "{checkup}");
}

#[rstest]
fn convolutions_in_half_precision(
    #[values(Backend::Flex, Backend::Wgpu)] backend: Backend,
    #[values(DType::F16, DType::BF16)] dtype: DType,
) {
    let Some(device) = half(backend, dtype) else {
        return;
    };
    let single = Seer::init(false, &device);
    let model = in_type(single.clone(), dtype);
    let expected = means(
        &single,
        &Pictures::made_up(9, &device).batches(4),
        Engine::Loop,
    );
    let data = pictures_in(dtype, 9, &device);
    for engine in [Engine::Loop, Engine::Auto, Engine::Trace] {
        let found = means(&model, &data.batches(4), engine);
        let off = distance(&found, &expected);
        assert!(off < HALF, "{dtype:?} {engine:?}: off by {off}");
    }
    let checkup = check(&model, &data.batches(4)[0]).expect("a checkup");
    assert!(checkup.is_sound(), "{checkup}");
}

/// What rounding may do does not hide what mixing does.
#[rstest]
fn samples_that_mix_are_found_in_half_precision(
    #[values(Backend::Flex, Backend::Wgpu)] backend: Backend,
    #[values(DType::F16, DType::BF16)] dtype: DType,
) {
    let Some(device) = half(backend, dtype) else {
        return;
    };
    fn refused<M: SampleLoss>(model: &M, data: &M::Batch, engine: Engine)
    where
        M::Batch: Clone,
    {
        let checkup = check(model, data).expect("a checkup");
        assert!(!checkup.is_sound(), "{checkup}");
        let mut statistics = StatisticsConfig::new().init(model).expect("statistics");
        let collector = CollectorConfig::new()
            .with_engine(engine)
            .init()
            .expect("a collector");
        let error = collector
            .collect_batches(model, "task", [data.clone()], &mut statistics)
            .expect_err("it mixes");
        assert!(
            matches!(error, Error::Mixed { .. } | Error::LossesDisagree { .. }),
            "{error}"
        );
    }
    let data = Sequences::made_up(4, 5, &device);
    let mixing = in_type(Mixing::init(&device), dtype);
    refused(&mixing, &data, Engine::Loop);
    refused(&mixing, &data, Engine::Auto);
    // In eight weights of many.
    let little = in_type(Odd::init(Oddity::MixesLittle, 7, &device), dtype);
    refused(&little, &data, Engine::Trace);
}

/// Burn keeps running statistics one update behind until `valid()` asks for them.
#[rstest]
fn batch_norms_between_a_step_and_valid(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(3, 4, &device);
    let before = hash_weights(&model).expect("a hash");
    // A step of training, as far as batch norms see it.
    let step = || drop(model.sample_losses(&data));
    step();

    // As it is evaluated from here on, whoever has looked at it.
    let capture = CaptureConfig::new().init(&model, paths(&model).iter().map(String::as_str));
    let mut capture = capture.expect("a capture");
    let engine = PerSample::new(&model, ["linear.weight"]).expect("an engine");
    let hash = hash_weights(&model).expect("a hash");
    let found = means(&model, &data.batches(3), Engine::Auto);
    assert_ne!(hash, before, "the step moved them");
    let valid = model.valid();
    assert_eq!(hash_weights(&model).expect("a hash"), hash);
    assert_eq!(hash_weights(&valid).expect("a hash"), hash);
    let expected = means(&model, &data.batches(3), Engine::Loop);
    for (path, expected) in &expected {
        assert_close(path, &found[path], expected, 1e-4, 1e-2);
    }
    let loss = |index: usize| engine.gradient(&data, index).expect("a gradient").loss;
    let plain = Sequences {
        tokens: data.tokens.clone().inner(),
        labels: data.labels.clone().inner(),
        ids: data.ids.clone(),
    };
    let evaluated = valid.sample_losses(&plain).sums().to_data();
    let losses: Vec<f64> = (0..3).map(loss).collect();
    let evaluated: Vec<f64> = evaluated.iter::<f64>().collect();
    assert_close("losses", &losses, &evaluated, BACKWARD, 1.0);

    // Engines keep the model of when they were made, and leave the user's alone.
    let kept = floats(&model.valid());
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    step();
    step();
    assert_ne!(floats(&model.valid()), kept);
    let moved = floats(&model.valid());
    let losses: Vec<f64> = (0..3).map(loss).collect();
    assert_close("losses", &losses, &evaluated, BACKWARD, 1.0);
    let outcomes = capture.accumulate(&data, "task", &mut statistics);
    let losses = outcomes.expect("a capture").into_iter();
    let losses: Vec<f64> = losses
        .map(|outcome| outcome.loss.expect("a loss"))
        .collect();
    assert_close("losses", &losses, &evaluated, BACKWARD, 1.0);
    assert_eq!(floats(&model.valid()), moved);
}

/// Probes lie on the device that the hook was made for; a model elsewhere is copied there, and stays
/// where it is, running statistics included.
#[test]
fn a_capture_on_another_device_leaves_the_model_where_it_is() {
    let (Some(here), Some(there)) = (Backend::Flex.device(), Backend::Ndarray.device()) else {
        return;
    };
    let (here, there) = (here.autodiff(), there.autodiff());
    let probes = vec![("task".into(), Sequences::made_up(4, 4, &here).batches(2))];
    let hook = HookConfig::every(1).init(&Small::init(&here), HookSource::Probes(probes));
    let hook = hook.expect("a hook");
    let model = Small::init(&there);
    let before = (model.devices(), floats(&model.valid()));
    let batch = Sequences::made_up(4, 4, &there);
    assert!(hook.step(&model, &batch).expect("a capture"));
    assert_eq!((model.devices(), floats(&model.valid())), before);
}
