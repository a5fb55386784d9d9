//! Fishers that are not of one kind are not averaged, added or compared.

use burn::module::{Module, Param, ParamGroup};
use burn::optim::SgdConfig;
use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{ContributionUnit, Gradient, GradientBatch, PerToken, Raw};
use fisher_core::grouping::{GroupReduction, Scheme};
use fisher_core::kind::FisherKind;
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::Error as MetricsError;
use fisher_metrics::pruning::{ComparisonConfig, Scores};
use fisher_metrics::scaling::ScalingConfig;
use fisher_metrics::weights::Weights;
use fisher_train::apply::{
    Ewc, EwcConfig, FisherOptimizerConfig, Granularity, MergeConfig, MergeSource, Merged,
};
use fisher_train::{Error, Result};

/// One matrix.
#[derive(Module, Debug)]
struct Matrix {
    weight: Param<Tensor<2>>,
}

impl Matrix {
    fn new(weights: [[f32; 2]; 2]) -> Self {
        let device = Device::flex().autodiff();
        Self {
            weight: Param::from_tensor(Tensor::from_floats(weights, &device)),
        }
    }
}

/// Statistics of `model` from two samples of `tokens` tokens.
fn statistics<C: ContributionUnit>(
    config: &StatisticsConfig,
    model: &Matrix,
    task: &str,
) -> Statistics<C> {
    let mut statistics = config.init_as(model).expect("empty");
    let samples = ["a", "b"].map(|id| Sample::new(id, 3).expect("tokens"));
    let mut batch = GradientBatch::new(samples.to_vec());
    let gradient = [[1.0, -2.0, 0.5, 3.0], [0.5, 1.0, -1.5, 1.0]];
    let gradient = Tensor::<2>::from_floats(gradient, &Device::flex());
    batch.insert("weight", Gradient::token_sum(gradient));
    statistics.push(task, batch).expect("gradients");
    statistics
}

fn differs<T>(result: Result<T>, expected: &str) {
    match result {
        Err(Error::Metrics(MetricsError::OtherFisher { what, .. })) => assert_eq!(what, expected),
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("{expected}: no error"),
    }
}

#[test]
fn models_are_merged_by_fishers_of_one_kind() {
    let models = [
        Matrix::new([[1.0, 2.0], [3.0, 4.0]]),
        Matrix::new([[-1.0, 0.0], [2.0, 0.5]]),
    ];
    let merge = |granularity, configs: [&StatisticsConfig; 2]| -> Result<Merged<Matrix>> {
        let of = |at: usize| statistics::<PerToken>(configs[at], &models[at], "task");
        let statistics = [of(0), of(1)];
        let sources = [0, 1].map(|at| MergeSource {
            model: &models[at],
            statistics: &statistics[at],
            task: "task",
            weight: 1.0,
        });
        let config = MergeConfig::new().with_granularity(granularity);
        config.init()?.forward(&sources)
    };
    let mean = StatisticsConfig::new();
    let sum = mean.clone().with_reduction(GroupReduction::Sum);
    let drawn = mean.clone().with_kind(FisherKind::MonteCarlo);
    let inputs = (ParamGroup::all(), Scheme::InputChannel);
    let inputs = mean.clone().with_schemes(vec![inputs]);

    // F of elements is the same in both.
    for config in [&mean, &sum, &inputs] {
        merge(Granularity::Element, [&mean, config]).expect("one kind");
    }
    merge(Granularity::Group, [&sum, &sum]).expect("one kind");
    differs(merge(Granularity::Group, [&mean, &sum]), "group reduction");
    for granularity in [Granularity::Element, Granularity::Group] {
        differs(merge(granularity, [&mean, &drawn]), "kind");
    }
    let error = merge(Granularity::Group, [&mean, &inputs]).expect_err("other groups");
    assert!(
        matches!(&error, Error::Metrics(MetricsError::Groups { key }) if key == "weight"),
        "{error}"
    );
}

