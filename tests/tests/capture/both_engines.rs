//! Engines against each other: every output, every backend.

use burn::module::ParamGroup;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::gradient::{PerToken, Raw};
use fisher_core::grouping::{AttentionConfig, GroupReduction, HeadLayout, Scheme};
use fisher_core::model::Catalogue;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::agree::agree;
use fisher_tests::backend::Backend;
use fisher_tests::models::{Sequences, Small};
use fisher_tests::subjects::{Mixing, Odd, Oddity, Pictures, Seer, Talker, Translator, Wide};
use fisher_tests::tolerance::{TAPS, assert_close};
use fisher_train::Error;
use fisher_train::capture::{Engine, Names, check};
use fisher_train::collect::CollectorConfig;
use rstest::rstest;

fn configurations() -> Vec<StatisticsConfig> {
    let everything = StatisticsConfig::new();
    let scheme = |names: &[&str], scheme| (ParamGroup::from_any_predicates(names.to_vec()), scheme);
    vec![
        everything.clone(),
        everything
            .clone()
            .with_variance(false)
            .with_reduction(GroupReduction::Sum),
        everything.clone().with_elementwise(false),
        everything
            .clone()
            .with_elementwise(false)
            .with_schemes(vec![
                scheme(&["query", "key", "bias"], Scheme::Tensor),
                scheme(
                    &["value", "linear", "gamma", "beta", "shift"],
                    Scheme::Buckets { size: 5 },
                ),
                scheme(&["weight"], Scheme::Row),
            ]),
        everything.with_compensated(true),
    ]
}

#[rstest]
fn a_transformer_with_a_tied_embedding(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(0, 1, 2, 3, 4)] configuration: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Talker::init(&device);
    let data = Sequences::made_up(7, 5, &device);
    let heads = Some(AttentionConfig::new(2));
    let config = configurations()[configuration]
        .clone()
        .with_attention(heads);
    agree::<_, PerToken>(&model, &data.batches(3), &config, Engine::Trace);
}

#[rstest]
fn an_encoder_and_a_decoder_with_padding(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(true, false)] norm_first: bool,
    #[values(0, 2)] configuration: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Translator::init(norm_first, &device);
    let data = Sequences::made_up(6, 6, &device);
    let config = &configurations()[configuration];
    agree::<_, Raw>(&model, &data.batches(4), config, Engine::Trace);
}

#[rstest]
fn convolutions_and_a_perceptron(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(0, 1, 2, 4)] configuration: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Seer::init(false, &device);
    let data = Pictures::made_up(9, &device);
    let config = &configurations()[configuration];
    agree::<_, PerToken>(&model, &data.batches(4), config, Engine::Trace);
}

#[test]
fn long_sequences_go_some_rows_at_a_time() {
    // Tables large enough for several tiles, and sequences long enough that the ghost is dearer.
    let device = Device::flex().autodiff();
    let model = Wide::init(&device);
    let data = Sequences::made_up(5, 40, &device);
    let config = StatisticsConfig::new();
    let batches = data.batches(3);
    agree::<_, PerToken>(&model, &batches, &config, Engine::Trace);
    let grouped = config.with_elementwise(false);
    agree::<_, PerToken>(&model, &batches, &grouped, Engine::Trace);
}

/// A few rows of a table, looked up again and again, and most of all by padding.
#[rstest]
fn a_table_of_few_rows_that_are_looked_up_often(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(
        Scheme::Row,
        Scheme::Tensor,
        Scheme::Element,
        Scheme::Buckets { size: 5 },
        Scheme::Custom { ids: (0..56).map(|e| e * 5 % 9).collect() }
    )]
    scheme: Scheme,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Odd::init(Oddity::None, 4, &device);
    let length = 150;
    let mut data = Sequences::made_up(3, length, &device);
    let padded = |values: &Tensor<2, Int>, padding: i64| {
        let values: Vec<i64> = values.to_data().iter().collect();
        let keep = |(at, value): (usize, i64)| {
            if at % length < 60 + 30 * (at / length) {
                value.min(3)
            } else {
                padding
            }
        };
        let values: Vec<i64> = values.into_iter().enumerate().map(keep).collect();
        Tensor::from_data(TensorData::new(values, [3, length]), &device)
    };
    data.tokens = padded(&data.tokens, 6);
    data.labels = padded(&data.labels, -100);
    let config = StatisticsConfig::new()
        .with_schemes(vec![(ParamGroup::from_predicate("embedding"), scheme)]);
    for config in [config.clone(), config.with_compensated(true)] {
        agree::<_, PerToken>(&model, &data.batches(2), &config, Engine::Trace);
    }
}

