//! Ablation against the loop by hand, where the prediction of gates is exact, and what is promised of the model.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gates::{GateKind, GateQuantity, GateSet, Gates, GatesConfig};
use fisher_core::grouping::{AttentionConfig, HeadLayout, Scheme};
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::statistics::StatisticsConfig;
use fisher_metrics::weights::Weights;
use fisher_tests::backend::Backend;
use fisher_tests::models::{Line, Sequences, Small, Unnamed};
use fisher_tests::tolerance::{BACKWARD, assert_close};
use fisher_train::ablation::{AblationConfig, AblationInterval, AblationKind, AblationUnit};
use fisher_train::batch::{SampleBatch, SampleLoss};
use fisher_train::capture::{CaptureConfig, Engine};
use fisher_train::collect::CollectorConfig;
use fisher_train::losses::SampleLosses;
use fisher_train::{Error, sample_loss};
use rstest::rstest;

fn device() -> Device {
    Backend::Flex.device().expect("a CPU").autodiff()
}

fn quiet() -> AblationConfig {
    AblationConfig::new().with_progress(false)
}

/// The losses of all samples, one by one.
fn losses<M: SampleLoss>(model: &M, batches: &[M::Batch]) -> Vec<f64> {
    let capture = CaptureConfig::new().with_engine(Engine::Loop);
    let catalogue = Catalogue::of(model).expect("parameters");
    let paths = catalogue.parameters().iter().map(|p| p.path());
    let mut capture = capture.init(model, paths).expect("a capture");
    let all = batches.iter().flat_map(|batch| {
        let outcomes = capture
            .accumulate(batch, "t", None::<Gates>)
            .expect("losses");
        outcomes
            .into_iter()
            .map(|outcome| outcome.loss.expect("finite"))
    });
    all.collect()
}

#[test]
fn every_gate_is_taken_out_as_by_hand() {
    let device = device();
    let model = Small::init(&device);
    let batches = Sequences::made_up(7, 5, &device).batches(3);
    let catalogue = Catalogue::of(&model).expect("parameters");
    let attention = AttentionConfig::new(2);
    let heads = HeadLayout::recognize(&catalogue, &attention).expect("heads");
    let sets = GatesConfig::new().sets(&catalogue, &heads).expect("gates");
    let before = hash_weights(&model).expect("weights");
    let report = quiet()
        .with_unit(AblationUnit::TokenSum)
        .init()
        .expect("an operator");
    let report = report
        .forward(&model, "t", &batches, &sets)
        .expect("a report");
    assert_eq!(
        before,
        hash_weights(&model).expect("weights"),
        "the model has changed"
    );

    let weights = Weights::of(&model).expect("weights");
    let whole = losses(&model, &batches);
    let (n, gates) = (whole.len(), report.gates.len());
    let mut at = 0;
    for set in &sets {
        for gate in 0..set.gates() {
            let mut without = std::collections::BTreeMap::new();
            for part in set.parts() {
                let groups = part.grouping.group_of_elements();
                let theta = weights
                    .get(&part.path, groups.len())
                    .expect("weights")
                    .iter();
                let theta = theta
                    .zip(groups)
                    .map(|(w, g)| if g == Some(gate) { 0.0 } else { *w });
                without.insert(part.path.clone(), theta.collect());
            }
            let without = Weights::from(without)
                .write(model.clone())
                .expect("a model");
            let expected = losses(&without, &batches);
            let expected: Vec<f64> = expected.iter().zip(&whole).map(|(a, b)| a - b).collect();
            let found: Vec<f64> = (0..n).map(|i| report.rows()[i * gates + at]).collect();
            let largest = whole.iter().copied().fold(0.0, f64::max);
            for (f, e) in found.iter().zip(&expected) {
                assert!(
                    (f - e).abs() < BACKWARD * largest,
                    "{}: {f} against {e}",
                    set.label(gate)
                );
            }
            let mean = found.iter().sum::<f64>() / n as f64;
            assert!((report.gates[at].increase - mean).abs() < 1e-12);
            assert_eq!(report.gates[at].name, set.label(gate));
            at += 1;
        }
    }
    assert_eq!(at, gates);
    assert!(report.gates.iter().any(|gate| gate.kind == GateKind::Head));

    // Per token, each is divided by the tokens of its own sample.
    let per_token = quiet().init().expect("an operator");
    let per_token = per_token
        .forward(&model, "t", &batches, &sets)
        .expect("a report");
    for (i, sample) in report.samples.iter().enumerate() {
        let sums = report.rows()[i * gates..][..gates].iter();
        let expected: Vec<f64> = sums.map(|sum| sum / sample.tokens as f64).collect();
        assert_close(
            "per token",
            &per_token.rows()[i * gates..][..gates],
            &expected,
            1e-12,
            1.0,
        );
    }
    let json = serde_json::to_string(&report).expect("JSON");
    assert!(!json.contains("rows"));
}

