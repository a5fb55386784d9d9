//! Captures while a model is trained: what they find, and that training does not notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::ParamGroup;
use burn::tensor::Device;
use burn::train::TrainStep;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, NumericMetricUpdate, Split};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_tests::models::{Line, Sequences, Unnamed};
use fisher_tests::pupil::{Happens, Pupil, launch, loader, optimizer, training};
use fisher_tests::tolerance::{DEFINITION, REORDERED, assert_close};
use fisher_train::Error;
use fisher_train::batch::SampleBatch;
use fisher_train::capture::PerSample;
use fisher_train::collect::CollectorConfig;
use fisher_train::monitor::{
    FisherHook, HookConfig, HookSource, NoiseScaleConfig, Quantity, Schedule,
};
use rstest::rstest;

/// Dropout and weights to begin with draw from the device's generator, which is the whole process'.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device() -> Device {
    Device::flex().autodiff()
}

fn heads(pupil: &Pupil) -> HeadLayout {
    let catalogue = Catalogue::of(pupil).expect("a catalogue");
    HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("heads")
}

/// Two tasks of three samples, in batches of two.
fn probes(device: &Device) -> HookSource<Sequences> {
    let all = Sequences::made_up(6, 5, device);
    let task = |name: &str, range| (name.to_owned(), all.slice(range).batches(2));
    HookSource::Probes(vec![task("alpha", 0..3), task("beta", 3..6)])
}

fn everything(schedule: Schedule) -> HookConfig {
    HookConfig::new(schedule)
        .with_statistics(StatisticsConfig::new())
        .with_ema(Some(0.9))
        .with_noise(Some(NoiseScaleConfig::new()))
}

fn hook(config: &HookConfig, pupil: &Pupil) -> FisherHook<Sequences> {
    let source = probes(&device());
    let hook = config.init_with_heads(pupil, &heads(pupil), source);
    hook.expect("a hook")
}

/// Train with or without a hook; gives the hash of the weights.
fn train(hook: Option<&FisherHook<Sequences>>, accumulation: Option<usize>) -> String {
    train_from(7, hook, accumulation)
}

fn train_from(
    seed: u64,
    hook: Option<&FisherHook<Sequences>>,
    accumulation: Option<usize>,
) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let device = device();
    let pupil = Pupil::init(&device);
    device.seed(seed);
    let data = Sequences::made_up(14, 5, &device);
    let batches = loader(&data, (0..14).collect(), 4, Some(3));
    let mut training = training(folder.path(), batches);
    if let Some(accumulation) = accumulation {
        training = training.grads_accumulation(accumulation);
    }
    if let Some(hook) = hook {
        training = training.with_training_strategy(hook.strategy());
    }
    let result = launch(training, pupil);
    assert!(result.error.is_none(), "{:?}", result.error);
    hash_weights(&result.model).expect("weights")
}

#[rstest]
fn training_does_not_notice(#[values(None, Some(3))] accumulation: Option<usize>) {
    let _alone = alone();
    let pupil = Pupil::init(&device());
    let plain = train(None, accumulation);
    assert_eq!(plain, train(None, accumulation), "training repeats itself");
    let other = train_from(8, None, accumulation);
    assert_ne!(plain, other, "other random numbers make other weights");

    let quiet = hook(&everything(Schedule::new()), &pupil);
    assert_eq!(plain, train(Some(&quiet), accumulation), "installed");
    assert!(quiet.history().readings().is_empty());

    let schedule = Schedule::new().with_every_steps(Some(2)).with_at_end(true);
    let all = heads(&pupil).group();
    let config = everything(schedule).with_compare(Some(all));
    let firing = hook(&config, &pupil);
    assert_eq!(plain, train(Some(&firing), accumulation), "firing");
    let steps: Vec<u64> = firing.history().readings().iter().map(|r| r.step).collect();
    assert_eq!(steps, [0, 2, 4, 6, 8]);

    let in_flight = HookConfig::every(1).init_with_heads(&pupil, &heads(&pupil), "training");
    let in_flight = in_flight.expect("a hook");
    assert_eq!(plain, train(Some(&in_flight), accumulation), "in flight");
    let statistics = in_flight.statistics();
    assert_eq!(statistics.task("training").expect("the task").count(), 28);
}