#[rstest]
fn frozen_parameters_stay_out(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let mut model = Translator::init(true, &device);
    model.freeze_encoder();
    let data = Sequences::made_up(5, 4, &device);
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(&model, &data.batches(5), &config, Engine::Trace);
}

#[rstest]
fn what_no_trace_follows_goes_by_the_loop_or_is_named(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Seer::init(true, &device);
    let data = Pictures::made_up(6, &device);
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(&model, &data.batches(3), &config, Engine::Auto);

    let mut statistics = config.init(&model).expect("statistics");
    let collector = CollectorConfig::new()
        .with_engine(Engine::Trace)
        .init()
        .expect("a collector");
    let error = collector
        .collect_batches(&model, "task", data.batches(3), &mut statistics)
        .expect_err("samples picked by their places");
    let Error::LeftToTheLoop { parameters } = &error else {
        panic!("{error}");
    };
    assert!(parameters.contains("odd.weight"), "{parameters}");
    assert!(
        parameters.contains("lost sight of at Select"),
        "{parameters}"
    );
}

#[test]
fn a_sample_without_targets_is_named_and_those_before_it_are_kept() {
    let device = Device::flex().autodiff();
    let model = Talker::init(&device);
    let mut data = Sequences::made_up(4, 5, &device);
    let row =
        |range: std::ops::Range<usize>| data.labels.clone().narrow(0, range.start, range.len());
    data.labels = Tensor::cat(vec![row(0..2), row(2..3).full_like(-100), row(3..4)], 0);
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    let error = CollectorConfig::new()
        .init()
        .expect("a collector")
        .collect_batches(&model, "task", [data], &mut statistics)
        .expect_err("no targets");
    assert!(error.to_string().contains("sample/2"), "{error}");
    assert_eq!(statistics.task("task").expect("a task").count(), 2);
}

#[test]
fn a_checkup_tells_sound_models_from_unsound_ones() {
    let device = Device::flex().autodiff();
    let data = Sequences::made_up(4, 5, &device);
    let sound = check(&Talker::init(&device), &data).expect("a checkup");
    assert!(sound.is_sound() && sound.is_fast(), "{sound}");
    assert!(
        sound
            .to_string()
            .contains("one pass a batch gives every gradient"),
        "{sound}"
    );

    let small = check(&Small::init(&device), &data).expect("a checkup");
    assert!(small.is_sound() && small.is_fast(), "{small}");
    assert_eq!(small.batch_norms, ["batch_norm"]);
    let pictures = Pictures::made_up(4, &device);
    let slow = check(&Seer::init(true, &device), &pictures).expect("a checkup");
    assert!(slow.is_sound() && !slow.is_fast(), "{slow}");
    let said = slow.to_string();
    assert!(
        said.contains("by the loop, since samples are lost sight of at Select"),
        "{said}"
    );
    let packed = check(&Odd::init(Oddity::Packed, 7, &device), &data).expect("a checkup");
    assert!(packed.untraced.is_some() && !packed.is_fast(), "{packed}");

    let mixing = check(&Mixing::init(&device), &data).expect("a checkup");
    assert!(!mixing.is_sound(), "{mixing}");
    assert!(
        mixing.to_string().contains("SEEM TO DEPEND ON EACH OTHER"),
        "{mixing}"
    );

    assert_eq!(mixing.mixed.as_deref(), Some("Mul"));

    // A collection notices too, on its first batch.
    let model = Mixing::init(&device);
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    let error = collector.collect_batches(&model, "task", [data], &mut statistics);
    let told = matches!(error, Err(Error::LossesDisagree { .. }));
    assert!(told, "{error:?}");
    assert!(statistics.task("task").is_err(), "nothing was counted");
}