/// Points of two numbers and a target; the loss is ½ (w·x − y)².
#[derive(Debug, Clone)]
struct Points {
    x: Tensor<2>,
    y: Tensor<1>,
}

#[derive(Module, Debug)]
struct Slope {
    linear: Linear,
}

sample_loss!(Slope, Points { x, y }, |model, batch| {
    let [samples, _] = batch.x.dims();
    let off = model.linear.forward(batch.x.clone()).reshape([samples]) - batch.y.clone();
    SampleLosses::token_sum(off.square().mul_scalar(0.5), vec![1; samples])
});

/// Where every residual is ±1, `E[g gᵀ] = E[r² x xᵀ]` is the Hessian `E[x xᵀ]`, and the loss is of second order: the
/// prediction of a gate is what ablation measures, of every sample.
#[rstest]
fn a_prediction_is_exact_where_the_fisher_is_the_hessian(
    #[values(Engine::Auto, Engine::Loop)] engine: Engine,
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let linear = LinearConfig::new(4, 1).with_bias(false).init(&device);
    let model = Slope { linear };
    let count = 24;
    let x: Vec<f32> = (0..count * 4)
        .map(|k| (0.7 * (k * k % 211) as f32).sin())
        .collect();
    let x = Tensor::<2>::from_data(TensorData::new(x, [count, 4]), &device);
    let said = model.linear.forward(x.clone()).reshape([count]);
    let signs: Vec<f32> = (0..count)
        .map(|i| if i * 7 % 3 == 0 { 1.0 } else { -1.0 })
        .collect();
    let y = (said.detach() - Tensor::<1>::from_floats(signs.as_slice(), &device)).detach();
    let batches = [Points { x, y }];
    let catalogue = Catalogue::of(&model).expect("parameters");
    let weight = &catalogue.parameters()[0];
    let pairs = Scheme::Buckets { size: 2 };
    let mut sets = GateSet::of(weight, &pairs, &HeadLayout::none()).expect("pairs");
    sets.extend(GateSet::layers(&catalogue).expect("layers"));
    sets.extend(GateSet::of(weight, &Scheme::Element, &HeadLayout::none()).expect("elements"));
    let mut gates = GatesConfig::new()
        .init_of(&model, sets.clone())
        .expect("gates");
    let capture = CaptureConfig::new().with_engine(engine);
    let mut capture = capture.init(&model, gates.paths()).expect("a capture");
    capture
        .accumulate(&batches[0], "t", &mut gates)
        .expect("gradients");
    let task = gates.scores().task("t").expect("a task");
    let predicted = task.rows(GateQuantity::Predicted).expect("rows");
    let report = quiet().init().expect("an operator");
    let report = report
        .forward(&model, "t", &batches, &sets)
        .expect("a report");
    assert_close("rows", &predicted, report.rows(), 5e-5, 1.0);
}