/// Keeps what is logged of one metric in the training split.
#[derive(Clone)]
struct Kept {
    name: String,
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// What the log holds, and what is plotted.
type Entry = (String, Option<f64>);

impl MetricLogger for Kept {
    fn log(&mut self, update: MetricsUpdate, _epoch: usize, split: &Split) {
        if *split != Split::Train {
            return;
        }
        let id = MetricId::new(Arc::new(self.name.clone()));
        let of_metric = update.entries_numeric.into_iter();
        let of_metric = of_metric.filter(|update| update.entry.metric_id == id);
        let entry = |update: NumericMetricUpdate| {
            let value = update.numeric_entry.map(|entry| entry.current());
            (update.entry.serialized_entry.serialized, value)
        };
        self.entries
            .lock()
            .expect("entries")
            .extend(of_metric.map(entry));
    }

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}

#[rstest]
fn a_metric_has_a_value_at_each_capture(
    #[values(
        Quantity::Trace("alpha".into()),
        Quantity::TopLayer("beta".into()),
        Quantity::TopHead("beta".into()),
        Quantity::Signal("alpha".into()),
        Quantity::PooledSignal,
        Quantity::MeanCosine,
        Quantity::ConflictRate
    )]
    quantity: Quantity,
) {
    let _alone = alone();
    let pupil = Pupil::init(&device());
    let all = heads(&pupil).group();
    let schedule = Schedule::new().with_every_steps(Some(3));
    let hook = hook(&everything(schedule).with_compare(Some(all)), &pupil);
    let kept = Kept {
        name: quantity.to_string(),
        entries: Arc::default(),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let data = Sequences::made_up(14, 5, &device());
    let training = training(folder.path(), loader(&data, (0..14).collect(), 4, None))
        .metric_train_numeric(hook.metric(quantity.clone()))
        .with_metric_logger(kept.clone())
        .with_training_strategy(hook.strategy());
    let result = launch(training, pupil);
    assert!(result.error.is_none(), "{:?}", result.error);

    let history = hook.history();
    let of_step = |step: u64| history.readings().iter().find(|r| r.step == step);
    let last = |step: u64| {
        let until = history.readings().iter().filter(|r| r.step <= step);
        until.rev().find_map(|reading| quantity.of(reading))
    };
    let entries = kept.entries.lock().expect("entries");
    // Two epochs of four batches, each with a value for the whole epoch at its end.
    assert_eq!(entries.len(), 10);
    let batches = [0, 1, 2, 3, 5, 6, 7, 8].map(|at| &entries[at]);
    for (step, (serialized, value)) in (0..).zip(batches) {
        let expected = of_step(step).and_then(|reading| quantity.of(reading));
        assert_eq!(*value, expected, "step {step}");
        let text = expected.map_or("N/A".into(), |value| value.to_string());
        assert_eq!(*serialized, text, "step {step}");
    }
    for (at, step) in [(4, 3), (9, 7)] {
        match last(step) {
            Some(last) => assert_eq!(entries[at].1, Some(last)),
            None => assert!(entries[at].1.is_none_or(f64::is_nan)),
        }
    }
    assert!(last(7).is_some(), "{quantity}");
}

#[test]
fn cosines_across_tasks_are_as_defined() {
    let _alone = alone();
    let pupil = Pupil::init(&device());
    let schedule = Schedule::new().with_at_end(true);
    let config = HookConfig::new(schedule).with_compare(Some(heads(&pupil).group()));
    let hook = hook(&config, &pupil);
    hook.finish(&pupil).expect("a capture");
    let found = hook.history().readings()[0].across.expect("pairs");

    let catalogue = Catalogue::of(&pupil).expect("a catalogue");
    let chosen = catalogue.filter(&heads(&pupil).group()).expect("attention");
    let paths = chosen.parameters().iter().map(|p| p.path());
    let per_sample = PerSample::new(&pupil, paths).expect("a model");
    let all = Sequences::made_up(6, 5, &device());
    let gradient = |i: usize| -> Vec<f64> {
        let sample = per_sample.gradient(&all, i).expect("a gradient").gradients;
        let elements = sample.iter().flat_map(|(_, g)| {
            let data = g.to_full().to_data();
            data.iter::<f64>().collect::<Vec<_>>()
        });
        elements.collect()
    };
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let gradients: Vec<Vec<f64>> = (0..6).map(gradient).collect();
    let (alpha, beta) = gradients.split_at(3);
    let pairs = alpha.iter().flat_map(|a| beta.iter().map(move |b| (a, b)));
    let cosine =
        |(a, b): (&Vec<f64>, &Vec<f64>)| product(a, b) / (product(a, a) * product(b, b)).sqrt();
    let cosines: Vec<f64> = pairs.map(cosine).collect();
    let negative = cosines.iter().filter(|&&c| c < 0.0).count();
    assert_eq!(found.pairs, 9);
    assert!((found.mean_cosine - cosines.iter().sum::<f64>() / 9.0).abs() < DEFINITION);
    assert_eq!(found.conflict_rate, negative as f64 / 9.0);
}

#[test]
fn gradients_of_each_capture_are_kept() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let pupil = Pupil::init(&device());
    let store = GradientStoreConfig::new(0).with_folder(Some(folder.path().into()));
    let schedule = Schedule::new().with_every_steps(Some(2));
    let hook = hook(&HookConfig::new(schedule).with_store(Some(store)), &pupil);
    let mut models = Vec::new();
    own_loop(4, &hook, |_, pupil| {
        models.push(hash_weights(pupil).expect("weights"))
    });
    drop(hook.take_store());
    for step in [0, 2] {
        let store = GradientStore::open(folder.path().join(format!("step-{step}")));
        let store = store.expect("a store");
        assert_eq!(store.model(), models[step]);
        assert_eq!(store.samples("alpha").len(), 3);
    }
}

