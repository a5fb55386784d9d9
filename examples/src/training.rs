//! Training with Burn's own loop, until the tasks are learnt.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::module::Module;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, TensorReadError};
use burn::train::logger::{EvaluationProgressLogger, InMemoryMetricLogger, TrainingProgressLogger};
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::store::{Aggregate, EventStoreClient, Split};
use burn::train::metric::{
    Adaptor, ItemLazy, Metric, MetricAttributes, MetricDefinition, MetricMetadata, MetricName,
    Numeric, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use burn::train::{
    EarlyStoppingStrategy, InferenceStep, Learner, SupervisedTraining, TrainOutput, TrainStep,
};
use fisher_train::apply::Ewc;
use fisher_train::batch::SampleLoss;
use fisher_train::labels::IGNORE;
use fisher_train::losses::SampleLosses;
use fisher_train::monitor::{FisherHook, Quantity};
use indicatif::{ProgressBar, ProgressStyle};

use crate::model::CausalTransformer;
use crate::tasks::{Data, Item, Task, TaskBatch, TaskBatcher};

/// The share of held-out samples that counts as learnt.
pub const LEARNT: f64 = 0.99;
const BATCH: usize = 128;

/// A loader of items in a fixed order.
pub fn loader(items: &[Item], device: &Device) -> Arc<dyn DataLoader<TaskBatch>> {
    DataLoaderBuilder::new(TaskBatcher)
        .batch_size(BATCH)
        .set_device(device.clone())
        .build(InMemDataset::new(items.to_vec()))
}

/// What to train on, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Lesson<'a> {
    /// Training and held-out samples.
    pub data: &'a Data,
    /// The tasks to learn: training ends once all are learnt.
    pub tasks: &'a [Task],
    /// Epochs at most.
    pub epochs: usize,
    /// The highest learning rate.
    pub rate: f64,
    /// Seed of the order of samples.
    pub seed: u64,
    /// What must not be forgotten meanwhile.
    pub ewc: Option<&'a Ewc>,
    /// What looks on.
    pub hook: Option<&'a FisherHook<TaskBatch>>,
    /// Show Burn's dashboard in place of a progress bar, where there is a terminal.
    pub dashboard: bool,
}

/// Train `model`; gives it ready for gradients, and the epochs it took.
///
/// # Errors
/// What Burn's loop stopped with.
pub fn train(
    model: CausalTransformer,
    lesson: &Lesson<'_>,
    folder: &Path,
    device: &Device,
) -> Result<(CausalTransformer, usize), String> {
    let device = device.clone().autodiff();
    let of_tasks = |items: &[Item]| -> Vec<Item> {
        let items = items
            .iter()
            .filter(|item| lesson.tasks.contains(&item.task));
        items.cloned().collect()
    };
    let items = of_tasks(&lesson.data.train);
    // A high rate finds the induction heads soon, a falling one makes them exact.
    let steps = lesson.epochs * items.len().div_ceil(BATCH);
    let schedule = CosineAnnealingLrSchedulerConfig::new(lesson.rate, steps)
        .with_min_lr(1e-4)
        .init()?;
    let batches = DataLoaderBuilder::new(TaskBatcher)
        .batch_size(BATCH)
        .shuffle(lesson.seed)
        .set_device(device.clone())
        .build(InMemDataset::new(items));
    let held_out = lesson
        .tasks
        .iter()
        .flat_map(|task| lesson.data.held_out(*task));
    let held_out: Vec<Item> = held_out.cloned().collect();
    let pupil = Pupil::new(model, lesson.ewc.cloned());
    let optimizer = AdamWConfig::new().with_beta_2(0.98).with_weight_decay(0.01);
    let learner = Learner::new(pupil, optimizer.init(), schedule);
    let last_epoch = Arc::new(AtomicUsize::new(0));
    let [induction, maximum] = Task::ALL.map(TaskAccuracy::new);
    let held_out = loader(&held_out, &device.clone().inner());
    let mut training = SupervisedTraining::new(folder, batches, held_out)
        .metric_valid_numeric(induction)
        .metric_valid_numeric(maximum)
        .early_stopping(AllLearnt {
            tasks: lesson.tasks.to_vec(),
            last_epoch: last_epoch.clone(),
        })
        .with_metric_logger(InMemoryMetricLogger::new())
        .with_application_logger(None)
        .num_epochs(lesson.epochs);
    if !lesson.dashboard {
        training = training.renderer(progress_bar());
    }
    if let Some(hook) = lesson.hook {
        training = training.with_training_strategy(hook.strategy());
        for quantity in quantities() {
            training = training.metric_train_numeric(hook.metric(quantity));
        }
    }
    let result = training.launch(learner);
    if let Some(error) = result.error {
        return Err(error.to_string());
    }
    Ok((
        result.model.train().model,
        last_epoch.load(Ordering::Relaxed),
    ))
}