#[test]
fn collecting_fills_gates_in_the_same_pass() {
    let device = device();
    let model = Small::init(&device);
    let batches = Sequences::made_up(7, 5, &device).batches(3);
    let config = GatesConfig::new().with_attention(Some(AttentionConfig::new(2)));
    let of_engine = |engine| {
        let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
        let mut gates = config.init(&model).expect("gates");
        let collector = CollectorConfig::new()
            .with_engine(engine)
            .with_progress(false);
        let collector = collector.init().expect("a collector");
        let into = (&mut statistics, &mut gates);
        collector
            .collect_batches(&model, "t", batches.clone(), into)
            .expect("a collection");
        assert_eq!(statistics.task("t").expect("a task").count(), 7);
        // Statistics that go on without their gates, and gates without their statistics.
        let mut fresh = config.init(&model).expect("gates");
        let error =
            collector.collect_batches(&model, "t", batches.clone(), (&mut statistics, &mut fresh));
        assert!(matches!(error, Err(Error::GatesBehind { .. })), "{error:?}");
        gates.into_scores()
    };
    let [traced, looped] = [Engine::Trace, Engine::Loop].map(of_engine);
    let (traced, looped) = (
        traced.task("t").expect("a task"),
        looped.task("t").expect("a task"),
    );
    assert_eq!(traced.samples(), looped.samples());
    let (found, expected) = (
        traced.products().expect("rows"),
        looped.products().expect("rows"),
    );
    assert_close("products", found, expected, 5.0 * BACKWARD, 1.0);
}

/// Every output of a line held at its mean, and every input.
#[test]
fn mean_ablation_of_a_line_is_its_mean() {
    let device = device();
    let model = Line::init(&device);
    let points = Unnamed::made_up(12, &device);
    let batches = points.batches(12, 5);
    let catalogue = Catalogue::of(&model).expect("parameters");
    let weight = catalogue.require("linear.weight").expect("a matrix");
    let none = HeadLayout::none();
    let mut sets = GateSet::channels(&catalogue, &none).expect("channels");
    sets.extend(GateSet::of(weight, &Scheme::InputChannel, &none).expect("inputs"));
    let ablation = quiet()
        .with_kind(AblationKind::Mean)
        .init()
        .expect("an operator");
    let report = ablation
        .forward(&model, "t", &batches, &sets)
        .expect("a report");
    let read = |tensor: Tensor<2>| -> Vec<f64> { tensor.inner().into_data().iter().collect() };
    let (x, y) = (read(points.x), read(points.y));
    let weights = Weights::of(&model).expect("weights");
    let w = weights.get("linear.weight", 6).expect("weights");
    let b = weights.get("linear.bias", 2).expect("biases");
    let mean: Vec<f64> = (0..3)
        .map(|k| (0..12).map(|i| x[3 * i + k]).sum::<f64>() / 12.0)
        .collect();
    let loss = |i: usize, without: usize| -> f64 {
        // 0, 1: an output; 2, 3, 4: an input; else whole.
        let input = |k: usize, o: usize| {
            let held = without == o || without == 2 + k;
            if held { mean[k] } else { x[3 * i + k] }
        };
        let out = |o: usize| b[o] + (0..3).map(|k| input(k, o) * w[2 * k + o]).sum::<f64>();
        (0..2).map(|o| (out(o) - y[2 * i + o]).powi(2)).sum()
    };
    let expected = (0..12).flat_map(|i| (0..5).map(move |gate| loss(i, gate) - loss(i, 9)));
    let expected: Vec<f64> = expected.collect();
    assert_close("rows", report.rows(), &expected, 2e-5, 1.0);

    // What has no bias beside it, or is no matrix, is refused.
    let layers = GateSet::layers(&catalogue).expect("layers");
    ablation
        .forward(&model, "t", &batches, &layers)
        .expect("a matrix and its bias");
    let small = Small::init(&device);
    let catalogue = Catalogue::of(&small).expect("parameters");
    let layers = GateSet::layers(&catalogue).expect("layers");
    let batches = Sequences::made_up(4, 5, &device).batches(4);
    let error = ablation
        .forward(&small, "t", &batches, &layers)
        .expect_err("an embedding");
    assert!(matches!(error, Error::NoMean { .. }), "{error}");
}