/// Gradients of an earlier run are replaced as its steps come again, by a run that goes another way
/// in the same folder, and nobody is locked out.
#[test]
fn a_folder_of_gradients_is_used_again() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let stores = folder.path().join("stores");
    let stored = GradientStoreConfig::new(1 << 20).with_folder(Some(stores.clone()));
    let config = HookConfig::new(Schedule::new().with_every_steps(Some(2)))
        .with_store(Some(stored))
        .with_checkpoints(Some(folder.path().join("checkpoint")));
    let pupil = Pupil::init(&device());
    let open = |step: usize| {
        let store = GradientStore::open(stores.join(format!("step-{step}")));
        store.expect("a store")
    };
    let first = hook(&config, &pupil);
    let mut of_first = Vec::new();
    own_loop(3, &first, |_, pupil| {
        of_first.push(hash_weights(pupil).expect("weights"))
    });
    first.save_checkpoint(1).expect("saved");
    assert_eq!(open(2).model(), of_first[2]);
    // The first hook is still there, and has what it captured last.
    assert!(
        GradientStoreConfig::new(0)
            .with_folder(Some(stores.join("step-0")))
            .init(&pupil)
            .is_ok()
    );

    // A run that goes another way: its weights begin elsewhere.
    let second = hook(&config, &pupil);
    let mut of_second = Vec::new();
    own_loop_from(8, 3, &second, |_, pupil| {
        of_second.push(hash_weights(pupil).expect("weights"))
    });
    assert_ne!(of_first[2], of_second[2]);
    assert_eq!(open(2).model(), of_second[2]);
    for (hook, of) in [(&first, &of_first), (&second, &of_second)] {
        let store = hook.take_store().expect("the last capture's");
        assert_eq!(store.model(), of[2]);
        assert_eq!(store.samples("beta").len(), 3);
        // It is compared by the hook's heads where the model lies, as if it had never been closed.
        assert_eq!(store.heads(), &heads(&pupil));
        assert_eq!(*store.device(), device().without_autodiff());
    }

    // One that goes on comes to the same steps again.
    let third = hook(&config, &pupil);
    third.load_checkpoint(1).expect("it goes on");
    let batch = Sequences::made_up(4, 5, &device());
    third.step(&pupil, &batch).expect("not due");
    third.step(&pupil, &batch).expect("a capture");
    let again = hook(&config, &pupil);
    again.load_checkpoint(1).expect("it goes on");
    again.step(&pupil, &batch).expect("not due");
    again
        .step(&pupil, &batch)
        .expect("a capture of the same weights");
    assert_eq!(open(4).samples("alpha").len(), 3);

    // A capture that fails leaves nothing, and nothing is taken away.
    let happens = Happens {
        nan_at: Some("sample/1".into()),
        ..Happens::default()
    };
    let broken = Pupil::with(&device(), happens);
    hook(&config, &pupil)
        .step(&broken, &batch)
        .expect_err("NaN");
    let mut names: Vec<String> = std::fs::read_dir(&stores)
        .expect("a folder")
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    names.sort();
    assert_eq!(names, ["step-0", "step-2", "step-4"]);
    assert_eq!(open(0).samples("alpha").len(), 3);
}

