//! Natural gradients: what they divide by, how far they step, and that they learn.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Int, Tensor, activation::tanh};
use fisher_core::factors::FactorsConfig;
use fisher_core::model::{Place, PlaceVisitor, visit_places};
use fisher_metrics::curvature::kronecker::Kronecker;
use fisher_metrics::damping::Damping;
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{BACKWARD, assert_close};
use fisher_train::Error;
use fisher_train::apply::{
    EwcConfig, KroneckerMergeConfig, KroneckerSource, NaturalGradient, NaturalGradientConfig,
};
use fisher_train::capture::CaptureConfig;
use fisher_train::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

const WIDTH: usize = 6;
const HIDDEN: usize = 5;
const CLASSES: usize = 3;

#[derive(Module, Debug)]
struct Net {
    hidden: Linear,
    output: Linear,
}

#[derive(Clone, Debug)]
struct Points {
    /// `[samples, WIDTH]`
    inputs: Tensor<2>,
    /// `[samples]`
    classes: Tensor<1, Int>,
}

impl Net {
    fn new(device: &Device) -> Self {
        device.seed(3);
        Self {
            hidden: LinearConfig::new(WIDTH, HIDDEN).init(device),
            output: LinearConfig::new(HIDDEN, CLASSES)
                .with_bias(false)
                .init(device),
        }
    }

    fn forward(&self, inputs: Tensor<2>) -> Tensor<2> {
        self.output.forward(tanh(self.hidden.forward(inputs)))
    }

    fn loss(&self, points: &Points) -> Tensor<1> {
        let losses = SampleLosses::classification(
            self.forward(points.inputs.clone()),
            points.classes.clone(),
        );
        losses.means().mean()
    }
}

sample_loss!(Net, Points { inputs, classes }, |model, batch| {
    SampleLosses::classification(model.forward(batch.inputs.clone()), batch.classes.clone())
});

/// Inputs of very unequal size, whose sum says the class.
fn points(count: usize, seed: u64, device: &Device) -> Points {
    let random = &mut StdRng::seed_from_u64(seed);
    let (mut inputs, mut classes) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let of: [f32; WIDTH] = std::array::from_fn(|_| random.random_range(-1.0..1.0));
        let sum: f32 = of.iter().sum();
        classes.push(match sum {
            x if x < -0.5 => 0,
            x if x < 0.5 => 1,
            _ => 2,
        });
        let sizes = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03];
        inputs.extend(of.iter().zip(sizes).map(|(x, size)| x * size));
    }
    let inputs = Tensor::<1>::from_floats(inputs.as_slice(), device);
    Points {
        inputs: inputs.reshape([count, WIDTH]),
        classes: Tensor::from_ints(classes.as_slice(), device),
    }
}

fn sgd() -> burn::optim::ModuleOptimizer {
    SgdConfig::new().init()
}

fn natural(config: &NaturalGradientConfig, model: &Net) -> NaturalGradient {
    config.init(sgd(), model).expect("settings")
}

fn weights(model: &Net) -> BTreeMap<String, Vec<f64>> {
    struct Visitor(BTreeMap<String, Vec<f64>>);
    impl PlaceVisitor for Visitor {
        type Error = Error;

        fn visit<const D: usize>(
            &mut self,
            place: Place,
            param: &Param<Tensor<D>>,
        ) -> Result<(), Error> {
            let values = param.val().into_data().iter::<f64>().collect();
            self.0.insert(place.path, values);
            Ok(())
        }
    }
    let mut visitor = Visitor(BTreeMap::new());
    visit_places(model, &mut visitor).expect("parameters");
    visitor.0
}

fn gradients(model: &Net, points: &Points) -> GradientsParams {
    GradientsParams::from_grads(model.loss(points).backward(), model)
}

