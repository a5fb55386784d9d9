//! Captures while a model is trained: what they find, and that training does not notice.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use burn::train::TrainStep;
use fisher_core::{
    AttentionConfig, Catalogue, HeadLayout, Statistics, StatisticsConfig, hash_weights,
};
use fisher_tests::models::Sequences;
use fisher_tests::pupil::{Pupil, launch, loader, optimizer, training};
use fisher_tests::tolerance::{REORDERED, assert_close};
use fisher_train::{
    CollectorConfig, FisherHook, HookConfig, HookSource, NoiseScaleConfig, Schedule,
};
use rstest::rstest;

/// Dropout draws from the device's generator, which is the whole process'.
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
    config.init(pupil, &heads(pupil), source).expect("a hook")
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

    let config = HookConfig::new(Schedule::new().with_every_steps(Some(1)));
    let source = HookSource::InFlight("training".into());
    let in_flight = config.init(&pupil, &heads(&pupil), source).expect("a hook");
    assert_eq!(plain, train(Some(&in_flight), accumulation), "in flight");
    let statistics = in_flight.statistics();
    assert_eq!(statistics.task("training").expect("the task").count(), 28);
}

/// A loop of one's own; `at` sees the model before each step, and after the last.
fn own_loop(steps: usize, hook: &FisherHook<Sequences>, mut at: impl FnMut(u64, &Pupil)) -> Pupil {
    let device = device();
    device.seed(7);
    let mut pupil = Pupil::init(&device);
    let mut optimizer = optimizer();
    let data = Sequences::made_up(4 * steps, 5, &device);
    for (step, batch) in data.batches(4).into_iter().enumerate() {
        at(step as u64, &pupil);
        hook.step(&pupil, &batch).expect("a capture");
        let output = TrainStep::step(&pupil, batch);
        pupil = optimizer.step(1e-2, pupil, output.grads);
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
        let config = StatisticsConfig::new();
        let mut statistics: Statistics = config.init(pupil, &heads(pupil)).expect("statistics");
        let HookSource::Probes(tasks) = probes(&device()) else {
            unreachable!("probes are probes")
        };
        let collector = CollectorConfig::new().with_progress(false).init();
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