/// What of a hook's captures goes to Burn's dashboard.
fn quantities() -> Vec<Quantity> {
    let of_tasks = Task::ALL.iter().flat_map(|task| {
        let name = || task.name().to_owned();
        [Quantity::Trace(name()), Quantity::TopHead(name())]
    });
    let all = [
        Quantity::PooledSignal,
        Quantity::MeanCosine,
        Quantity::ConflictRate,
    ];
    of_tasks.chain(all).collect()
}

/// How well a model does a task on samples it was not trained on.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// The share of samples with every active token right.
    pub accuracy: f64,
    /// The mean over samples of the loss per active token, in nats.
    pub loss: f64,
}

/// Mark a model on the held-out samples of each of [`Task::ALL`].
///
/// # Errors
/// What the loader failed with.
pub fn marks(model: &CausalTransformer, data: &Data, device: &Device) -> Result<[Mark; 2], String> {
    let model = model.valid();
    let mark = |task: Task| -> Result<Mark, String> {
        let items = data.held_out(task);
        let (mut all_right, mut loss) = (0.0, 0.0);
        for batch in loader(items, &device.clone().inner()).iter() {
            let batch = batch.map_err(|e| e.to_string())?;
            all_right += right(&model, &batch).sum().into_scalar::<f64>();
            let losses = model.sample_losses(&batch);
            loss += losses.means().sum().into_scalar::<f64>();
        }
        Ok(Mark {
            accuracy: all_right / items.len() as f64,
            loss: loss / items.len() as f64,
        })
    };
    let [induction, maximum] = Task::ALL.map(mark);
    Ok([induction?, maximum?])
}

/// 1 for every sample with all active tokens right, `[samples]`.
fn right(model: &CausalTransformer, batch: &TaskBatch) -> Tensor<1> {
    let predictions = model.forward(batch.tokens.clone()).argmax(2).squeeze_dim(2);
    let ignored = batch.labels.clone().equal_scalar(IGNORE);
    let right = predictions.equal(batch.labels.clone()).bool_or(ignored);
    right.all_dim(1).squeeze_dim::<1>(1).float()
}

/// What a step gives to metrics.
pub struct Outcome {
    right: Tensor<1>,
    tasks: Vec<Task>,
}

impl ItemLazy for Outcome {
    fn sync(self) -> Result<Self, burn::tensor::ExecutionError> {
        self.right.device().flush()?;
        Ok(self)
    }
}

/// A model that is being taught.
#[derive(Module, Debug)]
pub struct Pupil {
    model: CausalTransformer,
    #[module(skip)]
    ewc: Option<Ewc>,
}

impl Pupil {
    /// To be taught, without forgetting what `ewc` protects.
    pub fn new(model: CausalTransformer, ewc: Option<Ewc>) -> Self {
        Self { model, ewc }
    }
}

impl SampleLoss for Pupil {
    type Batch = TaskBatch;

    fn sample_losses(&self, batch: &TaskBatch) -> SampleLosses {
        self.model.sample_losses(batch)
    }
}

impl TrainStep for Pupil {
    type Input = TaskBatch;
    type Output = Outcome;

