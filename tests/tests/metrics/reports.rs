//! Whatever goes into a report, it is written as JSON and comes back: its numbers are finite or
//! absent.

use std::fmt::Debug;

use burn::module::{Module, ModuleMapper, Param};
use burn::serde::Serialize;
use burn::serde::de::DeserializeOwned;
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::Error;
use fisher_metrics::conflicts::{ConflictsConfig, SliceBy};
use fisher_metrics::damping::Ridge;
use fisher_metrics::importance::ImportanceConfig;
use fisher_metrics::interference::{FisherEstimate, InterferenceConfig, Variant};
use fisher_metrics::pruning::{
    ComparisonConfig, OverlapConfig, PruningConfig, RuleOfThumb, Scope, Scores,
};
use fisher_metrics::ranking::RankingConfig;
use fisher_tests::models::{Sequences, Small};
use fisher_train::batch::SampleLoss;
use fisher_train::capture::check;
use fisher_train::losses::SampleLosses;
use fisher_train::monitor::{History, HookConfig, HookSource, NoiseScaleConfig, Schedule};
use rstest::rstest;
use serde_json::Value;

const TASKS: [&str; 2] = ["a", "b"];

/// Equal, but for the last digit that reading a number from text may cost.
fn same(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let pairs = a.iter().zip(b);
            a.len() == b.len()
                && pairs
                    .into_iter()
                    .all(|((k, a), (l, b))| k == l && same(a, b))
        }
        (Value::Number(a), Value::Number(b)) => {
            let [a, b] = [a, b].map(|x| x.as_f64().expect("a number"));
            (a - b).abs() <= 1e-15 * b.abs()
        }
        (a, b) => a == b,
    }
}

fn round_trip<T: Serialize + DeserializeOwned + Debug>(report: &T) {
    let text = serde_json::to_string(report).expect("JSON");
    let back: T = match serde_json::from_str(&text) {
        Ok(back) => back,
        Err(error) => panic!("{error}: {text}"),
    };
    let json = |report: &T| serde_json::to_value(report).expect("JSON");
    assert!(same(&json(&back), &json(report)), "{back:?} was {report:?}");
    // What is absent was absent, and no number that is none.
    let (before, after) = (format!("{report:?}"), format!("{back:?}"));
    for none in ["NaN", "inf"] {
        assert_eq!(
            before.matches(none).count(),
            after.matches(none).count(),
            "{before}"
        );
    }
}

fn catalogue() -> (Catalogue, HeadLayout) {
    let matrix = |name: &str| {
        let path = format!("attention.{name}.weight");
        Parameter::new(path, [4, 4], Role::Matrix, Orientation::InputOutput)
    };
    let catalogue = ["query", "key", "value", "output"].map(matrix).to_vec();
    let catalogue = Catalogue::new(catalogue).expect("parameters");
    let heads = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("a layout");
    (catalogue, heads)
}

/// A sample for each size, its gradients about as large.
fn batch(sizes: &[f32], phase: f32) -> GradientBatch {
    let samples = (0..sizes.len()).map(|i| Sample::new(format!("{i}"), 1 + i as u64));
    let samples: Vec<Sample> = samples.collect::<Result<_, _>>().expect("tokens");
    let mut batch = GradientBatch::new(samples);
    for parameter in catalogue().0.parameters() {
        let row = |size: f32| (0..16).map(move |k| size * (phase + k as f32).sin());
        let values: Vec<f32> = sizes.iter().copied().flat_map(row).collect();
        let data = TensorData::new(values, [sizes.len(), 16]);
        let tensor = Tensor::<2>::from_data(data, &Device::flex());
        batch.insert(parameter.path(), Gradient::token_sum(tensor));
    }
    batch
}

fn statistics(sizes: &[f32], compensated: bool) -> Statistics {
    let (catalogue, heads) = catalogue();
    let config = StatisticsConfig::new().with_compensated(compensated);
    let statistics = config.init_for(&catalogue, &heads, "made".into(), &Device::flex());
    let mut statistics: Statistics = statistics.expect("statistics");
    for (task, phase) in TASKS.into_iter().zip([0.3, 1.9]) {
        statistics
            .push(task, batch(sizes, phase))
            .expect("gradients");
    }
    statistics
}

