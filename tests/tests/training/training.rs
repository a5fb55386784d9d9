//! What follows for training: scaled gradients, consolidation, merging. Golden numbers and laws.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::damping::Damping;
use fisher_metrics::pruning::{OverlapConfig, PruningConfig, RuleOfThumb};
use fisher_metrics::scaling::{Scaling, ScalingConfig};
use fisher_metrics::weights::Weights;
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::models::{Sequences, Small};
use fisher_tests::tolerance::{BACKWARD, GOLDEN, assert_close};
use fisher_train::Error;
use fisher_train::apply::{
    Ewc, EwcConfig, FisherOptimizer, FisherOptimizerConfig, FisherScale, Granularity, MergeConfig,
    MergeReport, MergeSource, Term,
};
use fisher_train::batch::SampleLoss;
use fisher_train::collect::CollectorConfig;
use rstest::rstest;

/// One golden parameter as a model of its own.
#[derive(Module, Debug)]
struct Single {
    weight: Param<Tensor<1>>,
}

impl Single {
    fn new(weights: &[f64], device: &Device) -> Self {
        let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
        Self {
            weight: Param::from_tensor(Tensor::from_data(weights.as_slice(), device)),
        }
    }
}

fn values(tensor: &Tensor<1>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// Statistics of the parameter `path` for both tasks, under the name `weight`.
fn statistics(golden: &Golden, path: &str, model: &Single, device: &Device) -> Statistics {
    let config = StatisticsConfig::new();
    let mut statistics = config.init(model).expect("statistics");
    for task in TASKS {
        let count = golden.samples(task).len();
        let all = golden.batch(task, 0..count, &device.clone().inner());
        let mut batch = GradientBatch::new(all.samples().to_vec());
        let gradient = all.get(path).expect("a gradient");
        batch.insert("weight", gradient.clone());
        statistics.push(task, batch).expect("gradients");
    }
    statistics
}

#[rstest]
fn scaling_merging_and_consolidation_agree(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    for case in CASES {
        let golden = Golden::load(case);
        for (path, weights) in golden.weights() {
            if !golden.names("alpha/mean/").any(|name| name == path) {
                continue; // buffers of the checkpoint
            }
            let further: Vec<f64> = weights
                .iter()
                .map(|w| w + 0.01 * f64::from(w.total_cmp(&0.0) as i8))
                .collect();
            let (model, other) = (
                Single::new(&weights, &device),
                Single::new(&further, &device),
            );
            let statistics = statistics(&golden, &path, &model, &device);
            let welford = |task| {
                let task = statistics.task(task).expect("a task");
                task.parameter("weight")
                    .expect("weight")
                    .elementwise()
                    .expect("elements")
                    .clone()
            };
            let fisher = welford("alpha").mean().expect("samples");
            let first = golden.samples("alpha")[0].clone();
            let gradient = golden.batch("alpha", 0..1, &device.clone().inner());
            let gradient = gradient.get(&path).expect("a gradient").to_full();
            assert_eq!(first.id(), "3");
            for (power, damping) in [("1.0", "0.001"), ("0.5", "1e-06")] {
                let number = |text: &str| text.parse().expect("a number");
                let config = ScalingConfig::new()
                    .with_power(number(power))
                    .with_damping(Damping::Absolute(number(damping)));
                let gradient = gradient.clone().reshape([weights.len()]);
                let scaled = config
                    .init()
                    .expect("damping")
                    .forward(gradient, fisher.clone());
                let name = format!("scaled/{power}/{damping}/{path}");
                assert_close(&name, &values(&scaled), golden.values(&name), GOLDEN, 1e-6);
            }

            let of_other = self::statistics(&golden, &path, &other, &device);
            let source = |model, statistics, task| MergeSource {
                model,
                statistics,
                task,
                weight: 1.0,
            };
            let sources = [
                source(&model, &statistics, "alpha"),
                source(&other, &of_other, "beta_two"),
            ];
            let merged = MergeConfig::new()
                .init()
                .expect("ε")
                .forward(&sources)
                .expect("one architecture");
            let name = format!("merged/{path}");
            // Where no task has a gradient, both F are 0 and ε averages.
            let merged = values(&merged.model.weight.val().inner());
            assert_close(&name, &merged, golden.values(&name), GOLDEN, 1e-2);

            let mut ewc = EwcConfig::new(1.0).init().expect("λ");
            ewc.protect(&statistics, "alpha", &model)
                .expect("statistics");
            let short = ewc
                .penalty(&Single::new(&[1.0], &device))
                .expect_err("another size");
            assert!(short.to_string().contains("`weight`"), "{short}");
            let penalty = ewc
                .penalty(&other)
                .expect("its parameters")
                .expect("a task");
            let penalty: f64 = penalty.into_scalar();
            let expected = golden.expected("/ewc")[&path].as_f64().expect("a number");
            // θ − θ* is 0.01, the difference of float32 weights near 1.
            assert!(
                (penalty - expected).abs() <= GOLDEN * expected,
                "{path}: {penalty}, {expected}"
            );
        }
    }
}

fn collected(model: &Small, device: &Device) -> Statistics {
    collected_as("task", model, device)
}

fn collected_as(task: &str, model: &Small, device: &Device) -> Statistics {
    let attention = fisher_core::grouping::AttentionConfig::new(2);
    let config = StatisticsConfig::new().with_attention(Some(attention));
    let mut statistics = config.init(model).expect("statistics");
    let data = Sequences::made_up(4, 5, device);
    let collector = CollectorConfig::new().init().expect("a collector");
    collector
        .collect_batches(model, task, [data], &mut statistics)
        .expect("a collection");
    statistics
}

#[rstest]
fn merging_a_model_with_itself_is_the_identity(
    #[values(Granularity::Element, Granularity::Group)] granularity: Granularity,
) {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let statistics = collected(&model, &device);
    let source = |weight| MergeSource {
        model: &model,
        statistics: &statistics,
        task: "task",
        weight,
    };
    let merging = MergeConfig::new().with_granularity(granularity);
    let merging = merging.init().expect("ε");
    let merged = merging
        .forward(&[source(1.0), source(2.5)])
        .expect("one model")
        .model;
    let weights = [&merged, &model].map(|m| Weights::of(m).expect("weights"));
    for ((path, a), (_, b)) in weights[0].iter().zip(weights[1].iter()) {
        assert_close(path, a, b, 1e-7, 1e-7);
    }
    // A weight of 0 leaves a model out.
    let other = Small::init_with(&device, 2.0);
    let theirs = collected(&other, &device);
    let other = MergeSource {
        model: &other,
        statistics: &theirs,
        task: "task",
        weight: 0.0,
    };
    let merged = merging
        .forward(&[source(1.0), other])
        .expect("one architecture")
        .model;
    assert_eq!(
        hash_weights(&merged).expect("weights"),
        hash_weights(&model).expect("weights")
    );
    assert!(matches!(
        merging.forward(&[other]),
        Err(Error::NothingToMerge)
    ));
    assert!(matches!(
        merging.forward::<Small, fisher_core::gradient::PerToken>(&[]),
        Err(Error::NothingToMerge)
    ));
}

/// The gradient of the penalty is λ Σ F (θ − θ*), of all that is protected.
#[test]
fn consolidation_pulls_with_lambda_f_times_the_distance() {
    let device = Device::flex().autodiff();
    let (anchor, model) = (Small::init(&device), Small::init_with(&device, 2.0));
    let statistics = collected(&anchor, &device);
    let path = "linear.weight";
    let fisher = statistics
        .task("task")
        .expect("a task")
        .parameter(path)
        .expect("linear");
    let fisher = fisher
        .elementwise()
        .expect("elements")
        .read()
        .expect("values")
        .mean
        .expect("n");
    let [here, there] = [&model, &anchor].map(|m| Weights::of(m).expect("weights"));
    let pull = |times: f64| -> Vec<f64> {
        let here = here.get(path, fisher.len()).expect("weights");
        let there = there.get(path, fisher.len()).expect("weights");
        let pairs = here.iter().zip(there).zip(&fisher);
        pairs.map(|((h, t), f)| 3.0 * times * f * (h - t)).collect()
    };
    let check = |ewc: &Ewc, times: f64| {
        let penalty = ewc
            .penalty(&model)
            .expect("its parameters")
            .expect("a task");
        let gradients = penalty.backward();
        let found = GradientsParams::from_grads(gradients, &model);
        let id = Catalogue::of(&model)
            .expect("parameters")
            .get(path)
            .expect("linear")
            .id();
        let found = found.get::<2>(id.expect("an id")).expect("a gradient");
        let found: Vec<f64> = found.to_data().iter::<f64>().collect();
        assert_close("pull", &found, &pull(times), BACKWARD, 1e-3);
    };
    let mut ewc = EwcConfig::new(3.0).init().expect("λ");
    assert!(ewc.penalty(&model).expect("nothing").is_none());
    ewc.protect(&statistics, "task", &anchor)
        .expect("statistics");
    check(&ewc, 1.0);
    // Another task's anchor is its own: at that anchor only the first task pulls.
    let theirs = collected_as("other", &model, &device);
    let mut both = ewc.clone();
    both.protect(&theirs, "other", &model).expect("statistics");
    check(&both, 1.0);
    let more = collected_as("more", &anchor, &device);
    let mut twice = ewc.clone();
    twice.protect(&more, "more", &anchor).expect("statistics");
    check(&twice, 2.0);
    // What is held to weights of its own is not moved to others.
    let error = ewc.protect_online(0.5, &more, "more", &anchor);
    let error = error.expect_err("protected apart");
    assert!(
        matches!(&error, Error::ProtectedApart { task } if task == "task"),
        "{error}"
    );
    check(&ewc, 1.0);
    let mut ewc = EwcConfig::new(3.0).init().expect("λ");
    ewc.protect_online(0.5, &statistics, "task", &anchor)
        .expect("statistics");
    check(&ewc, 1.0);
    ewc.protect_online(0.5, &more, "more", &anchor)
        .expect("statistics");
    check(&ewc, 1.5);
    // The same task again would count its samples twice, in either way.
    for error in [
        ewc.protect(&statistics, "task", &anchor),
        ewc.protect_online(0.5, &more, "more", &anchor),
    ] {
        let error = error.expect_err("protected already");
        assert!(matches!(error, Error::Protected { .. }), "{error}");
    }
    check(&ewc, 1.5);
    let none: f64 = ewc
        .penalty(&anchor)
        .expect("its own")
        .expect("a task")
        .into_scalar();
    assert_eq!(none, 0.0);
    // Statistics of other weights protect nothing of these.
    let third = collected_as("third", &anchor, &device);
    let error = ewc
        .protect(&third, "third", &model)
        .expect_err("another model");
    assert!(matches!(error, Error::OtherModel { .. }), "{error}");
    // In another model nothing joins: an error, not a penalty of 0.
    let stranger = Single::new(&[1.0], &device);
    assert!(matches!(ewc.penalty(&stranger), Err(Error::Metrics(_))));
}

#[rstest]
fn a_constant_fisher_is_a_constant_step(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let gradient = Tensor::<1>::from_floats([1.0, -2.0, 0.5], &device);
    let wide = fisher_core::moments::accumulation_dtype(&device);
    let fisher = Tensor::<1>::full([3], 4.0, (&device, wide));
    let scaling = |power, damping| -> Scaling {
        let config = ScalingConfig::new().with_power(power).with_damping(damping);
        config.init().expect("damping")
    };
    for (power, damping, divisor) in [
        (1.0, Damping::Absolute(1.0), 5.0),
        (0.5, Damping::Absolute(5.0), 3.0),
        (1.0, Damping::Relative(0.25), 5.0),
        (0.0, Damping::Absolute(1.0), 1.0),
        (1.5, Damping::Absolute(5.0), 27.0),
    ] {
        let scaled = scaling(power, damping).forward(gradient.clone(), fisher.clone());
        let expected = [1.0 / divisor, -2.0 / divisor, 0.5 / divisor];
        assert_close("step", &values(&scaled), &expected, 1e-6, 0.0);
    }
    // Where nothing depends on a tensor, damping keeps the step finite.
    let dead = scaling(1.0, Damping::Relative(0.25));
    let dead = dead.forward(Tensor::<1>::zeros([3], &device), fisher.zeros_like());
    assert_eq!(values(&dead), [0.0; 3]);
    assert!(
        ScalingConfig::new()
            .with_damping(Damping::Absolute(0.0))
            .init()
            .is_err()
    );
    assert!(ScalingConfig::new().with_power(-1.0).init().is_err());
}

#[test]
fn the_wrapped_optimizer_steps_on_scaled_gradients() {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let statistics = collected(&model, &device);
    let scaling = ScalingConfig::new().with_damping(Damping::Absolute(0.5));
    let sgd = || SgdConfig::new().init();
    let mut optimizer = FisherOptimizerConfig::new()
        .with_scaling(scaling)
        .init(sgd(), &statistics, "task", &model)
        .expect("F");
    let quiet =
        fisher_train::capture::PerSample::new(&model, statistics.paths()).expect("an engine");
    let data = Sequences::made_up(1, 5, &device);
    // One sample's gradient, with dropout off, as the batch's.
    let gradient = quiet.gradient(&data, 0).expect("a gradient");
    let id = Catalogue::of(&model)
        .expect("parameters")
        .get("linear.weight")
        .expect("linear")
        .id();
    let raw = gradient
        .gradients
        .get("linear.weight")
        .expect("a gradient")
        .to_full();
    let mut gradients = GradientsParams::new();
    gradients.register(id.expect("an id"), raw.clone().reshape([8, 8]));
    let stepped = optimizer
        .step(0.1, model.clone(), gradients)
        .expect("all have F");
    let [old, new] = [&model, &stepped].map(|m| Weights::of(m).expect("weights"));
    let fisher = statistics
        .task("task")
        .expect("a task")
        .parameter("linear.weight")
        .expect("F");
    let fisher = fisher
        .elementwise()
        .expect("elements")
        .read()
        .expect("values")
        .mean
        .expect("n");
    let raw: Vec<f64> = raw.to_data().iter::<f64>().collect();
    let old = old.get("linear.weight", 64).expect("weights");
    let expected: Vec<f64> = (0..64)
        .map(|k| old[k] - 0.1 * raw[k] / (fisher[k] + 0.5))
        .collect();
    let new = new.get("linear.weight", 64).expect("weights");
    assert_close("step", new, &expected, 1e-5, 1.0);
    // Refreshed from statistics of other samples, the same gradient is scaled otherwise.
    let mut other = StatisticsConfig::new().init(&model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    collector
        .collect_batches(&model, "task", [data.clone()], &mut other)
        .expect("a collection");
    let scaled = |optimizer: &FisherOptimizer| -> Vec<f64> {
        let id = id.expect("an id");
        let mut gradients = GradientsParams::new();
        gradients.register(id, Tensor::<2>::ones([8, 8], &Device::flex()));
        let scaled = optimizer.scale(&model, gradients).expect("all have F");
        let scaled = scaled.get::<2>(id).expect("a gradient");
        scaled.to_data().iter::<f64>().collect()
    };
    let stale = scaled(&optimizer);
    optimizer
        .refresh(&other, "task", &model)
        .expect("all have F");
    let fresh = other
        .task("task")
        .expect("a task")
        .parameter("linear.weight")
        .expect("F");
    let fresh = fresh
        .elementwise()
        .expect("elements")
        .read()
        .expect("values")
        .mean
        .expect("n");
    let expected: Vec<f64> = fresh.iter().map(|f| 1.0 / (f + 0.5)).collect();
    assert_close("refreshed", &scaled(&optimizer), &expected, 1e-5, 1.0);
    assert_ne!(stale, scaled(&optimizer));

    let some = burn::module::ParamGroup::from_predicate("attention");
    let config = StatisticsConfig::new().with_elementwise_only(Some(some));
    let mut partial = config.init(&model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    collector
        .collect_batches(&model, "task", [data.clone()], &mut partial)
        .expect("a collection");
    let error = optimizer
        .refresh(&partial, "task", &model)
        .expect_err("not all are there");
    assert!(
        matches!(&error, Error::NoFisher { parameter } if parameter == "embedding.weight"),
        "{error}"
    );
    assert_eq!(model.sample_losses(&data).sums().dims(), [1]);
}

/// Where no F reaches ε the models are averaged plainly, and the report says so.
#[test]
fn a_merge_that_epsilon_decides_is_reported() {
    let device = Device::flex().autodiff();
    let models = [[0.0, 0.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0]];
    let models = models.map(|weights| Single::new(&weights, &device));
    let collect = |model: &Single, roots: [f32; 4]| {
        let config = StatisticsConfig::new();
        let mut statistics = config.init(model).expect("empty");
        let mut batch = GradientBatch::new(vec![
            fisher_core::sample::Sample::new("a", 1).expect("tokens"),
        ]);
        let gradient = Tensor::<1>::from_floats(roots, &device.clone().inner());
        batch.insert("weight", Gradient::token_sum(gradient.unsqueeze::<2>()));
        statistics.push("task", batch).expect("gradients");
        statistics
    };
    let merge = |roots: [[f32; 4]; 2], epsilon: f64| {
        let statistics = [0, 1].map(|at| collect(&models[at], roots[at]));
        let sources = [0, 1].map(|at| MergeSource {
            model: &models[at],
            statistics: &statistics[at],
            task: "task",
            weight: 1.0,
        });
        let merging = MergeConfig::new().with_epsilon(epsilon).init().expect("ε");
        let merged = merging.forward(&sources).expect("one architecture");
        (values(&merged.model.weight.val().inner()), merged.report)
    };
    // F of 1e-15 and 3e-15: ε = 1e-12 averages plainly, one far below F does not.
    let root = |f: f64| f.sqrt() as f32;
    let small = [[root(1e-15); 4], [root(3e-15); 4]];
    let (weights, report) = merge(small, 1e-12);
    assert!(
        weights.iter().all(|w| (w - 2.0).abs() < 0.01),
        "{weights:?}"
    );
    assert_eq!(report.plain, 1.0);
    let decided = &report.parameters["weight"];
    assert_eq!((decided.plain, decided.elements), (4, 4));
    for health in &decided.health {
        assert_eq!(health.fraction_below_epsilon, 1.0);
        assert_eq!(health.ridge_lambda_applied, 1e-12);
        assert!(health.swamped());
    }
    assert_eq!(report.warnings.len(), 1);
    assert!(report.warnings[0].contains("100.0 % of the weights are averaged plainly"));
    assert!(report.to_string().contains("averaged plainly"));
    let json = serde_json::to_string(&report).expect("JSON");
    let again: MergeReport = serde_json::from_str(&json).expect("a report");
    assert_eq!(again, report);
    let (weights, report) = merge(small, 1e-20);
    assert!(
        weights.iter().all(|w| (w - 3.0).abs() < 1e-4),
        "{weights:?}"
    );
    assert_eq!((report.plain, report.warnings.len()), (0.0, 0));

    // One model's F is below ε, the other's is not: F decides, but not for the first.
    let mixed = [[root(1e-15); 4], [1.0; 4]];
    let (weights, report) = merge(mixed, 1e-12);
    assert!(
        weights.iter().all(|w| (w - 4.0).abs() < 1e-6),
        "{weights:?}"
    );
    assert_eq!(report.plain, 0.0);
    assert_eq!(report.warnings.len(), 1, "{report}");
    assert!(report.warnings[0].contains("more than 1 % of a model's median F"));
}

/// Brought to one scale, a model whose loss is a thousand times as steep counts for no more.
#[rstest]
#[case(FisherScale::None, [1.0, 1e-4], 0.01)]
#[case(FisherScale::Trace, [1.0, 1e-4], 2.0)]
#[case(FisherScale::Norm, [1.0, 1e-4], 2.0)]
#[case(FisherScale::Norm, [1e-140, 1e-130], 2.0)]
fn steep_losses_count_for_as_much_at_one_scale(
    #[case] scale: FisherScale,
    #[case] roots: [f64; 2],
    #[case] expected: f64,
) {
    let device = Device::flex().autodiff();
    let models = [[0.0; 4], [4.0; 4]].map(|weights| Single::new(&weights, &device));
    let f64s = (&Device::flex(), burn::tensor::DType::F64);
    let statistics = [0, 1].map(|at| {
        let mut statistics = StatisticsConfig::new().init(&models[at]).expect("empty");
        let sample = fisher_core::sample::Sample::new("a", 1).expect("tokens");
        let mut batch = GradientBatch::new(vec![sample]);
        // F as 1, 2, 3, 4, of each model.
        let gradient = [1.0f64, 2.0, 3.0, 4.0].map(|f| roots[at] * f.sqrt());
        let data = TensorData::new(gradient.to_vec(), [1, 4]);
        batch.insert(
            "weight",
            Gradient::token_sum(Tensor::<2>::from_data(data, f64s)),
        );
        statistics.push("task", batch).expect("gradients");
        statistics
    });
    let sources = [0, 1].map(|at| MergeSource {
        model: &models[at],
        statistics: &statistics[at],
        task: "task",
        weight: 1.0,
    });
    let merging = MergeConfig::new().with_scale(scale).with_epsilon(1e-30);
    let merged = merging
        .init()
        .expect("ε")
        .forward(&sources)
        .expect("one shape");
    assert_eq!(merged.report.scale, scale);
    for weight in values(&merged.model.weight.val().inner()) {
        assert!((weight - expected).abs() <= 0.01, "{weight}");
    }
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    let (nan, infinite) = (f64::NAN, f64::INFINITY);
    let refuses = |what: &str, refused: bool| assert!(refused, "{what}");
    let overlap = |[arithmetic_below, surgery_above]: [f64; 2]| {
        OverlapConfig::new().with_rule_of_thumb(Some(RuleOfThumb {
            arithmetic_below,
            surgery_above,
        }))
    };
    for wrong in [nan, infinite, -1.0] {
        refuses("λ", EwcConfig::new(wrong).init().is_err());
        refuses("ε", MergeConfig::new().with_epsilon(wrong).init().is_err());
        let config = ScalingConfig::new().with_damping(Damping::Relative(wrong));
        refuses("damping", config.init().is_err());
        refuses(
            "power",
            ScalingConfig::new().with_power(wrong).init().is_err(),
        );
        refuses("sparsity", PruningConfig::new(wrong).init().is_err());
        for thumb in [[wrong, 0.7], [0.4, wrong]] {
            refuses("threshold", overlap(thumb).init().is_err());
        }
    }
    refuses("ε", MergeConfig::new().with_epsilon(0.0).init().is_err());
    refuses("thresholds crossed", overlap([0.9, 0.7]).init().is_err());
    assert!(EwcConfig::new(0.0).init().is_ok());

    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let statistics = collected(&model, &device);
    for wrong in [nan, infinite, -0.5, 1.5] {
        let mut ewc = EwcConfig::new(1.0).init().expect("λ");
        let error = ewc.protect_online(wrong, &statistics, "task", &model);
        let error = error.expect_err("γ");
        let named = matches!(
            error,
            Error::Metrics(fisher_metrics::Error::Argument { name: "decay", .. })
        );
        assert!(named && ewc.penalty(&model).expect("nothing").is_none());
    }

    // A model that has diverged protects and merges nothing.
    let nan_somewhere = Weights::of(&model).expect("weights");
    let nan_somewhere = nan_somewhere.iter().map(|(path, weights)| {
        let mut weights = weights.to_vec();
        if path == "linear.bias" {
            weights[1] = nan;
        }
        (path.to_owned(), weights)
    });
    let weights = Weights::from(nan_somewhere.collect::<BTreeMap<_, _>>());
    let broken = weights.write(model.clone()).expect("its own parameters");
    let config = StatisticsConfig::new();
    let mut of_broken = config.init(&broken).expect("empty");
    let mut batch = GradientBatch::new(vec![
        fisher_core::sample::Sample::new("a", 1).expect("tokens"),
    ]);
    for path in of_broken.paths() {
        let shape = of_broken.shape(path).expect("a shape");
        let elements = shape.iter().product::<usize>();
        let gradient = Tensor::<2>::ones([1, elements], &device.clone().inner());
        batch.insert(path, Gradient::token_sum(gradient));
    }
    of_broken.push("task", batch).expect("gradients");
    let not_finite = |error: &Error| {
        let Error::Metrics(fisher_metrics::Error::NotFinite { key, .. }) = error else {
            return false;
        };
        key == "linear.bias"
    };
    let mut ewc = EwcConfig::new(1.0).init().expect("λ");
    let error = ewc.protect(&of_broken, "task", &broken).expect_err("NaN");
    assert!(not_finite(&error), "{error}");
    let source = MergeSource {
        model: &broken,
        statistics: &of_broken,
        task: "task",
        weight: 1.0,
    };
    let merging = MergeConfig::new().init().expect("ε");
    let error = merging.forward(&[source]).expect_err("NaN");
    assert!(not_finite(&error), "{error}");
    for weights in [[nan, 1.0], [infinite, 1.0], [-1.0, 2.0], [0.0, 0.0]] {
        let terms = weights.map(|weight| Term {
            weights: &[1.0],
            fisher: &[1.0],
            weight,
        });
        let error = merging.average("w", &terms).expect_err("weights");
        assert!(matches!(error, Error::NothingToMerge), "{error}");
    }
    // Weights of any size are only proportions.
    let terms = [1e308; 2].map(|weight| Term {
        weights: &[1.0],
        fisher: &[4.0],
        weight,
    });
    assert_eq!(
        merging.average("w", &terms).expect("an average").weights,
        [1.0]
    );
    let infinite = Term {
        weights: &[1.0],
        fisher: &[infinite],
        weight: 1.0,
    };
    let error = merging.average("w", &[infinite]).expect_err("F");
    assert!(matches!(error, Error::Metrics(_)), "{error}");

    let scores = fisher_metrics::pruning::Scores::elementwise(&statistics, "task").expect("scores");
    let pruning = PruningConfig::new(0.5).init().expect("s");
    let error = pruning.forward(&scores.map(|_| nan)).expect_err("NaN");
    assert!(
        matches!(error, fisher_metrics::Error::NotFinite { .. }),
        "{error}"
    );
}

/// A matrix is not another one of as many elements.
#[test]
fn a_transposed_matrix_is_another_shape() {
    #[derive(Module, Debug)]
    struct Matrix {
        weight: Param<Tensor<2>>,
    }
    let device = Device::flex().autodiff();
    let matrix = |shape: [usize; 2]| Matrix {
        weight: Param::from_tensor(Tensor::ones(shape, &device)),
    };
    let (model, transposed) = (matrix([2, 3]), matrix([3, 2]));
    let config = StatisticsConfig::new();
    let mut statistics = config.init(&model).expect("empty");
    let mut batch = GradientBatch::new(vec![
        fisher_core::sample::Sample::new("a", 1).expect("tokens"),
    ]);
    let gradient = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]];
    let gradient = Tensor::<2>::from_floats(gradient, &device.clone().inner());
    batch.insert("weight", Gradient::token_sum(gradient));
    statistics.push("task", batch).expect("gradients");
    let shape =
        |error: &fisher_metrics::Error| matches!(error, fisher_metrics::Error::Shape { .. });
    let wrapped = |error: Error| matches!(&error, Error::Metrics(error) if shape(error));

    let mut ewc = EwcConfig::new(1.0).init().expect("λ");
    ewc.protect(&statistics, "task", &model).expect("F");
    assert!(wrapped(ewc.penalty(&transposed).expect_err("transposed")));
    let scaling = || ScalingConfig::new();
    let sgd = || SgdConfig::new().init();
    let optimizer = |model| {
        FisherOptimizerConfig::new()
            .with_scaling(scaling())
            .init(sgd(), &statistics, "task", model)
    };
    assert!(optimizer(&transposed).err().is_some_and(wrapped));
    let scores = fisher_metrics::pruning::Scores::elementwise(&statistics, "task").expect("scores");
    let masks = PruningConfig::new(0.5).init().expect("s");
    let masks = masks.forward(&scores).expect("masks");
    assert!(masks.apply(transposed.clone()).is_err_and(|e| shape(&e)));
    assert!(masks.enforce(transposed.clone()).is_err_and(|e| shape(&e)));
    let (_, removed) = masks.apply(model).expect("its own");
    assert!(removed.restore(transposed).is_err_and(|e| shape(&e)));
}
