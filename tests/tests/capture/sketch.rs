//! Sketches of a Fisher from batch gradients: unbiased, with a true error.

use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{PerToken, Raw};
use fisher_core::model::Catalogue;
use fisher_core::statistics::StatisticsConfig;
use fisher_tests::backend::Backend;
use fisher_tests::models::{Sequences, Small};
use fisher_tests::subjects::{Odd, Oddity};
use fisher_train::capture::PerSample;
use fisher_train::collect::CollectorConfig;
use fisher_train::sketch::SketchConfig;
use rstest::rstest;

#[rstest]
fn the_sketch_is_unbiased_and_knows_its_error(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(6, 5, &device);
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    let batches = data.batches(3);
    CollectorConfig::new()
        .init()
        .expect("a collector")
        .collect_batches(&model, "task", batches.clone(), &mut statistics)
        .expect("a collection");
    let draws = 200;
    let sketch = SketchConfig::new().with_draws(draws).init().expect("draws");
    let sketched = sketch
        .collect::<_, PerToken>(&model, batches)
        .expect("a sketch");
    assert_eq!(sketched.samples(), 6);
    let (mut squares, mut elements) = (0.0, 0.0);
    for (path, expected) in statistics.task("task").expect("a task").parameters() {
        let expected = expected
            .elementwise()
            .expect("elements")
            .read()
            .expect("values");
        let expected = expected.mean.expect("a mean");
        let values = |tensor: Tensor<1>| tensor.into_data().iter::<f64>().collect::<Vec<_>>();
        let found = values(sketched.fisher(path).expect("a parameter"));
        let errors = values(sketched.standard_error(path).expect("a parameter"));
        // Traces average over elements, so they are closer than single elements.
        let (trace, truth) = (found.iter().sum::<f64>(), expected.iter().sum::<f64>());
        assert!(
            (trace - truth).abs() <= 0.35 * truth,
            "{path}: {trace} against {truth}"
        );
        let largest = expected.iter().copied().fold(0.0, f64::max);
        for ((found, expected), error) in found.iter().zip(&expected).zip(&errors) {
            // Gradients that are 0 but for rounding differ from run to run.
            if *expected > 1e-6 * largest && largest > 1e-9 {
                squares += ((found - expected) / error).powi(2);
                elements += 1.0;
            }
        }
    }
    // The error is stated from above, and is no more than twice too large.
    let spread = squares / elements;
    assert!(
        (0.1..1.3).contains(&spread),
        "squared errors are {spread} of those stated"
    );
}

#[test]
fn one_draw_of_a_sketch_has_the_variance_of_its_formula() {
    // Two samples of one number: v = (±h₁ ± h₂)² is (h₁+h₂)² or (h₁−h₂)², each half the time.
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(2, 5, &device);
    let paths: Vec<String> = Catalogue::of(&model)
        .expect("parameters")
        .parameters()
        .iter()
        .map(|p| p.path().to_owned())
        .collect();
    let by_loop = PerSample::new(&model, paths.iter().map(String::as_str)).expect("an engine");
    let row = |index: usize| -> Vec<f64> {
        let sample = by_loop.gradient(&data, index).expect("a gradient");
        let gradient = sample.gradients.get("linear.bias").expect("a gradient");
        gradient.to_full().to_data().iter::<f64>().collect()
    };
    let (first, second) = (row(0), row(1));
    let mut seen = [false; 2];
    for seed in 0..8 {
        let sketch = SketchConfig::new().with_seed(seed).init().expect("draws");
        let sketched = sketch
            .collect::<_, Raw>(&model, [data.clone()])
            .expect("a sketch");
        let found = sketched
            .fisher("linear.bias")
            .expect("a parameter")
            .into_data();
        let found: Vec<f64> = found.iter::<f64>().collect();
        let outcome = |sign: f64| -> Vec<f64> {
            let v = first
                .iter()
                .zip(&second)
                .map(|(a, b)| (a + sign * b).powi(2));
            v.map(|v| v / 2.0).collect()
        };
        let near = |expected: &[f64]| {
            let pairs = found.iter().zip(expected);
            pairs.map(|(f, e)| (f - e).abs()).fold(0.0, f64::max) < 1e-5
        };
        let which = [near(&outcome(1.0)), near(&outcome(-1.0))];
        assert!(which[0] ^ which[1], "seed {seed}: {found:?}");
        seen[usize::from(which[1])] = true;
    }
    assert_eq!(seen, [true, true], "both signs come");
}

#[test]
fn a_sketch_of_what_is_not_finite_is_refused() {
    let device = Device::flex().autodiff();
    let model = Odd::init(Oddity::None, 7, &device);
    let weights = fisher_metrics::weights::Weights::of(&model).expect("weights");
    let mut weights: std::collections::BTreeMap<String, Vec<f64>> = weights
        .iter()
        .map(|(path, values)| (path.to_owned(), values.to_vec()))
        .collect();
    weights.get_mut("head.bias").expect("a bias")[0] = f64::NAN;
    let weights = fisher_metrics::weights::Weights::from(weights);
    let model = weights.write(model).expect("its own parameters");
    let sketch = SketchConfig::new().init().expect("draws");
    let batches = [Sequences::made_up(3, 5, &device)];
    let error = sketch.collect::<_, PerToken>(&model, batches);
    let error = error.expect_err("NaN").to_string();
    assert!(error.contains("sample/0"), "{error}");
}
