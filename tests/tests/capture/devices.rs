//! Statistics that move between devices, with and without float64.

use burn::tensor::{DType, Device, Tensor};
use fisher_core::Error;
use fisher_core::gradient::{GradientSink, PerToken, SampleGradient};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::moments::accumulation_dtype;
use fisher_core::statistics::{Averages, Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{Golden, TASKS};
use fisher_tests::models::Sequences;
use fisher_tests::signed::Signed;
use fisher_tests::subjects::Talker;
use fisher_tests::tolerance::assert_close;
use fisher_train::Error as TrainError;
use fisher_train::capture::{CaptureConfig, Engine};
use rstest::rstest;

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

fn golden(compensated: bool, range: std::ops::Range<usize>, device: &Device) -> Statistics {
    let golden = Golden::load("gpt2-fused");
    let config = StatisticsConfig::new().with_compensated(compensated);
    let mut statistics = golden.statistics(&config, device);
    push(&mut statistics, range);
    statistics
}

fn push(statistics: &mut Statistics, range: std::ops::Range<usize>) {
    let golden = Golden::load("gpt2-fused");
    let device = statistics.device().clone();
    for task in TASKS {
        let batch = golden.batch(task, range.clone(), &device);
        statistics.push(task, batch).expect("gradients");
    }
}

/// Mean and variance of everything, after as many samples.
fn assert_same(found: &Statistics, expected: &Statistics, tolerance: f64) {
    for task in TASKS {
        let [a, b] = [found, expected].map(|s| s.task(task).expect("a task"));
        assert_eq!(a.samples(), b.samples());
        for ((path, a), (_, b)) in a.parameters().zip(b.parameters()) {
            let elements = [a, b].map(|p| p.elementwise().expect("elements"));
            let groups = a.groups().iter().zip(b.groups());
            let groups = groups.map(|((_, a), (_, b))| [a, b]);
            for pair in groups.chain([elements]) {
                let [a, b] = pair.map(|w| w.read().expect("values"));
                assert_eq!(a.count, b.count);
                let [x, y] = [&a, &b].map(|m| m.mean.as_ref().expect("samples"));
                assert_close(path, x, y, tolerance, 1e-3);
                let [x, y] = [&a, &b].map(|m| m.variance.as_ref().expect("samples"));
                assert_close(path, x, y, tolerance, 1e-3);
            }
        }
    }
}

fn dtype(statistics: &Statistics, task: &str) -> DType {
    let task = statistics.task(task).expect("a task");
    let (_, parameter) = task.parameters().next().expect("a parameter");
    let (_, groups) = &parameter.groups()[0];
    groups.mean().expect("samples").dtype()
}

/// What a device without float64 saved, as pairs of float32 without a wish for them, goes on with the
/// host's float64.
#[rstest]
fn pairs_go_on_in_float64(#[values(Backend::Flex, Backend::Ndarray)] backend: Backend) {
    let device = backend.device().expect("a CPU");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    golden(true, 0..3, &device).save(&path).expect("a file");
    let mut file = Signed::read(&path);
    file.about["plan"]["compensated"] = false.into();
    file.write(&path);
    let loaded = || Statistics::<PerToken>::load(&path, &device).expect("statistics");
    let expected = golden(false, 0..5, &device);
    // Squares were taken in float32.
    const SQUARES: f64 = 1e-5;

    let mut pushed = loaded();
    assert_eq!(dtype(&pushed, "alpha"), DType::F64);
    push(&mut pushed, 3..5);
    assert_same(&pushed, &expected, SQUARES);

    let data = Golden::load("gpt2-fused");
    let mut streamed = loaded();
    for task in TASKS {
        let batch = data.batch(task, 3..5, &device);
        let begun = streamed.begin(task, batch.samples());
        begun.expect("new samples");
        for (path, gradient) in batch {
            streamed.put(&path, gradient).expect("a parameter");
        }
        streamed.commit().expect("all parameters");
    }
    assert_same(&streamed, &expected, SQUARES);

    let mut merged = loaded();
    merged
        .merge(golden(false, 3..5, &device))
        .expect("the same");
    assert_same(&merged, &expected, SQUARES);
}

/// Products fold into the host's float64 in place.
#[test]
fn products_go_on_after_pairs() {
    let device = flex();
    let model = burn::nn::LinearConfig::new(4, 3)
        .with_bias(false)
        .init(&device.clone().autodiff());
    let fresh = |compensated: bool| {
        let config = StatisticsConfig::new().with_compensated(compensated);
        config.init(&model).expect("statistics")
    };
    let add = |statistics: &mut Statistics, ids: [&str; 2]| {
        let samples = ids.map(|id| fisher_core::sample::Sample::new(id, 2).expect("tokens"));
        let factor = |side: usize| {
            let values = Tensor::<1, burn::tensor::Int>::arange(0..(12 * side) as i64, &device);
            values.float().sin().reshape([2, 6, side])
        };
        let (left, right) = (factor(4), factor(3));
        statistics.begin("task", &samples).expect("new samples");
        let put = statistics.put("weight", SampleGradient::Outer { left, right });
        put.expect("factors");
        statistics.commit().expect("all parameters");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    let mut pairs = fresh(true);
    add(&mut pairs, ["a", "b"]);
    pairs.save(&path).expect("a file");
    let mut file = Signed::read(&path);
    file.about["plan"]["compensated"] = false.into();
    file.write(&path);
    let mut resumed = Statistics::<PerToken>::load(&path, &device).expect("statistics");
    let mut expected = fresh(false);
    add(&mut expected, ["a", "b"]);
    // A task that came whole from statistics of the other kind goes on as ours do.
    let mut merged = fresh(false);
    merged.merge(pairs.clone()).expect("the same");
    let mut compensated = fresh(true);
    compensated.merge(expected.clone()).expect("the same");
    for statistics in [&mut resumed, &mut expected, &mut merged, &mut compensated] {
        add(statistics, ["c", "d"]);
    }
    assert_eq!(dtype(&merged, "task"), DType::F64);
    assert_eq!(dtype(&compensated, "task"), DType::F32);
    let mean = |s: &Statistics| {
        let task = s.task("task").expect("a task").parameter("weight");
        let elements = task.expect("a parameter").elementwise().expect("elements");
        let read = elements.read().expect("values");
        assert_eq!(read.count, 4);
        [read.mean.expect("samples"), read.variance.expect("samples")].concat()
    };
    for found in [resumed, merged, compensated] {
        assert_close("F", &mean(&found), &mean(&expected), 1e-6, 1e-3);
    }
}

/// There and back between the host and a device that may have no float64, and on from there.
#[test]
fn statistics_move_to_another_kind_of_device_and_back() {
    let Some(wgpu) = Backend::Wgpu.device() else {
        return;
    };
    let flex = flex();
    let expected = golden(false, 0..5, &flex);
    let mut there = golden(false, 0..2, &flex).to_device(&wgpu);
    // Software renderers have float64, most GPUs by Vulkan have not.
    assert_eq!(dtype(&there, "alpha"), accumulation_dtype(&wgpu));
    push(&mut there, 2..4);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    there.save(&path).expect("a file");
    let loaded = Statistics::<PerToken>::load(&path, &flex).expect("statistics");
    for mut back in [there.to_device(&flex), loaded] {
        assert_eq!(dtype(&back, "alpha"), DType::F64);
        push(&mut back, 4..5);
        assert_same(&back, &expected, 1e-5);
    }
    // Those that are compensated by choice stay so.
    let mut chosen = golden(true, 0..2, &wgpu).to_device(&flex);
    assert_eq!(dtype(&chosen, "alpha"), DType::F32);
    push(&mut chosen, 2..5);
    assert_same(&chosen, &expected, 1e-5);
}

#[test]
fn a_pair_loses_nothing_on_its_way() {
    let device = flex();
    let ndarray = Backend::Ndarray.device().expect("a CPU");
    let pairs = golden(true, 0..5, &device);
    let moved = pairs.clone().to_device(&ndarray).to_device(&device);
    assert_same(&moved, &pairs, 0.0);
    let full = golden(false, 0..5, &device);
    assert_same(&full.clone().to_device(&ndarray), &full, 0.0);
}

#[rstest]
fn statistics_on_another_device_than_the_model_are_refused(
    #[values(Engine::Loop, Engine::Trace)] engine: Engine,
    #[values((Backend::Flex, Backend::Ndarray), (Backend::Ndarray, Backend::Flex))] on: (
        Backend,
        Backend,
    ),
) {
    let device = on.0.device().expect("a CPU").autodiff();
    let elsewhere = on.1.device().expect("a CPU");
    let model = Talker::init(&device);
    let data = Sequences::made_up(4, 5, &device);
    let catalogue = Catalogue::of(&model).expect("parameters");
    let hash = hash_weights(&model).expect("a hash");
    let config = StatisticsConfig::new();
    let statistics = config.init_for(&catalogue, &HeadLayout::none(), hash, &elsewhere);
    let mut statistics: Statistics = statistics.expect("statistics");
    let paths: Vec<String> = statistics.paths().map(str::to_owned).collect();
    let config = CaptureConfig::new().with_engine(engine);
    let capture = config.init(&model, paths.iter().map(String::as_str));
    let mut capture = capture.expect("a capture");
    let refused = capture.accumulate(&data, "task", &mut statistics);
    let error = refused.expect_err("another device");
    assert!(matches!(error, TrainError::OtherDevice { .. }), "{error}");
    assert_eq!(statistics.tasks().count(), 0, "nothing changed");
    let mut statistics = statistics.to_device(&device);
    let captured = capture.accumulate(&data, "task", &mut statistics);
    captured.expect("the same device");
}

#[test]
fn gradients_on_another_device_are_refused() {
    let (device, elsewhere) = (flex(), Backend::Ndarray.device().expect("a CPU"));
    let data = Golden::load("gpt2-fused");
    let mut statistics: Statistics = data.statistics(&StatisticsConfig::new(), &device);
    let batch = data.batch("alpha", 0..2, &elsewhere);
    let (path, gradient) = batch.iter().next().expect("a parameter");
    let begun = statistics.begin("alpha", batch.samples());
    begun.expect("new samples");
    let error = statistics.put(path, gradient.clone());
    let error = error.expect_err("elsewhere");
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let error = statistics.push("alpha", batch).expect_err("elsewhere");
    assert!(matches!(error, Error::Shape { .. }), "{error}");
}

/// Averages of a device without float64 go on where there is one, and not on two devices at once.
#[test]
fn averages_go_on_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    let statistics = golden(false, 0..3, &flex());
    let expected = {
        let mut averages = Averages::new(0.9).expect("beta");
        averages.push(&statistics, "alpha").expect("means");
        averages.push(&statistics, "alpha").expect("means");
        averages
    };
    let value = |averages: &Averages| -> Vec<f64> {
        let layers = averages.layers("alpha").expect("layers");
        layers.into_data().iter::<f64>().collect()
    };
    let mut single = Averages::new(0.9).expect("beta");
    let pairs = golden(true, 0..3, &flex());
    single.push(&pairs, "alpha").expect("means");
    single.save(&path).expect("a file");
    let mut resumed = Averages::<PerToken>::load(&path, &flex()).expect("averages");
    resumed.push(&statistics, "alpha").expect("means");
    assert_close("averages", &value(&resumed), &value(&expected), 1e-6, 0.0);
    resumed.push(&pairs, "alpha").expect("means");
    assert_close("averages", &value(&resumed), &value(&expected), 1e-6, 0.0);

    let elsewhere = statistics.to_device(&Backend::Ndarray.device().expect("a CPU"));
    for task in TASKS {
        let error = resumed.push(&elsewhere, task).expect_err("two devices");
        let named = matches!(&error, Error::Incompatible { what, .. } if what == "the device");
        assert!(named, "{error}");
    }
    let Some(wgpu) = Backend::Wgpu.device() else {
        return;
    };
    expected.save(&path).expect("a file");
    let mut there = Averages::<PerToken>::load(&path, &wgpu).expect("averages");
    let statistics = golden(false, 0..3, &wgpu);
    there.push(&statistics, "alpha").expect("means");
    assert_close("averages", &value(&there), &value(&expected), 1e-5, 0.0);
}