/// Gradient checkpointing is on under the hook as it is without, and the weights are the same.
#[test]
fn gradient_checkpointing_stays_on() {
    let _alone = alone();
    let device = device().gradient_checkpointing();
    let run = |watched: bool| {
        let checkpointed = Arc::new(AtomicUsize::new(0));
        let happens = Happens {
            checkpointed: Some(checkpointed.clone()),
            ..Happens::default()
        };
        let pupil = Pupil::with(&device, happens);
        device.seed(7);
        let folder = tempfile::tempdir().expect("a folder");
        let data = Sequences::made_up(14, 5, &device);
        let batches = loader(&data, (0..14).collect(), 4, Some(3));
        let mut training = training(folder.path(), batches).gradient_checkpointing();
        let config = HookConfig::every(1).with_statistics(StatisticsConfig::new());
        let hook = config.init_with_heads(&pupil, &heads(&pupil), probes(&device));
        let hook = hook.expect("a hook");
        if watched {
            training = training.with_training_strategy(hook.strategy());
        }
        let result = launch(training, pupil);
        assert!(result.error.is_none(), "{:?}", result.error);
        let weights = hash_weights(&result.model).expect("weights");
        (weights, checkpointed.load(Ordering::Relaxed), hook)
    };
    let (plain, on, _) = run(false);
    assert_eq!(on, 8, "Burn's own strategy");
    let (watched, on, hook) = run(true);
    assert_eq!(on, 8, "the hook's");
    assert_eq!(plain, watched);
    assert_eq!(hook.history().readings().len(), 8);

    // Captures find what they find without it.
    let pupil = Pupil::init(&self::device());
    let config = HookConfig::every(1).with_statistics(StatisticsConfig::new());
    let without = self::hook(&config, &pupil);
    train(Some(&without), None);
    let [a, b] = [hook.statistics(), without.statistics()];
    assert_close(
        "captures",
        &means(&a, "beta"),
        &means(&b, "beta"),
        REORDERED,
        1e-3,
    );
}

/// Burn's switch is one of data: weights keep what they were made with, under its own strategy too.
#[test]
fn gradient_checkpointing_is_the_models() {
    let _alone = alone();
    let checkpointed = Arc::new(AtomicUsize::new(0));
    let happens = Happens {
        checkpointed: Some(checkpointed.clone()),
        ..Happens::default()
    };
    let pupil = Pupil::with(&device(), happens);
    let folder = tempfile::tempdir().expect("a folder");
    let data = Sequences::made_up(14, 5, &device());
    let batches = loader(&data, (0..14).collect(), 4, None);
    let training = training(folder.path(), batches).gradient_checkpointing();
    let run = AssertUnwindSafe(|| launch(training, pupil));
    let panic = catch_unwind(run)
        .err()
        .expect("weights and data that differ");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("strategy mismatch"), "{message}");
    assert_eq!(checkpointed.load(Ordering::Relaxed), 0);
}

#[test]
fn what_cannot_work_is_refused() {
    let _alone = alone();
    let pupil = Pupil::init(&device());
    let refused = |config: HookConfig, source| {
        let error = config.init(&pupil, source).expect_err("refused");
        error.to_string()
    };
    let in_flight = || HookSource::InFlight("task".into());
    let never = HookConfig::new(Schedule::new());
    let zero = HookConfig::new(Schedule::new().with_every_steps(Some(0)));
    assert!(refused(zero, in_flight()).contains("of 0"));
    let end = HookConfig::new(Schedule::new().with_at_end(true));
    assert!(refused(end, in_flight()).contains("no batch is in flight"));
    let workers = never.clone().with_workers(2).with_ema(Some(0.9));
    assert!(refused(workers, in_flight()).contains("order that workers come in"));
    let workers = never.clone().with_workers(2);
    let workers = workers.with_store(Some(GradientStoreConfig::new(0)));
    assert!(refused(workers, in_flight()).contains("each worker has its own"));
    let none = HookSource::Probes(vec![("task".into(), Vec::new())]);
    assert!(refused(never.clone(), none).contains("no sample to capture"));
    let batch = Sequences::made_up(2, 5, &device());
    let twice = HookSource::Probes(vec![("task".into(), vec![batch.clone(), batch])]);
    assert!(refused(never.clone(), twice).contains("`sample/0` is already in task `task`"));
    let beta = never.with_ema(Some(1.0));
    assert!(refused(beta, in_flight()).contains("beta"));
}

