//! How far a Fisher foretells what small changes do: 1 for the true one.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Int, Tensor, activation::tanh};
use fisher_core::kind::FisherKind;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_train::Error;
use fisher_train::apply::{CalibrationConfig, CalibrationReport};
use fisher_train::collect::CollectorConfig;
use fisher_train::kinds::Fisher;
use fisher_train::prelude::*;
use rstest::rstest;

const WIDTH: usize = 5;
const CLASSES: usize = 4;
const SAMPLES: usize = 200;

#[derive(Module, Debug)]
struct Net {
    hidden: Linear,
    output: Linear,
}

#[derive(Clone, Debug)]
struct Points {
    inputs: Tensor<2>,
    classes: Labels<Class>,
}

impl Net {
    fn new(device: &Device) -> Self {
        device.seed(11);
        Self {
            hidden: LinearConfig::new(WIDTH, 6).init(device),
            output: LinearConfig::new(6, CLASSES).init(device),
        }
    }

    fn forward(&self, inputs: Tensor<2>) -> Tensor<2> {
        self.output.forward(tanh(self.hidden.forward(inputs)))
    }
}

sample_loss!(Net, Points { inputs, classes }, |model, batch| {
    SampleLosses::classification(model.forward(batch.inputs.clone()), batch.classes.clone())
});

/// Points whose classes have nothing to do with what the model says.
fn points(device: &Device) -> Points {
    let classes: Vec<i64> = (0..SAMPLES).map(|i| (i % CLASSES) as i64).collect();
    Points {
        inputs: Tensor::random([SAMPLES, WIDTH], Distribution::Normal(0.0, 1.5), device),
        classes: Tensor::<1, Int>::from_ints(classes.as_slice(), device).into(),
    }
}

fn statistics(model: &Net, points: &Points, fisher: Fisher) -> Statistics {
    let config = StatisticsConfig::new().with_kind(fisher.kind().unwrap_or_default());
    let mut statistics = config.init(model).expect("statistics");
    let collector = CollectorConfig::new()
        .with_fisher(fisher)
        .with_progress(false);
    let collector = collector.init().expect("a collector");
    collector
        .collect_batches(model, "t", [points.clone()], &mut statistics)
        .expect("a batch");
    statistics
}

fn calibrated(model: &Net, points: &Points, fisher: Fisher) -> CalibrationReport {
    let statistics = statistics(model, points, fisher);
    let calibration = CalibrationConfig::new()
        .with_draws(40)
        .init()
        .expect("settings");
    let report = calibration.forward(model, &statistics, "t", std::slice::from_ref(points));
    report.expect("a report")
}

#[rstest]
fn the_true_fisher_foretells_what_changes_do(
    #[values(Backend::Flex, Backend::Ndarray)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let (model, points) = (Net::new(&device), points(&device));
    let report = calibrated(&model, &points, Fisher::Exact);
    println!("{report}");
    assert_eq!((report.layers.len(), report.samples), (2, SAMPLES));
    assert_eq!(report.kind, FisherKind::Exact.to_string());
    for layer in &report.layers {
        let (ratio, [lower, upper]) = (layer.ratio.expect("F"), layer.interval.expect("draws"));
        assert!((0.85..1.15).contains(&ratio), "{layer:?}");
        assert!(lower < 1.05 && upper > 0.95 && lower < upper, "{layer:?}");
        assert!((1e-4..1e-2).contains(&layer.measured), "{layer:?}");
    }
    let json = serde_json::to_string(&report).expect("JSON");
    let again: CalibrationReport = serde_json::from_str(&json).expect("a report");
    assert_eq!(again.to_string(), report.to_string());
}

/// Labels that the model hardly believes have gradients larger than those of its own predictions.
#[test]
fn the_empirical_fisher_of_other_labels_does_not() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let (mut model, points) = (Net::new(&device), points(&device));
    model.output.weight = model.output.weight.map(|weight| weight * 6.0);
    let [exact, empirical] =
        [Fisher::Exact, Fisher::AsGiven].map(|fisher| calibrated(&model, &points, fisher));
    for (exact, empirical) in exact.layers.iter().zip(&empirical.layers) {
        let [exact, empirical] = [exact, empirical].map(|layer| layer.ratio.expect("F"));
        assert!(empirical < 0.6 * exact, "{empirical} and {exact}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let (model, points) = (Net::new(&device), points(&device));
    let statistics = statistics(&model, &points, Fisher::AsGiven);
    assert!(CalibrationConfig::new().with_draws(0).init().is_err());
    assert!(
        CalibrationConfig::new()
            .with_divergence(0.0)
            .init()
            .is_err()
    );
    let calibration = CalibrationConfig::new().init().expect("settings");
    let batches = std::slice::from_ref(&points);
    let other = Net {
        hidden: Net::new(&device).output.clone().no_grad(),
        ..model.clone()
    };
    assert!(
        calibration
            .forward(&other, &statistics, "t", batches)
            .is_err()
    );
    assert!(
        calibration
            .forward(&model, &statistics, "u", batches)
            .is_err()
    );
    let error = calibration.forward(&model, &statistics, "t", &[]);
    assert!(matches!(error, Err(Error::Core(_))), "no samples");
}