fn store(sizes: &[f32]) -> GradientStore {
    let (catalogue, heads) = catalogue();
    let store = GradientStoreConfig::new(1 << 20).init_for(&catalogue, "made".into());
    let mut store = store.expect("a store");
    for (task, phase) in TASKS.into_iter().zip([0.3, 1.9]) {
        store.push(task, &batch(sizes, phase)).expect("gradients");
    }
    store.with_heads(heads).with_device(&Device::flex())
}

/// Where squares of squares leave float32, as variances are.
#[rstest]
fn reports_of_statistics_come_back(
    #[values(
        vec![1.0],
        vec![0.0],
        vec![0.0, 0.0, 0.0],
        vec![1.0, 1.0, 1.0],
        vec![1e-26, 1e-30, 3e-38],
        vec![1e15, 2e15, 0.0],
        vec![0.0, 0.0, 1e-3, 1e4]
    )]
    sizes: Vec<f32>,
    #[values(false, true)] compensated: bool,
) {
    let statistics = statistics(&sizes, compensated);
    let mut masks = Vec::new();
    let mut scores = Vec::new();
    for task in TASKS {
        let importance = ImportanceConfig::new()
            .init()
            .expect("a level")
            .forward(&statistics, task);
        round_trip(&importance.expect("a report"));
        let ranking = RankingConfig::new()
            .init()
            .expect("a ranking")
            .forward(&statistics, task);
        round_trip(&ranking.expect("a report"));
        let grouped = Scores::grouped(&statistics, task).expect("scores");
        for sparsity in [0.0, 0.5, 1.0] {
            for scope in [Scope::Global, Scope::Tensor] {
                let pruning = PruningConfig::new(sparsity).with_scope(scope).init();
                let of = pruning.expect("a share").forward(&grouped).expect("masks");
                round_trip(&of);
                masks.push(of);
            }
        }
        scores.push(grouped);
    }
    let (first, second) = masks.split_at(masks.len() / 2);
    for (a, b) in first.iter().zip(second) {
        let overlap = OverlapConfig::new()
            .init()
            .expect("thresholds")
            .forward(a, b);
        round_trip(&overlap.expect("a report"));
    }
    round_trip(
        &ComparisonConfig::new()
            .init()
            .forward(&scores[0], &scores[1])
            .expect("a report"),
    );
}

/// Beyond the range of accumulators a Fisher is an error with a name, not a report that none can read.
#[test]
fn a_fisher_out_of_range_is_an_error() {
    // Each parameter's sum is a number in float32, the layer's is none.
    let (catalogue, heads) = catalogue();
    let config = StatisticsConfig::new().with_compensated(true);
    let statistics = config.init_for(&catalogue, &heads, "made".into(), &Device::flex());
    let mut statistics: Statistics = statistics.expect("statistics");
    let pushed = statistics.push("a", batch(&[5e18], 0.3));
    pushed.expect("sums of parameters are numbers");
    let report = ImportanceConfig::new()
        .init()
        .expect("a level")
        .forward(&statistics, "a");
    let error = report.expect_err("not finite");
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
}

#[test]
fn settings_that_are_no_numbers_are_refused() {
    for wrong in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
        let masses = RankingConfig::new().with_masses(vec![0.5, wrong]).init();
        let error = masses.expect_err("no share");
        assert!(
            matches!(error, Error::Argument { name: "masses", .. }),
            "{error}"
        );
        let level = RankingConfig::new().with_level(wrong).init();
        let error = level.expect_err("no level");
        assert!(
            matches!(error, Error::Argument { name: "level", .. }),
            "{error}"
        );
        let level = ImportanceConfig::new().with_level(wrong).init();
        let error = level.expect_err("no level");
        assert!(
            matches!(error, Error::Argument { name: "level", .. }),
            "{error}"
        );
    }
    for wrong in [f64::NAN, f64::INFINITY] {
        let thumb = RuleOfThumb {
            surgery_above: wrong,
            ..RuleOfThumb::default()
        };
        let overlap = OverlapConfig::new().with_rule_of_thumb(Some(thumb)).init();
        let error = overlap.expect_err("no threshold");
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
}