/// Their base is frozen, and gradients reach them through it.
#[test]
fn low_rank_adapters_have_gradients_of_their_own() {
    let device = Device::flex().autodiff();
    let model = Odd::init(Oddity::Adapters, 7, &device);
    let catalogue = Catalogue::of(&model).expect("parameters");
    let paths: Vec<&str> = catalogue.parameters().iter().map(|p| p.path()).collect();
    assert!(paths.contains(&"head.bias"), "{paths:?}");
    // Embedding and two matrices, a pair each.
    assert_eq!(paths.len(), 7, "{paths:?}");
    let data = Sequences::made_up(6, 5, &device);
    let checkup = check(&model, &data.slice(0..3)).expect("a checkup");
    assert!(checkup.is_sound() && checkup.is_fast(), "{checkup}");
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(&model, &data.batches(3), &config, Engine::Auto);
}

/// Samples of a batch, by their places.
fn chosen(data: &Sequences, places: &[usize]) -> Sequences {
    let parts: Vec<Sequences> = places.iter().map(|&at| data.slice(at..at + 1)).collect();
    let all = |of: fn(&Sequences) -> &Tensor<2, Int>| {
        Tensor::cat(parts.iter().map(|part| of(part).clone()).collect(), 0)
    };
    Sequences {
        tokens: all(|part| &part.tokens),
        labels: all(|part| &part.labels),
        ids: parts.iter().flat_map(|part| part.ids.clone()).collect(),
    }
}

/// A forward pass that reads labels cannot be traced, and says so.
#[test]
fn a_forward_pass_that_reads_values_goes_by_the_loop() {
    let device = Device::flex().autodiff();
    let model = Odd::init(Oddity::Packed, 7, &device);
    let data = Sequences::made_up(7, 6, &device);
    // 5, 4 and 6 positions: as many as 3 times 5.
    let batches = [chosen(&data, &[0, 3]), chosen(&data, &[4, 5, 6])];
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(&model, &batches, &config, Engine::Auto);
    let mut statistics = config.init(&model).expect("statistics");
    let collector = CollectorConfig::new()
        .with_engine(Engine::Trace)
        .init()
        .expect("a collector");
    let error = collector.collect_batches(&model, "task", batches, &mut statistics);
    assert!(matches!(error, Err(Error::Untraced { .. })), "{error:?}");
}

/// What is wrong in eight weights shows beside 160 000 that are right.
#[test]
fn large_parameters_do_not_hide_small_ones() {
    let device = Device::flex().autodiff();
    let data = Sequences::made_up(4, 5, &device);
    for (oddity, sound) in [(Oddity::None, true), (Oddity::MixesLittle, false)] {
        let model = Odd::init(oddity, 20_000, &device);
        let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
        let collector = CollectorConfig::new()
            .with_engine(Engine::Trace)
            .init()
            .expect("a collector");
        let collected = collector.collect_batches(&model, "task", [data.clone()], &mut statistics);
        match collected {
            Ok(_) => assert!(sound),
            Err(Error::Mixed { operation }) if !sound => assert_eq!(operation, "Add"),
            Err(error) => panic!("{oddity:?}: {error}"),
        }
    }
}

