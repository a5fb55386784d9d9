//! Training on several devices: what workers see, joined, is what one device sees.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::Device;
use burn::train::{
    ExecutionStrategy, InferenceStep, Learner, MultiDeviceOptim, SupervisedTraining, TrainOutput,
    TrainStep, TrainingStrategy,
};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::models::{Sequences, made_up};
use fisher_tests::pupil::{Nothing, Silent, loader};
use fisher_tests::tolerance::{BACKWARD, assert_close};
use fisher_train::batch::SampleLoss;
use fisher_train::losses::SampleLosses;
use fisher_train::monitor::{FisherHook, HookConfig, HookSource, Schedule};
use rstest::rstest;

/// Nothing random, and nothing that workers would keep to themselves.
#[derive(Module, Debug)]
struct Worker {
    embedding: Embedding,
    linear: Linear,
    /// Called in each step of a worker.
    #[module(skip)]
    hook: Option<FisherHook<Sequences>>,
}

impl Worker {
    fn init(device: &Device) -> Self {
        let model = Self {
            embedding: EmbeddingConfig::new(7, 8).init(device),
            linear: LinearConfig::new(8, 7).init(device),
            hook: None,
        };
        made_up(model, 1.0)
    }
}

impl SampleLoss for Worker {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let x = self.embedding.forward(batch.tokens.clone()).tanh();
        SampleLosses::cross_entropy(self.linear.forward(x), batch.labels.clone())
    }
}

impl TrainStep for Worker {
    type Input = Sequences;
    type Output = Nothing;

    fn step(&self, batch: Sequences) -> TrainOutput<Nothing> {
        if let Some(hook) = &self.hook {
            hook.step(self, &batch).expect("a capture");
        }
        let loss = self.sample_losses(&batch).sums().clone().sum();
        TrainOutput::new(self, loss.backward(), Nothing)
    }
}

impl InferenceStep for Worker {
    type Input = Sequences;
    type Output = Nothing;

    fn step(&self, _batch: Sequences) -> Nothing {
        Nothing
    }
}

fn train(
    device: &Device,
    order: Vec<usize>,
    worker: Worker,
    strategy: TrainingStrategy<Worker>,
    accumulation: usize,
) {
    let folder = tempfile::tempdir().expect("a folder");
    let data = Sequences::made_up(16, 5, device);
    let batches = loader(&data, order, 4, None);
    let result = SupervisedTraining::new(folder.path(), batches.clone(), batches)
        .renderer(Box::new(Silent))
        .with_application_logger(None)
        .num_epochs(2)
        .grads_accumulation(accumulation)
        .with_training_strategy(strategy)
        .launch(Learner::new(worker, SgdConfig::new().init(), 1e-2));
    assert!(result.error.is_none(), "{:?}", result.error);
}

fn means(statistics: &Statistics, task: &str) -> Vec<f64> {
    let task = statistics.task(task).expect("the task");
    let means = task.parameters().flat_map(|(_, p)| {
        let read = p.elementwise().expect("elements").read().expect("moments");
        read.mean.expect("a mean")
    });
    means.collect()
}

#[rstest]
fn workers_joined_are_one_device(
    #[values(Backend::Flex, Backend::Ndarray)] backend: Backend,
    #[values(MultiDeviceOptim::OptimMainDevice, MultiDeviceOptim::OptimSharded)]
    optim: MultiDeviceOptim,
    #[values(false, true)] in_flight: bool,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let config = HookConfig::every(1).with_statistics(StatisticsConfig::new());
    let hook = |config: HookConfig| {
        let probes = Sequences::made_up(5, 5, &device);
        let source = if in_flight {
            HookSource::InFlight("task".into())
        } else {
            HookSource::Probes(vec![("task".into(), probes.batches(3))])
        };
        let worker = Worker::init(&device);
        config.init(&worker, source).expect("a hook")
    };

    // Two workers, each with one half of the data: one step of training is a batch of each.
    let shared = hook(config.clone().with_workers(2));
    let mut worker = Worker::init(&device);
    worker.hook = Some(shared.clone());
    let devices = vec![device.clone(); 2];
    let strategy = ExecutionStrategy::multi(devices, optim).into();
    train(&device, (0..16).collect(), worker, strategy, 1);
    assert_eq!(shared.moment().step, 4);

    // One device that sums the gradients of the same two batches.
    let order = [0..4, 8..12, 4..8, 12..16].into_iter().flatten().collect();
    let single = match in_flight {
        true => config,
        // Probes are looked at once a step of training, not once a batch.
        false => HookConfig {
            schedule: Schedule::new().with_every_steps(Some(2)),
            ..config
        },
    };
    let alone = hook(single);
    let strategy = alone.strategy();
    train(&device, order, Worker::init(&device), strategy, 2);

    let [many, one] = [shared, alone].map(|hook| hook.statistics());
    let count = |s: &Statistics| s.task("task").expect("the task").count();
    let expected = if in_flight { 32 } else { 4 * 5 };
    assert_eq!([count(&many), count(&one)], [expected; 2]);
    let (many, one) = (means(&many, "task"), means(&one, "task"));
    assert_close("workers", &many, &one, BACKWARD, 1e-3);
}