#[test]
fn resampling_draws_from_the_rest_of_the_tensor() {
    let device = device();
    let model = Line::init(&device);
    let batches = Unnamed::made_up(8, &device).batches(8, 8);
    let catalogue = Catalogue::of(&model).expect("parameters");
    let weight = catalogue.require("linear.weight").expect("a matrix");
    let sets = GateSet::of(weight, &Scheme::InputChannel, &HeadLayout::none()).expect("inputs");
    let run = |model: &Line, seed| {
        let config = quiet().with_kind(AblationKind::Resample).with_seed(seed);
        let ablation = config.init().expect("an operator");
        ablation
            .forward(model, "t", &batches, &sets)
            .expect("a report")
    };
    assert_eq!(run(&model, 1).rows(), run(&model, 1).rows());
    assert_ne!(run(&model, 1).rows(), run(&model, 2).rows());
    assert!(run(&model, 1).rows().iter().any(|x| x.abs() > 1e-3));
    // Where all weights are equal, others are the same.
    let equal = Weights::from(std::collections::BTreeMap::from([(
        "linear.weight".to_owned(),
        vec![0.4; 6],
    )]));
    let equal = equal.write(model).expect("a model");
    assert!(run(&equal, 1).rows().iter().all(|x| *x == 0.0));
}

/// Samples four times each, one cluster each, say what the samples say alone.
#[rstest]
fn copies_in_clusters_do_not_help(
    #[values(AblationInterval::StudentT, AblationInterval::Bootstrap)] interval: AblationInterval,
) {
    #[derive(Debug, Clone)]
    struct Copies(Unnamed, usize, usize);

    impl SampleBatch for Copies {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn cluster(&self, index: usize) -> Option<String> {
            Some(format!("{}", (self.1 + index) / self.2))
        }

        fn map_samples(&self, mapper: &mut fisher_train::batch::SampleMapper) -> Self {
            Self(self.0.map_samples(mapper), self.1, self.2)
        }
    }

    #[derive(Module, Debug)]
    struct Model {
        line: Line,
    }

    impl SampleLoss for Model {
        type Batch = Copies;

        fn sample_losses(&self, batch: &Copies) -> SampleLosses {
            self.line.sample_losses(&batch.0)
        }
    }

    let device = device();
    let model = Model {
        line: Line::init(&device),
    };
    let points = Unnamed::made_up(10, &device);
    let four = |t: &Tensor<2>| {
        let [n, width] = t.dims();
        t.clone()
            .reshape([n, 1, width])
            .repeat_dim(1, 4)
            .reshape([4 * n, width])
    };
    let copies = Unnamed {
        x: four(&points.x),
        y: four(&points.y),
    };
    let catalogue = Catalogue::of(&model).expect("parameters");
    let sets = GateSet::channels(&catalogue, &HeadLayout::none()).expect("channels");
    let ablation = quiet().with_interval(interval).init().expect("an operator");
    let run = |batch| {
        ablation
            .forward(&model, "t", &[batch], &sets)
            .expect("a report")
    };
    let (alone, copied) = (run(Copies(points, 0, 1)), run(Copies(copies, 0, 4)));
    assert_eq!(
        (alone.clusters, copied.clusters, copied.samples.len()),
        (10, 10, 40)
    );
    for (a, c) in alone.gates.iter().zip(&copied.gates) {
        let numbers = |g: &fisher_train::ablation::AblatedGate| {
            let interval = g.interval.expect("clusters");
            [
                g.increase,
                g.standard_error.expect("clusters"),
                interval.lower,
                interval.upper,
            ]
        };
        assert_close("gate", &numbers(c), &numbers(a), 1e-6, 1.0);
        let set = a.ranks.expect("clusters");
        assert!(1 <= set.best && set.best <= set.worst && set.worst <= alone.gates.len());
        // As much is left open by copies as by what they are of, but for rounding.
        let copied = c.ranks.expect("clusters");
        assert!(copied.best.abs_diff(set.best) <= 1, "{copied} {set}");
        assert!(copied.worst.abs_diff(set.worst) <= 1, "{copied} {set}");
    }
}