/// `-(F + λ)⁻¹ g`, by the operator on the host.
#[rstest]
fn a_step_is_the_gradient_divided_by_ekfac(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let inner = device.clone();
    let device = device.autodiff();
    let (model, batch) = (Net::new(&device), points(40, 1, &device));
    let lambda = 1e-3;
    let config = NaturalGradientConfig::new()
        .with_damping(Damping::Absolute(lambda))
        .with_radius(None);
    let mut natural = natural(&config, &model);
    natural.observe(&model, &batch).expect("a batch");
    let (before, raw) = (weights(&model), gradients(&model, &batch));
    let plain = weights(&sgd().step(1.0, model.clone(), raw));
    let stepped = natural.step(1.0, model.clone(), gradients(&model, &batch));
    let stepped = weights(&stepped.expect("observed"));

    let mut factors = FactorsConfig::new().init(&model).expect("factors");
    let paths: Vec<String> = before.keys().cloned().collect();
    let mut capture = CaptureConfig::new()
        .init(&model, paths.iter().map(String::as_str))
        .expect("a model");
    capture
        .accumulate(&batch, "t", &mut factors)
        .expect("a batch");
    let kfac = Kronecker::of(&factors, "t").expect("samples");
    let mut corrections = kfac.corrections(&inner).expect("statistics");
    capture
        .accumulate(&batch, "t", &mut corrections)
        .expect("a batch");
    let ekfac = kfac.corrected(&corrections).expect("the same");
    for path in &paths {
        let gradient: Vec<f64> = before[path]
            .iter()
            .zip(&plain[path])
            .map(|(a, b)| a - b)
            .collect();
        let expected = ekfac
            .apply(path, &gradient, |s| 1.0 / (s + lambda))
            .expect("of its size");
        let found: Vec<f64> = before[path]
            .iter()
            .zip(&stepped[path])
            .map(|(a, b)| a - b)
            .collect();
        assert_close(path, &found, &expected, 10.0 * BACKWARD, 1.0);
    }
}

/// A longer direction is shortened, and no direction is turned.
#[test]
fn directions_are_no_longer_than_the_radius() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let (model, batch) = (Net::new(&device), points(40, 1, &device));
    let before = weights(&model);
    let stepped = |radius: Option<f64>| {
        let config = NaturalGradientConfig::new().with_radius(radius);
        let mut natural = natural(&config, &model);
        natural.observe(&model, &batch).expect("a batch");
        let after = natural.step(1.0, model.clone(), gradients(&model, &batch));
        let after = weights(&after.expect("observed"));
        let step = |path: &String| -> Vec<f64> {
            let pairs = before[path].iter().zip(&after[path]);
            pairs.map(|(a, b)| a - b).collect()
        };
        before.keys().flat_map(step).collect::<Vec<f64>>()
    };
    let (free, short) = (stepped(None), stepped(Some(1e-3)));
    let ratio = short[0] / free[0];
    assert!(ratio > 0.0 && ratio < 0.1, "{ratio}");
    let expected: Vec<f64> = free.iter().map(|x| x * ratio).collect();
    assert_close("the step", &short, &expected, 1e-3, 1.0);
    assert_close("far away", &stepped(Some(1e6)), &free, 1e-6, 1.0);
}

#[test]
fn damping_follows_how_well_the_loss_was_foreseen() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let (model, batch) = (Net::new(&device), points(60, 1, &device));
    let config = NaturalGradientConfig::new().with_adaptation(0.5);
    let step = |after: &dyn Fn(&Net, f64) -> f64| {
        let mut natural = natural(&config, &model);
        natural.observe(&model, &batch).expect("a batch");
        let before = model.loss(&batch).into_scalar::<f64>();
        let (_, adapted) = natural
            .step_and_adapt(
                0.05,
                model.clone(),
                gradients(&model, &batch),
                before,
                |model| after(model, before),
            )
            .expect("observed");
        assert_eq!(adapted.damping_factor, natural.damping_factor());
        adapted
    };
    let true_loss = |model: &Net, _: f64| model.loss(&batch).into_scalar::<f64>();
    let adapted = step(&true_loss);
    // A small step does what its gradient says.
    assert!(adapted.predicted < 0.0, "{adapted:?}");
    let ratio = adapted.measured / adapted.predicted;
    assert!((0.75..1.5).contains(&ratio), "{adapted:?}");
    assert_eq!(adapted.damping_factor, 0.5);
    assert_eq!(step(&|_, before| before + 1.0).damping_factor, 2.0);
    let half = |_: &Net, before: f64| before + 0.5 * adapted.predicted;
    assert_eq!(step(&half).damping_factor, 1.0);
    assert_eq!(step(&|_, _| f64::NAN).damping_factor, 2.0);
}