#[test]
fn what_depends_on_the_batch_or_on_nothing_is_told() {
    let device = Device::flex().autodiff();
    let data = Sequences::made_up(3, 5, &device);
    let miscounting = Odd::init(Oddity::CountsBatch, 7, &device);
    let checkup = check(&miscounting, &data).expect("a checkup");
    assert!(!checkup.is_sound(), "{checkup}");
    assert_eq!(checkup.tokens.len(), 3, "{checkup}");
    let mut statistics = StatisticsConfig::new()
        .init(&miscounting)
        .expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    let batches = [data.clone()];
    let error = collector.collect_batches(&miscounting, "task", batches, &mut statistics);
    assert!(
        matches!(
            error,
            Err(Error::TokensDisagree {
                together: 3,
                alone: 1,
                ..
            })
        ),
        "{error:?}"
    );

    let unreached = Odd::init(Oddity::Unreached, 7, &device);
    let checkup = check(&unreached, &data).expect("a checkup");
    assert!(checkup.is_sound(), "{checkup}");
    assert_eq!(checkup.unreached, ["small.weight"]);
    assert!(
        checkup
            .to_string()
            .contains("no loss depends on small.weight"),
        "{checkup}"
    );

    let one = check(&unreached, &data.slice(0..1));
    assert!(matches!(one, Err(Error::OneSample)), "{one:?}");
}

#[test]
fn other_names_and_orientations_are_the_same_numbers() {
    let device = Device::flex().autodiff();
    let model = Talker::init(&device);
    let data = Sequences::made_up(5, 6, &device);
    let names = Names::new()
        .with("linear.weight", "other.name", true)
        .with("embedding.weight", "table", true)
        .with("norm.gamma", "norm.weight", false);
    let catalogue = names.catalogue(&model).expect("parameters");
    let [query, linear] = ["encoder.layers.0.mha.query.weight", "linear.weight"];
    for engine in [Engine::Loop, Engine::Trace] {
        let collector = CollectorConfig::new()
            .with_engine(engine)
            .init()
            .expect("a collector");
        let weights = fisher_core::model::hash_weights(&model).expect("weights");
        let config = StatisticsConfig::new();
        let mut named: Statistics = config
            .init_for(&catalogue, &HeadLayout::none(), weights, &device)
            .expect("statistics");
        let mut own = config.init(&model).expect("statistics");
        collector
            .collect_batches(&model, "task", data.batches(3), &mut own)
            .expect("a collection");
        collector
            .with_names(names.clone())
            .collect_batches(&model, "task", data.batches(3), &mut named)
            .expect("a collection");
        let (own, named) = (
            own.task("task").expect("it"),
            named.task("task").expect("it"),
        );
        let mean = |parameter: &fisher_core::statistics::ParameterStatistics| {
            let moments = parameter
                .elementwise()
                .expect("elements")
                .read()
                .expect("values");
            moments.mean.expect("a mean")
        };
        let of = |path: &str| mean(own.parameter(path).expect("a parameter"));
        let by = |name: &str| mean(named.parameter(name).expect("a parameter"));
        assert_close(query, &by(query), &of(query), TAPS, 1e-2);
        assert_close("norm", &by("norm.weight"), &of("norm.gamma"), TAPS, 1e-2);
        for (name, path, [rows, columns]) in [
            ("other.name", linear, [8, 8]),
            ("table", "embedding.weight", [7, 8]),
        ] {
            let values = of(path);
            let transposed = (0..columns).flat_map(|c| (0..rows).map(move |r| r * columns + c));
            let expected: Vec<f64> = transposed.map(|at| values[at]).collect();
            assert_close(name, &by(name), &expected, TAPS, 1e-2);
            // Channels are those of the output, whichever way the matrix lies.
            if name == "other.name" {
                let group = |p: &fisher_core::statistics::ParameterStatistics| {
                    let moments = p
                        .group("channel")
                        .expect("channels")
                        .read()
                        .expect("values");
                    moments.mean.expect("a mean")
                };
                let found = group(named.parameter(name).expect("it"));
                let expected = group(own.parameter(path).expect("it"));
                assert_close(name, &found, &expected, TAPS, 1e-2);
            }
        }
    }
    let wrong = Names::new().with("norm.gamma", "norm.weight", true);
    assert!(wrong.catalogue(&model).is_err(), "no matrix");
    let wrong = Names::new().with("nowhere", "somewhere", false);
    assert!(wrong.catalogue(&model).is_err(), "no such parameter");
}
