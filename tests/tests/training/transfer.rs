//! What a step on one task does to another, predicted and measured.

use fisher_core::model::hash_weights;
use fisher_tests::backend::Backend;
use fisher_tests::models::Sequences;
use fisher_tests::subjects::Talker;
use fisher_train::Error;
use fisher_train::apply::{TransferConfig, TransferReport};
use rstest::rstest;

fn run(backend: Backend, step: f64) -> Option<TransferReport> {
    let device = backend.device()?.autodiff();
    device.seed(3);
    let model = Talker::init(&device);
    let all = Sequences::made_up(12, 6, &device);
    let (a, b) = (all.slice(0..7).batches(3), all.slice(7..12).batches(5));
    let before = hash_weights(&model).expect("a hash");
    let transfer = TransferConfig::new(step).init().expect("settings");
    let report = transfer.forward(&model, &a, &b).expect("a report");
    let after = hash_weights(&model).expect("a hash");
    assert_eq!(before, after, "the model stays as it is");
    Some(report)
}

/// To first order the change is the predicted one: what is missed shrinks with the square of the step.
#[rstest]
fn small_steps_do_what_is_predicted(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(large) = run(backend, 4e-3) else {
        return;
    };
    let small = run(backend, 1e-3).expect("the same device");
    assert_eq!(small.samples.len(), 5);
    for (x, y) in small.samples.iter().zip(&large.samples) {
        assert_eq!(x.id, y.id);
        assert!((4.0 * x.predicted - y.predicted).abs() <= 1e-5 * y.predicted.abs());
        let missed = (x.measured - x.predicted).abs();
        assert!(missed <= 0.1 * x.predicted.abs() + 1e-4, "{x:?}");
    }
    let ratio = large.missed.mean / small.missed.mean;
    assert!((8.0..32.0).contains(&ratio), "{ratio}");
    assert!(small.own.mean < 0.0, "a step on a helps a: {small:?}");
    for of in [small.predicted, small.measured] {
        let [low, high] = of.interval.expect("five samples");
        assert!(low < of.mean && of.mean < high);
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    assert!(TransferConfig::new(0.0).init().is_err());
    assert!(TransferConfig::new(f64::NAN).init().is_err());
    assert!(TransferConfig::new(0.1).with_level(1.0).init().is_err());
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Talker::init(&device);
    let a = Sequences::made_up(2, 4, &device).batches(2);
    let transfer = TransferConfig::new(0.1).init().expect("settings");
    assert!(transfer.forward(&model, &a, &[]).is_err());
    // A step that leaves float32 has no losses to compare, and says whose.
    let b = Sequences::made_up(2, 4, &device).batches(2);
    let far = TransferConfig::new(1e300).init().expect("settings");
    let error = far.forward(&model, &a, &b).expect_err("no losses");
    assert!(matches!(error, Error::MovedLoss { .. }), "{error}");
}