/// Inputs are of sizes from 10 to 0.03: plain descent at its best rate learns the large ones.
#[test]
fn it_learns_where_descent_does_not() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let data = points(200, 5, &device);
    let plain = [0.01, 0.1, 1.0].map(|rate| {
        let (mut model, mut optimizer) = (Net::new(&device), sgd());
        for _ in 0..60 {
            let gradients = gradients(&model, &data);
            model = optimizer.step(rate, model, gradients);
        }
        model.loss(&data).into_scalar::<f64>()
    });
    let mut model = Net::new(&device);
    let mut natural = natural(
        &NaturalGradientConfig::new().with_damping(Damping::Relative(0.01)),
        &model,
    );
    for step in 0..60 {
        if step % 3 == 0 {
            natural.observe(&model, &data).expect("a batch");
        }
        let gradients = gradients(&model, &data);
        model = natural.step(0.3, model, gradients).expect("observed");
    }
    let found = model.loss(&data).into_scalar::<f64>();
    let best = plain.into_iter().fold(f64::INFINITY, f64::min);
    println!("natural {found:.4}, descent {plain:.4?}");
    assert!(found < 0.8 * best, "{found} against {plain:?}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let (model, batch) = (Net::new(&device), points(8, 1, &device));
    let refused = |config: NaturalGradientConfig| config.init(sgd(), &model).is_err();
    assert!(refused(
        NaturalGradientConfig::new().with_damping(Damping::Relative(0.0))
    ));
    assert!(refused(NaturalGradientConfig::new().with_decay(1.0)));
    assert!(refused(NaturalGradientConfig::new().with_refresh(0)));
    assert!(refused(NaturalGradientConfig::new().with_radius(Some(0.0))));
    assert!(refused(NaturalGradientConfig::new().with_adaptation(0.0)));
    assert!(refused(NaturalGradientConfig::new().with_largest(0)));
    let mut natural = natural(&NaturalGradientConfig::new(), &model);
    let error = natural.step(0.1, model.clone(), gradients(&model, &batch));
    assert!(
        matches!(&error, Err(Error::NoFisher { parameter }) if parameter.ends_with(".weight")),
        "{:?}",
        error.err()
    );
    let mut infinite = batch.clone();
    infinite.inputs = infinite.inputs * f32::INFINITY;
    assert!(natural.observe(&model, &infinite).is_err());
    natural.observe(&model, &batch).expect("a batch");
    assert!(natural.observe(&model, &infinite).is_err());
    // What was observed before is kept.
    assert!(
        natural
            .step(0.1, model.clone(), gradients(&model, &batch))
            .is_ok()
    );
}

/// KFAC of a model on some points, and the weights' inputs alone.
fn kronecker(model: &Net, points: &Points, task: &str) -> [Kronecker; 2] {
    let mut factors = FactorsConfig::new().init(model).expect("factors");
    let paths: Vec<String> = weights(model).into_keys().collect();
    let mut capture = CaptureConfig::new()
        .init(model, paths.iter().map(String::as_str))
        .expect("a model");
    capture
        .accumulate(points, task, &mut factors)
        .expect("a batch");
    let of_inputs = Kronecker::of_inputs(&factors, task).expect("samples");
    [Kronecker::of(&factors, task).expect("samples"), of_inputs]
}

/// A model that is some steps further.
fn further(model: &Net, points: &Points, rate: f64) -> Net {
    let (mut model, mut optimizer) = (model.clone(), sgd());
    for _ in 0..20 {
        let gradients = gradients(&model, points);
        model = optimizer.step(rate, model, gradients);
    }
    model
}

#[rstest]
fn a_kronecker_penalty_is_the_quadratic_form(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let (model, batch) = (Net::new(&device), points(40, 1, &device));
    let [fisher, _] = kronecker(&model, &batch, "t");
    let mut ewc = EwcConfig::new(3.0).init().expect("a strength");
    ewc.protect_kronecker(&fisher, &model).expect("its own");
    assert!(matches!(
        ewc.protect_kronecker(&fisher, &model),
        Err(Error::Protected { .. })
    ));
    let nothing = ewc.penalty(&model).expect("fits").expect("protected");
    assert!(nothing.into_scalar::<f64>().abs() < 1e-12);
    let moved = further(&model, &batch, 0.1);
    let (from, to) = (weights(&model), weights(&moved));
    let penalty = ewc.penalty(&moved).expect("fits").expect("protected");
    let mut expected = 0.0;
    let mut slopes = BTreeMap::new();
    for (path, theta) in &to {
        let step: Vec<f64> = theta.iter().zip(&from[path]).map(|(a, b)| a - b).collect();
        let product = fisher.apply(path, &step, |s| s).expect("of its size");
        expected += 1.5 * step.iter().zip(&product).map(|(a, b)| a * b).sum::<f64>();
        slopes.insert(
            path.clone(),
            product.iter().map(|x| 3.0 * x).collect::<Vec<f64>>(),
        );
    }
    let found = penalty.clone().into_scalar::<f64>();
    assert!(
        (found - expected).abs() < 1e-4 * expected,
        "{found} for {expected}"
    );
    let raw = penalty.backward();
    let slope = moved.hidden.weight.grad(&raw).expect("reached");
    let slope: Vec<f64> = slope.into_data().iter().collect();
    assert_close(
        "slope",
        &slope,
        &slopes["hidden.weight"],
        10.0 * BACKWARD,
        1.0,
    );
    let other = kronecker(&moved, &batch, "u").map(|of| ewc.clone().protect_kronecker(&of, &model));
    assert!(matches!(other[0], Err(Error::OtherModel { .. })));
}