/// A loop of one's own; `at` sees the model before each step, and after the last.
fn own_loop(steps: usize, hook: &FisherHook<Sequences>, at: impl FnMut(u64, &Pupil)) -> Pupil {
    own_loop_from(7, steps, hook, at)
}

fn own_loop_from(
    seed: u64,
    steps: usize,
    hook: &FisherHook<Sequences>,
    mut at: impl FnMut(u64, &Pupil),
) -> Pupil {
    let device = device();
    device.seed(seed);
    let mut pupil = Pupil::init(&device);
    let mut optimizer = optimizer();
    let data = Sequences::made_up(4 * steps, 5, &device);
    for (step, batch) in data.batches(4).into_iter().enumerate() {
        at(step as u64, &pupil);
        hook.step(&pupil, &batch).expect("a capture");
        let output = TrainStep::step(&pupil, batch);
        pupil = optimizer.step(1e-2, pupil, output.grads).tied();
    }
    at(steps as u64, &pupil);
    hook.finish(&pupil).expect("the end");
    pupil
}

fn means(statistics: &Statistics, task: &str) -> Vec<f64> {
    let task = statistics.task(task).expect("the task");
    let means = task.parameters().flat_map(|(_, p)| {
        let read = p.elementwise().expect("elements").read().expect("moments");
        read.mean.expect("a mean")
    });
    means.collect()
}

#[test]
fn captures_are_collections_of_the_weights_then() {
    let _alone = alone();
    let pupil = Pupil::init(&device());
    let schedule = Schedule::new().with_at_steps(vec![1, 3]).with_at_end(true);
    let hook = hook(&everything(schedule), &pupil);
    let mut expected = Vec::new();
    own_loop(5, &hook, |step, pupil| {
        if ![1, 3, 5].contains(&step) {
            return;
        }
        let config = StatisticsConfig::new().with_attention(Some(AttentionConfig::new(2)));
        let mut statistics = config.init(pupil).expect("statistics");
        let HookSource::Probes(tasks) = probes(&device()) else {
            unreachable!("probes are probes")
        };
        let collector = CollectorConfig::new()
            .with_progress(false)
            .init()
            .expect("a collector");
        for (task, batches) in tasks {
            let collected = collector.collect_batches(pupil, &task, batches, &mut statistics);
            collected.expect("a collection");
        }
        expected.push(statistics);
    });

    // The last capture, bit for bit.
    let latest = hook.latest().expect("a capture");
    let last = expected.last().expect("a collection");
    assert_eq!(latest.provenance(), last.provenance());
    assert_eq!(means(&latest, "beta"), means(last, "beta"));

    // The whole run: every sample at every step.
    let run = hook.statistics();
    let steps = run.provenance().steps.expect("steps");
    assert_eq!([steps.first, steps.last], [1, 5]);
    assert_eq!(run.task("alpha").expect("the task").count(), 9);
    let values: Vec<Vec<f64>> = expected.iter().map(|s| means(s, "alpha")).collect();
    let mean = |k: usize| values.iter().map(|v| v[k]).sum::<f64>() / 3.0;
    let pooled: Vec<f64> = (0..values[0].len()).map(mean).collect();
    assert_close("run", &means(&run, "alpha"), &pooled, REORDERED, 1e-3);

    // The moving average of three values.
    let averages = hook.averages().expect("averages");
    assert_eq!(averages.steps("alpha"), 3);
    let path = "model.linear.weight";
    let moving = averages.elementwise("alpha", path).expect("an average");
    let of = |s: &Statistics| {
        let task = s.task("alpha").expect("the task");
        let parameter = task.parameter(path).expect("the parameter");
        let welford = parameter.elementwise().expect("elements");
        welford.read().expect("moments").mean.expect("a mean")
    };
    let (beta, values) = (0.9f64, expected.iter().map(of).collect::<Vec<_>>());
    let weights = [beta * beta, beta, 1.0].map(|w| w * (1.0 - beta) / (1.0 - beta.powi(3)));
    let average = |k: usize| (0..3).map(|t| weights[t] * values[t][k]).sum::<f64>();
    let wanted: Vec<f64> = (0..values[0].len()).map(average).collect();
    let found: Vec<f64> = moving.to_data().iter::<f64>().collect();
    assert_close("average", &found, &wanted, 1e-12, 1e-3);
}