#[rstest]
fn reports_of_pairs_come_back(
    #[values(
        vec![0.0, 0.0, 0.0],
        vec![1.0, 1.0, 1.0],
        vec![1e-26, 1e-30, 3e-38],
        vec![1e15, 2e15, 0.0]
    )]
    sizes: Vec<f32>,
) {
    let store = store(&sizes);
    for by in [SliceBy::Parameter, SliceBy::Head, SliceBy::Layer] {
        for whitening in [None, Some(Ridge::new())] {
            let config = ConflictsConfig::new()
                .with_by(by.clone())
                .with_whitening(whitening)
                .with_keep_pairs(true)
                .with_progress(false);
            let conflicts = config.init().expect("settings");
            let report = conflicts.forward(&store, TASKS);
            round_trip(&report.expect("a report"));
        }
    }
    for variant in [
        Variant::Unsigned,
        Variant::Signed,
        Variant::Symmetric,
        Variant::Natural,
        Variant::Full,
    ] {
        let config = InterferenceConfig::new()
            .with_variant(variant)
            .with_estimate(FisherEstimate::All)
            .with_keep_scores(true)
            .with_progress(false);
        let interference = config.init().expect("settings");
        match interference.forward(&store, TASKS) {
            Err(Error::Singular { .. }) if variant == Variant::Full => {}
            report => round_trip(&report.expect("a report")),
        }
        match interference.self_check(&store, TASKS) {
            Err(Error::Singular { .. }) if variant == Variant::Full => {}
            report => round_trip(&report.expect("a check")),
        }
    }
}

/// A model whose losses are multiplied.
#[derive(Module, Debug)]
struct Loud {
    model: Small,
    #[module(skip)]
    factor: f32,
}

impl SampleLoss for Loud {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let losses = self.model.sample_losses(batch);
        losses.map(|losses| losses * self.factor)
    }
}

/// The history and the state of a hook are read again, whatever captures found: squares beyond
/// float32's range for one thing, for another one sample, or nothing but zeros.
#[rstest]
fn a_history_comes_back(
    #[values(0.0, 1e-30, 1.0, 1e22)] factor: f32,
    #[values(1, 4)] count: usize,
) {
    let device = Device::flex().autodiff();
    let model = Loud {
        model: Small::init(&device),
        factor,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let data = Sequences::made_up(2 * count, 5, &device);
    let init = || {
        let tasks = [("alpha", 0..count), ("beta", count..2 * count)];
        let task = |(name, range): (&str, _)| (name.to_owned(), data.slice(range).batches(3));
        let source = HookSource::Probes(tasks.map(task).to_vec());
        let catalogue = Catalogue::of(&model).expect("parameters");
        let heads = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("heads");
        let schedule = Schedule::new().with_every_steps(Some(1));
        let config = HookConfig::new(schedule)
            .with_noise(Some(NoiseScaleConfig::new()))
            .with_compare(Some(heads.group()))
            .with_groups_in_history(true)
            .with_folder(Some(folder.path().into()))
            .with_checkpoints(Some(folder.path().join("checkpoint")));
        config
            .init_with_heads(&model, &heads, source)
            .expect("a hook")
    };
    std::fs::create_dir_all(folder.path().join("checkpoint")).expect("a folder");
    let hook = init();
    hook.step(&model, &data).expect("a capture");
    let history = hook.history();
    assert_eq!(history.readings().len(), 1);
    round_trip(&history);
    let loaded = History::load(folder.path().join("history.jsonl")).expect("a history");
    let json = |history: &History| serde_json::to_value(history).expect("JSON");
    assert!(same(&json(&loaded), &json(&history)));

    hook.end_epoch();
    hook.save_checkpoint(1).expect("a checkpoint");
    let resumed = init();
    resumed.load_checkpoint(1).expect("the checkpoint");
    assert!(same(&json(&resumed.history()), &json(&history)));
}

/// What is as far off as can be stays so.
#[test]
fn a_checkup_comes_back() {
    struct NotANumber;
    impl ModuleMapper for NotANumber {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.mul_scalar(f32::NAN).detach().require_grad())
        }
    }
    let device = Device::flex().autodiff();
    let data = Sequences::made_up(3, 5, &device);
    let sound = Small::init(&device);
    // Not a clone's: that would take the running statistics of the first along.
    let broken = Small::init(&device).map(&mut NotANumber);
    for (model, is_sound) in [(sound, true), (broken, false)] {
        let checkup = check(&model, &data).expect("a checkup");
        assert_eq!(checkup.is_sound(), is_sound, "{checkup}");
        let text = serde_json::to_string(&checkup).expect("JSON");
        let back: fisher_train::capture::Checkup = serde_json::from_str(&text).expect("a checkup");
        assert_eq!(back.is_sound(), is_sound);
        assert_eq!(format!("{back}"), format!("{checkup}"));
    }
}