#[test]
fn merged_weights_solve_the_sum_of_both() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let start = Net::new(&device);
    let data = [1, 2].map(|seed| points(60, seed, &device));
    let models = data.each_ref().map(|points| further(&start, points, 0.2));
    let pairs = models.iter().zip(&data);
    let found: Vec<[Kronecker; 2]> = pairs
        .map(|(model, points)| kronecker(model, points, "t"))
        .collect();
    let epsilon = 1e-3;
    let config = KroneckerMergeConfig::new().with_epsilon(epsilon);
    let merging = config.init().expect("settings");
    let source = |at: usize, which: usize| KroneckerSource {
        model: &models[at],
        fisher: &found[at][which],
        weight: 1.0 + at as f64,
    };
    for which in [0, 1] {
        let merged = merging
            .forward(&[source(0, which), source(1, which)])
            .expect("solved");
        let merged_weights = weights(&merged.model);
        let both = models.each_ref().map(weights);
        for (path, theta) in &merged_weights {
            // What is left of Σ w (F + ε) (θ* − θ_t).
            let mut left = vec![0.0; theta.len()];
            let mut size = 0.0;
            for at in 0..2 {
                let fisher = &found[at][which];
                let block = fisher.block(path).expect("it").eigenvalues();
                let least = epsilon * block.iter().sum::<f64>() / block.len() as f64;
                let step: Vec<f64> = theta
                    .iter()
                    .zip(&both[at][path])
                    .map(|(a, b)| a - b)
                    .collect();
                let product = fisher.apply(path, &step, |s| (1.0 + at as f64) * (s + least));
                let product = product.expect("of its size");
                size += product.iter().map(|x| x * x).sum::<f64>().sqrt();
                left.iter_mut()
                    .zip(product)
                    .for_each(|(left, x)| *left += x);
            }
            let left = left.iter().map(|x| x * x).sum::<f64>().sqrt();
            // Weights are written in float32.
            assert!(left < 1e-4 * size, "{path}: {left} of {size}");
        }
        // The vector's factor says nothing of inputs: it is averaged by the models' weights.
        if which == 1 {
            let [a, b] = both.each_ref().map(|of| &of["hidden.bias"]);
            let expected: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a + 2.0 * b) / 3.0).collect();
            assert_close("bias", &merged_weights["hidden.bias"], &expected, 1e-6, 1.0);
        }
        assert!(
            merged
                .report
                .parameters
                .values()
                .all(|solved| solved.residual <= 1e-8)
        );
    }
    // A model with itself is itself.
    let same = merging
        .forward(&[source(0, 0), source(0, 0)])
        .expect("solved");
    for (path, theta) in weights(&same.model) {
        assert_close(&path, &theta, &weights(&models[0])[&path], 1e-6, 1.0);
    }
    assert!(matches!(
        merging.forward::<Net>(&[]),
        Err(Error::NothingToMerge)
    ));
    let wrong = KroneckerSource {
        model: &models[1],
        ..source(0, 0)
    };
    assert!(matches!(
        merging.forward(&[wrong]),
        Err(Error::OtherModel { .. })
    ));
    let hurried = config.with_iterations(0).init().expect("settings");
    let error = hurried
        .forward(&[source(0, 0), source(1, 0)])
        .expect_err("not solved");
    assert!(matches!(error, Error::Unsolved { .. }), "{error}");
}

