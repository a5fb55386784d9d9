//! Every sample and every parameter counts once.

use burn::tensor::{Device, Tensor};
use fisher_core::Error;
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::golden::Golden;
use fisher_tests::models::Sequences;
use fisher_tests::subjects::Talker;
use fisher_tests::tolerance::assert_close;
use fisher_train::Error as TrainError;
use fisher_train::capture::{CaptureConfig, Engine};
use rstest::rstest;

fn bytes(statistics: &Statistics) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    statistics.save(&path).expect("a file");
    std::fs::read(path).expect("a file")
}

fn golden(golden: &Golden, device: &Device) -> Statistics {
    golden.statistics(&StatisticsConfig::new(), device)
}

#[rstest]
fn a_sample_counts_once(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let data = Golden::load("gpt2-fused");
    let mut statistics = golden(&data, &device);
    let twice = |result: Result<(), Error>, id: &str| {
        let error = result.expect_err("twice");
        let named = matches!(&error, Error::SampleTwice { task, sample } if task == "alpha" && sample == id);
        assert!(named, "{error}");
    };
    let batch = |range| data.batch("alpha", range, &device);
    statistics.push("alpha", batch(0..2)).expect("gradients");
    let samples = data.samples("alpha");
    let [first, second, third, _, skipped] = &*samples else {
        panic!("five samples");
    };
    statistics.skip("alpha", skipped, "w").expect("new");
    let before = bytes(&statistics);

    twice(statistics.push("alpha", batch(0..2)), first.id());
    twice(statistics.push("alpha", batch(1..3)), second.id());
    // A sample that was left out is not counted later.
    twice(statistics.push("alpha", batch(3..5)), skipped.id());
    twice(statistics.skip("alpha", first, "w"), first.id());
    twice(statistics.skip("alpha", skipped, "w"), skipped.id());
    let known = [first.clone()];
    twice(statistics.begin("alpha", &known), first.id());
    let pair = vec![third.clone(); 2];
    twice(statistics.begin("alpha", &pair), pair[0].id());
    let one = batch(2..3);
    let mut two = GradientBatch::new(pair.clone());
    for (path, gradient) in one.iter() {
        let rows = Tensor::cat(vec![gradient.to_full(); 2], 0);
        two.insert(path, SampleGradient::full(rows));
    }
    twice(statistics.push("alpha", two), pair[0].id());
    assert_eq!(bytes(&statistics), before, "nothing changed");

    // Other samples, and the same ids of another task, are new.
    statistics.push("alpha", batch(2..4)).expect("new samples");
    statistics.push("beta", batch(0..2)).expect("another task");
    assert_eq!(statistics.task("alpha").expect("a task").count(), 4);
}

/// In training a sample comes again at other weights, and counts there.
#[test]
fn a_sample_counts_once_a_step() {
    let device = Backend::Flex.device().expect("a CPU");
    let data = Golden::load("gpt2-fused");
    let at = |step| {
        let mut statistics = golden(&data, &device);
        let batch = data.batch("alpha", 0..2, &device);
        statistics.push("alpha", batch).expect("gradients");
        statistics.during_training("origin", step)
    };
    let mut run = at(3);
    for step in [5, 4, 9] {
        run.merge(at(step)).expect("another step");
    }
    let before = bytes(&run);
    for step in [3, 4, 9] {
        let error = run.merge(at(step)).expect_err("the same step");
        assert!(matches!(error, Error::DuplicateSample { .. }), "{error}");
    }
    assert_eq!(bytes(&run), before, "nothing changed");
    assert_eq!(run.task("alpha").expect("a task").count(), 8);
}

#[rstest]
fn a_capture_counts_a_sample_once(
    #[values(Backend::Flex, Backend::Ndarray)] backend: Backend,
    #[values(Engine::Loop, Engine::Trace)] engine: Engine,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Talker::init(&device);
    let data = Sequences::made_up(4, 5, &device);
    let config = StatisticsConfig::new().with_elementwise(false);
    let mut statistics = config.init(&model).expect("statistics");
    let paths: Vec<String> = statistics.paths().map(str::to_owned).collect();
    let config = CaptureConfig::new().with_engine(engine);
    let capture = config.init(&model, paths.iter().map(String::as_str));
    let mut capture = capture.expect("a capture");
    let captured = capture.accumulate(&data, "task", &mut statistics);
    captured.expect("new samples");
    let before = bytes(&statistics);
    for _ in 0..2 {
        let error = capture.accumulate(&data, "task", &mut statistics);
        let error = error.expect_err("known samples");
        let named = matches!(&error, TrainError::Core(Error::SampleTwice { .. }));
        assert!(named, "{error}");
    }
    assert_eq!(bytes(&statistics), before, "nothing changed");
}

/// Two gradients for one path would count a sample twice, or one of them not at all.
#[test]
fn a_parameter_comes_once_in_a_batch() {
    let device = Backend::Flex.device().expect("a CPU");
    let data = Golden::load("gpt2-fused");
    let mut statistics = golden(&data, &device);
    let before = bytes(&statistics);
    let whole = data.batch("alpha", 0..2, &device);
    let (path, gradient) = whole.iter().next().expect("a parameter");
    let mut twice = whole.clone();
    twice.insert(path, gradient.clone());
    let error = statistics.push("alpha", twice).expect_err("twice");
    let named = matches!(&error, Error::ParameterTwice { parameter } if parameter == path);
    assert!(named, "{error}");
    assert_eq!(bytes(&statistics), before, "nothing changed");

    let begun = statistics.begin("alpha", whole.samples());
    begun.expect("new samples");
    for (path, gradient) in whole.iter() {
        let put = statistics.put(path, gradient.clone());
        put.expect("a parameter");
        let [samples, elements] = gradient.dims();
        let zero = SampleGradient::Zero {
            samples,
            elements,
            device: device.clone(),
        };
        for again in [gradient.clone(), zero] {
            let error = statistics.put(path, again).expect_err("twice");
            assert!(matches!(error, Error::ParameterTwice { .. }), "{error}");
        }
    }
    statistics.commit().expect("all parameters");
    // What was refused left nothing behind: what is saved can be loaded, and is what a push gives.
    let mut pushed = golden(&data, &device);
    pushed.push("alpha", whole).expect("gradients");
    let read = |s: &Statistics| {
        let task = s.task("alpha").expect("a task");
        task.layers()
    };
    assert_eq!(read(&statistics).count, 2);
    let mean = |s: &Statistics| read(s).mean.expect("samples");
    assert_close("layers", &mean(&statistics), &mean(&pushed), 1e-12, 0.0);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    statistics.save(&path).expect("a file");
    Statistics::<fisher_core::gradient::PerToken>::load(&path, &device).expect("statistics");
}