#[test]
fn tasks_are_protected_by_fishers_of_one_kind() {
    let model = Matrix::new([[1.0, 2.0], [3.0, 4.0]]);
    let config = StatisticsConfig::new();
    let first = statistics::<PerToken>(&config, &model, "first");
    let more = statistics::<PerToken>(&config, &model, "more");
    let raw = statistics::<Raw>(&config, &model, "raw");
    let drawn = config.clone().with_kind(FisherKind::MonteCarlo);
    let drawn = statistics::<PerToken>(&drawn, &model, "drawn");
    let mut ewc = EwcConfig::new(1.0).init().expect("λ");
    ewc.protect(&first, "first", &model).expect("F");
    differs(ewc.protect(&raw, "raw", &model), "contribution unit");
    differs(ewc.protect(&drawn, "drawn", &model), "kind");
    let online = |ewc: &mut Ewc| ewc.protect_online(1.0, &raw, "raw", &model);
    differs(online(&mut ewc), "contribution unit");
    ewc.protect(&more, "more", &model).expect("F");

    let scaling = ScalingConfig::new();
    let sgd = SgdConfig::new().init();
    let mut optimizer = FisherOptimizerConfig::new()
        .with_scaling(scaling)
        .init(sgd, &first, "first", &model)
        .expect("F");
    differs(optimizer.refresh(&raw, "raw", &model), "contribution unit");
    differs(optimizer.refresh(&drawn, "drawn", &model), "kind");
    optimizer.refresh(&more, "more", &model).expect("F");
}

#[test]
fn scores_are_averaged_by_fishers_of_one_kind() {
    let model = Matrix::new([[1.0, 2.0], [3.0, 4.0]]);
    let config = StatisticsConfig::new();
    let sums = config.clone().with_reduction(GroupReduction::Sum);
    let mean = statistics::<PerToken>(&config, &model, "task");
    let mean = || Scores::grouped(&mean, "task").expect("scores");
    let sum = statistics::<PerToken>(&sums, &model, "task");
    let sum = Scores::grouped(&sum, "task").expect("scores");
    let raw = statistics::<Raw>(&config, &model, "task");
    let raw = Scores::grouped(&raw, "task").expect("scores");
    differs(
        mean().mean_with(&sum).map_err(Error::from),
        "group reduction",
    );
    differs(
        ComparisonConfig::new()
            .init()
            .forward(&mean(), &sum)
            .map_err(Error::from),
        "group reduction",
    );
    differs(
        mean().mean_with(&raw).map_err(Error::from),
        "contribution unit",
    );
    mean().mean_with(&mean()).expect("one kind");
    // What does not stand for F does not care.
    let baseline = mean().map(|f| f + 1.0);
    ComparisonConfig::new()
        .init()
        .forward(&baseline, &sum)
        .expect("another kind of scores");
}

/// What one model uses twice and another has two of does not merge without a word.
#[test]
fn ties_must_agree() {
    #[derive(Module, Debug)]
    struct Tied {
        a: Param<Tensor<2>>,
        b: Param<Tensor<2>>,
    }
    let tied = |scale: f32| {
        let matrix = Matrix::new([[scale, 2.0], [3.0, 4.0]]).weight;
        Tied {
            b: matrix.clone(),
            a: matrix,
        }
    };
    let collect = |model: &Tied| {
        let config = StatisticsConfig::new();
        let mut statistics = config.init(model).expect("empty");
        let mut batch = GradientBatch::new(vec![Sample::new("a", 1).expect("a token")]);
        for path in statistics.paths() {
            let gradient = Tensor::<2>::ones([1, 4], &Device::flex());
            batch.insert(path, Gradient::token_sum(gradient));
        }
        statistics.push("task", batch).expect("gradients");
        statistics
    };
    let (first, second) = (tied(1.0), tied(2.0));
    let parted = Tied {
        b: second
            .b
            .clone()
            .map(|b| (b.detach() + 1.0).detach().require_grad()),
        a: second.a.clone(),
    };
    let [of_first, of_second, of_parted] = [&first, &second, &parted].map(collect);
    assert_eq!(of_parted.paths().count(), 2);
    let source = |model, statistics| MergeSource {
        model,
        statistics,
        task: "task",
        weight: 1.0,
    };
    let merging = MergeConfig::new().init().expect("ε");
    let merged = merging
        .forward(&[source(&first, &of_first), source(&second, &of_second)])
        .expect("one architecture");
    let merged = Weights::of(&merged.model).expect("weights");
    for path in ["a", "b"] {
        assert_eq!(merged.get(path, 4).expect("four"), [1.5, 2.0, 3.0, 4.0]);
    }
    let error = merging
        .forward(&[source(&first, &of_first), source(&parted, &of_parted)])
        .expect_err("two parameters");
    assert!(
        matches!(&error, Error::Untied { second, .. } if second == "b"),
        "{error}"
    );
    let error = merging
        .forward(&[source(&parted, &of_parted), source(&first, &of_first)])
        .expect_err("one parameter");
    assert!(
        matches!(&error, Error::NoFisher { parameter } if parameter == "b"),
        "{error}"
    );
}