/// Samples without ids are numbered through a task's probes, the same at each capture, and batches in
/// flight anew at each step.
#[test]
fn samples_need_no_ids() {
    let _alone = alone();
    let device = device();
    let model = Line::init(&device);
    let data = Unnamed::made_up(6, &device);
    let probes = || {
        let [alpha, beta] = [data.batches(5, 2), data.batches(3, 3)];
        vec![("alpha".to_owned(), alpha), ("beta".to_owned(), beta)]
    };
    let schedule = Schedule::new().with_every_steps(Some(2)).with_at_end(true);
    let config = everything(schedule)
        .with_compare(Some(ParamGroup::all()))
        .with_store(Some(GradientStoreConfig::new(1 << 20)));
    let hook = config.init(&model, HookSource::Probes(probes()));
    let hook = hook.expect("a hook");
    for (batch, due) in data.batches(6, 2).iter().zip([true, false, true]) {
        assert_eq!(hook.step(&model, batch).expect("a capture"), due);
    }
    hook.finish(&model).expect("a capture");

    let (latest, run) = (hook.latest().expect("a capture"), hook.statistics());
    let store = hook.take_store().expect("gradients");
    let mut collected = StatisticsConfig::new().init(&model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    for (task, batches) in probes() {
        let count: usize = batches.iter().map(|batch| batch.len()).sum();
        let done = collector.collect_batches(&model, &task, batches, &mut collected);
        done.expect("a collection");
        let numbers: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        let counted = latest.task(&task).expect("the task").samples().iter();
        assert_eq!(counted.map(|s| &*s.id).collect::<Vec<_>>(), numbers);
        let stored = store.samples(&task).iter();
        assert_eq!(stored.map(|s| s.id()).collect::<Vec<_>>(), numbers);
        assert_eq!(run.task(&task).expect("the task").count(), 3 * count);
        assert_eq!(means(&latest, &task), means(&collected, &task));
    }
    let history = hook.history();
    let last = history.readings().last().expect("a reading");
    assert_eq!(last.across.expect("pairs").pairs, 15);
    assert_eq!(last.noise.expect("a noise scale").samples, 8);

    let in_flight = HookConfig::every(1).init(&model, "training");
    let in_flight = in_flight.expect("a hook");
    for batch in data.batches(6, 3) {
        assert!(in_flight.step(&model, &batch).expect("a capture"));
    }
    let run = in_flight.statistics();
    let seen = run.task("training").expect("the task").samples().iter();
    let seen: Vec<(u64, &str)> = seen.map(|s| (s.step.expect("a step"), &*s.id)).collect();
    assert_eq!(
        seen,
        [(0, "0"), (0, "1"), (0, "2"), (1, "0"), (1, "1"), (1, "2")]
    );
}

/// Where a hook cannot write is known before training; folders that are not there are made.
#[test]
fn folders_can_be_written_before_training() {
    let _alone = alone();
    let pupil = Pupil::init(&device());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").expect("written");
    let config = HookConfig::new(Schedule::new().with_at_end(true));
    let wrong = Some(file.join("run"));
    for config in [
        config.clone().with_folder(wrong.clone()),
        config.clone().with_checkpoints(wrong.clone()),
        config
            .clone()
            .with_store(Some(GradientStoreConfig::new(0).with_folder(wrong.clone()))),
    ] {
        let error = config.init(&pupil, probes(&device()));
        let error = error.expect_err("it cannot be written");
        let io = matches!(&error, Error::Core(fisher_core::Error::Io { .. }));
        assert!(io, "{error}");
    }
    let made = folder.path().join("a/b");
    hook(&config.with_folder(Some(made.clone())), &pupil);
    assert!(made.is_dir());
}

/// Burn's optimizers step only the first of tied parameters: a run cannot go on as if they were one.
#[test]
fn parameters_that_part_are_named() {
    let _alone = alone();
    let device = device();
    let mut pupil = Pupil::init(&device);
    let hook = HookConfig::every(1).init(&pupil, probes(&device));
    let hook = hook.expect("a hook");
    let batch = Sequences::made_up(4, 5, &device);
    hook.step(&pupil, &batch).expect("tied");
    let output = TrainStep::step(&pupil, batch.clone());
    pupil = optimizer().step(1e-2, pupil, output.grads);
    let error = hook.step(&pupil, &batch).expect_err("parted").to_string();
    for named in ["model.embedding.weight", "model.head", "tie them anew"] {
        assert!(error.contains(named), "{error}");
    }
    hook.step(&pupil.tied(), &batch).expect("tied again");
}