    fn step(&self, batch: TaskBatch) -> TrainOutput<Outcome> {
        let losses = self.model.sample_losses(&batch);
        let mut loss = losses.means().mean();
        if let Some(ewc) = &self.ewc {
            let penalty = ewc.penalty(&self.model).expect("the model it was made for");
            loss = penalty.map_or(loss.clone(), |penalty| loss + penalty);
        }
        let outcome = Outcome {
            right: Tensor::zeros([0], &loss.device().inner()),
            tasks: Vec::new(),
        };
        TrainOutput::new(self, loss.backward(), outcome)
    }
}

impl InferenceStep for Pupil {
    type Input = TaskBatch;
    type Output = Outcome;

    fn step(&self, batch: TaskBatch) -> Outcome {
        Outcome {
            right: right(&self.model, &batch),
            tasks: batch.tasks,
        }
    }
}

/// The share of a task's samples with every active token right.
#[derive(Clone)]
struct TaskAccuracy {
    task: Task,
    state: NumericMetricState,
}

impl TaskAccuracy {
    fn new(task: Task) -> Self {
        Self {
            task,
            state: NumericMetricState::default(),
        }
    }

    fn format(&self) -> FormatOptions {
        FormatOptions::new(self.name()).precision(3)
    }
}

impl Adaptor<Vec<(Task, bool)>> for Outcome {
    fn adapt(&self) -> Vec<(Task, bool)> {
        let right = self.right.to_data();
        let right = right.iter::<f32>().map(|r| r > 0.5);
        self.tasks.iter().copied().zip(right).collect()
    }
}

impl Metric for TaskAccuracy {
    type Input = Vec<(Task, bool)>;

    fn name(&self) -> MetricName {
        Arc::new(format!("Accuracy of {}", self.task.name()))
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: true,
        }
        .into()
    }

    fn update(
        &mut self,
        samples: &Self::Input,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        let of_task = samples.iter().filter(|(task, _)| *task == self.task);
        let count = of_task.clone().count();
        if count > 0 {
            let right = of_task.filter(|(_, right)| *right).count();
            self.state.update(right as f64 / count as f64, count);
        }
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for TaskAccuracy {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}

/// Stops once all tasks are learnt, and keeps the number of the last epoch.
#[derive(Clone)]
struct AllLearnt {
    tasks: Vec<Task>,
    last_epoch: Arc<AtomicUsize>,
}

impl EarlyStoppingStrategy for AllLearnt {
    fn should_stop(&mut self, epoch: usize, store: &EventStoreClient) -> bool {
        let accuracy = |task: &Task| {
            let name = TaskAccuracy::new(*task).name();
            store.find_metric(&name, epoch, Aggregate::Mean, &Split::Valid)
        };
        let accuracies: Vec<Option<f64>> = self.tasks.iter().map(accuracy).collect();
        self.last_epoch.store(epoch, Ordering::Relaxed);
        tracing::info!(epoch, ?accuracies, "epoch ended");
        accuracies.iter().all(|a| a.is_some_and(|a| a >= LEARNT))
    }
}

/// A progress bar on standard error, in place of Burn's line per batch.
pub fn progress_bar() -> Box<dyn MetricsRenderer> {
    Box::new(Bar::new())
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style = ProgressStyle::with_template("training, epoch {msg} {wide_bar} {elapsed}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(0).with_style(style))
    }
}

impl TrainingProgressLogger for Bar {
    fn start(&mut self, epochs: usize, first: usize, _: Option<usize>, _: Option<&str>) {
        self.0.set_length(epochs as u64);
        self.0.set_message(first.to_string());
    }

    fn update_epoch(&mut self, epoch: usize) {
        self.0.set_position(epoch as u64);
        self.0.set_message((epoch + 1).to_string());
    }

    fn start_split(&mut self, _: &str, _: usize) {}
    fn update_split(&mut self, _: usize) {}
    fn end_split(&mut self) {}

    fn end(&mut self) {
        self.0.finish_and_clear();
    }

    fn log_event_training(&mut self, event: String) {
        self.0.println(event);
    }
}

impl MetricsRendererTraining for Bar {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
}

impl EvaluationProgressLogger for Bar {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRendererEvaluation for Bar {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl MetricsRenderer for Bar {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}