/// The first batches count alike, and later ones by the decay: against two batches observed as one.
#[test]
fn first_batches_count_alike() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Net::new(&device);
    let [first, second] = [1, 2].map(|seed| points(30, seed, &device));
    let both = Points {
        inputs: Tensor::cat(vec![first.inputs.clone(), second.inputs.clone()], 0),
        classes: Tensor::cat(vec![first.classes.clone(), second.classes.clone()], 0),
    };
    // New eigenvectors each time, so that both have those of all samples.
    let config = NaturalGradientConfig::new()
        .with_refresh(1)
        .with_radius(None);
    let stepped = |batches: &[&Points]| {
        let mut natural = natural(&config, &model);
        for batch in batches {
            natural.observe(&model, batch).expect("a batch");
        }
        let after = natural.step(1.0, model.clone(), gradients(&model, &both));
        weights(&after.expect("observed"))
    };
    let (apart, together) = (stepped(&[&first, &second]), stepped(&[&both]));
    let before = weights(&model);
    for (path, expected) in &together {
        let step =
            |of: &[f64]| -> Vec<f64> { of.iter().zip(&before[path]).map(|(a, b)| a - b).collect() };
        let (found, expected) = (step(&apart[path]), step(expected));
        let away: f64 = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).powi(2))
            .sum();
        let size: f64 = expected.iter().map(|x| x * x).sum();
        // Eigenvalues seen in the first basis were carried to the second.
        assert!(away < 0.05 * size, "{path}: {away} of {size}");
    }
}

/// A parameter that had no gradient when the Fisher was looked at is not sent away by one that it has later.
#[test]
fn where_no_gradient_was_steps_stay_small() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let (model, batch) = (Net::new(&device), points(40, 1, &device));
    let mut silent = batch.clone();
    silent.inputs = silent.inputs.zeros_like();
    let mut natural = natural(&NaturalGradientConfig::new().with_radius(None), &model);
    // Inputs of zeros: the first layer's weights have no gradient.
    natural.observe(&model, &silent).expect("a batch");
    let before = weights(&model);
    let after = natural.step(0.1, model.clone(), gradients(&model, &batch));
    for (path, after) in weights(&after.expect("observed")) {
        let most = after
            .iter()
            .zip(&before[&path])
            .fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
        assert!(most < 100.0, "{path}: {most}");
    }
}

#[test]
fn a_gradient_that_is_no_number_is_refused() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let (model, batch) = (Net::new(&device), points(20, 1, &device));
    let mut natural = natural(&NaturalGradientConfig::new(), &model);
    natural.observe(&model, &batch).expect("a batch");
    let mut broken = batch;
    broken.inputs = broken.inputs * f32::NAN;
    let error = natural.step(0.1, model.clone(), gradients(&model, &broken));
    assert!(error.is_err_and(|error| error.to_string().contains("NaN")));
}

/// A number that all scores share changes no prediction: its gradient is rounding, and stays without consequence.
#[derive(Module, Debug)]
struct Shifted {
    net: Net,
    shift: Param<Tensor<1>>,
}

#[derive(Clone, Debug)]
struct Shown {
    inputs: Tensor<2>,
    classes: Tensor<1, Int>,
}

sample_loss!(Shifted, Shown { inputs, classes }, |model, batch| {
    let scores = model.net.forward(batch.inputs.clone()) + model.shift.val().unsqueeze();
    SampleLosses::classification(scores, batch.classes.clone())
});

#[test]
fn gradients_that_are_rounding_move_nothing() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let Points { inputs, classes } = points(64, 5, &device);
    let batch = Shown { inputs, classes };
    let mut model = Shifted {
        net: Net::new(&device),
        shift: Param::from_tensor(Tensor::from_floats([0.3], &device)),
    };
    let config = NaturalGradientConfig::new();
    let mut natural = config.init(sgd(), &model).expect("settings");
    for _ in 0..40 {
        natural.observe(&model, &batch).expect("a batch");
        let loss = model.sample_losses(&batch).means().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = natural.step(0.1, model, gradients).expect("observed");
    }
    let shift = model.shift.val().into_scalar::<f64>();
    assert!((shift - 0.3).abs() < 0.05, "{shift}");
    let loss = model
        .sample_losses(&batch)
        .means()
        .mean()
        .into_scalar::<f64>();
    assert!(loss < 0.7, "{loss}");
}
