//! The hook in Burn's own training.

use std::sync::Arc;

use burn::data::dataloader::Progress;
use burn::optim::GradientsAccumulator;
use burn::tensor::Device;
use burn::train::checkpoint::CheckpointerError;
use burn::train::{
    EventProcessorTraining, InferenceStep, Interrupter, Learner, LearnerEvent, LearnerModel,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainStep,
    TrainingComponents, TrainingError, TrainingItem, TrainingStrategy, ValidLoader,
};

use super::config::OnFailure;
use super::hook::FisherHook;
use crate::batch::{SampleBatch, SampleLoss};
use crate::error::{Error, Result};

/// Burn's training on a single device, with captures.
///
/// As Burn's own: gradients are accumulated, checkpoints written, epochs validated, training stopped
/// early or interrupted as `SupervisedTraining` was told, and the weights are the same to the bit.
/// Trains on the device of the model.
///
/// Gradient checkpointing is the device's, too: make model and data on
/// `device.autodiff().gradient_checkpointing()`. Burn tells no strategy but its own of
/// `SupervisedTraining::gradient_checkpointing`, and has models keep what they were made with.
///
/// Made by [`FisherHook::strategy`].
#[derive(Debug)]
pub struct FisherStrategy<B> {
    hook: FisherHook<B>,
}

impl<B: SampleBatch + Send + 'static> FisherHook<B> {
    /// The hook as a strategy of Burn's `SupervisedTraining`.
    ///
    /// ```
    /// use burn::train::{LearnerModel, SupervisedTraining, TrainStep};
    /// use fisher_train::batch::{SampleBatch, SampleLoss};
    /// use fisher_train::monitor::{FisherHook, Quantity};
    ///
    /// fn watched<M, B>(training: SupervisedTraining<M>, hook: &FisherHook<B>) -> SupervisedTraining<M>
    /// where
    ///     M: LearnerModel + TrainStep<Input = B> + SampleLoss<Batch = B>,
    ///     B: SampleBatch + Send + 'static,
    /// {
    ///     training
    ///         .with_training_strategy(hook.strategy())
    ///         .metric_train_numeric(hook.metric(Quantity::Trace("a task".into())))
    /// }
    /// ```
    pub fn strategy<M>(&self) -> TrainingStrategy<M>
    where
        M: LearnerModel + TrainStep<Input = B> + SampleLoss<Batch = B>,
    {
        let hook = self.clone();
        TrainingStrategy::Custom(Arc::new(FisherStrategy { hook }))
    }
}

impl<M, B> SupervisedLearningStrategy<M> for FisherStrategy<B>
where
    M: LearnerModel + TrainStep<Input = B> + SampleLoss<Batch = B>,
    B: SampleBatch + Send + 'static,
{
    fn fit(
        &self,
        components: TrainingComponents<M>,
        mut learner: Learner<M>,
        train: TrainLoader<M>,
        valid: ValidLoader<M>,
        starting_epoch: usize,
    ) -> (M, SupervisedTrainingEventProcessor<M>) {
        let device = device(&learner.model());
        learner.fork(&device);
        let mut course = Course {
            hook: &self.hook,
            train: train.to_device(&device),
            valid: valid.to_device(&device.inner()),
            events: components.event_processor,
            interrupter: components.interrupter,
            grad_accumulation: components.grad_accumulation,
        };
        let mut checkpointer = components.checkpointer;
        let mut early_stopping = components.early_stopping;
        let resumed = components.checkpoint;
        let resumed = resumed.map_or(Ok(()), |epoch| self.hook.load_checkpoint(epoch));
        // What could not go on must not take the place of what it could not go on from.
        let attached = course.guard(resumed);
        for epoch in starting_epoch..=components.num_epochs {
            if course.interrupter.should_stop() {
                break;
            }
            course.train(&mut learner, epoch);
            self.hook.end_epoch();
            if course.interrupter.should_stop() {
                break;
            }
            course.validate(&learner, epoch);
            if checkpointer.is_some() || early_stopping.is_some() {
                course.flush();
            }
            if course.interrupter.should_stop() {
                break;
            }
            if let Some(checkpointer) = &mut checkpointer {
                // Before the learner's, so that none of those lacks it.
                if attached && self.hook.has_checkpoints() {
                    course.guard(self.hook.save_checkpoint(epoch));
                }
                checkpointer.checkpoint(&learner, epoch, &components.event_store);
            }
            let stopping = early_stopping.as_mut();
            if stopping.is_some_and(|it| it.should_stop(epoch, &components.event_store)) {
                break;
            }
        }
        match course.interrupter.error() {
            None => course.guard(self.hook.finish(&learner.model())),
            Some(_) => course.guard(self.hook.save()),
        };
        (learner.model(), course.events)
    }
}

fn device<M: LearnerModel>(model: &M) -> Device {
    let device = model.devices().first().cloned().unwrap_or_default();
    if device.is_autodiff() {
        device
    } else {
        device.autodiff()
    }
}

/// What all epochs share.
struct Course<'a, M: LearnerModel, B> {
    hook: &'a FisherHook<B>,
    train: TrainLoader<M>,
    valid: ValidLoader<M>,
    events: SupervisedTrainingEventProcessor<M>,
    interrupter: Interrupter,
    grad_accumulation: Option<usize>,
}

type TrainEvent<M> = LearnerEvent<<M as TrainStep>::Output>;
type ValidEvent<M> = LearnerEvent<<M as InferenceStep>::Output>;

impl<M, B> Course<'_, M, B>
where
    M: LearnerModel + TrainStep<Input = B> + SampleLoss<Batch = B>,
    B: SampleBatch,
{
    fn train(&mut self, learner: &mut Learner<M>, epoch: usize) {
        self.tell(LearnerEvent::StartSplit {
            epoch_number: epoch,
            total_items: self.train.num_items(),
        });
        let loader = self.train.clone();
        let mut batches = loader.iter();
        let mut accumulator = GradientsAccumulator::new();
        let mut accumulated = 0;
        let mut iteration = 0;
        while let Some(batch) = batches.next() {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    self.interrupter.fail(error);
                    break;
                }
            };
            iteration += 1;
            if let Some(due) = self.hook.advance() {
                let captured = self.hook.capture(&learner.model(), due, Some(&batch));
                self.guard(captured.map(|_| ()));
                if self.interrupter.should_stop() {
                    break;
                }
            }
            let progress = batches.progress();
            let output = learner.train_step(batch);
            match self.grad_accumulation {
                None => {
                    learner.lr_step();
                    learner.optimizer_step(output.grads);
                }
                Some(wanted) => {
                    accumulator.accumulate(&learner.model(), output.grads);
                    accumulated += 1;
                    if accumulated >= wanted || progress.is_completed() {
                        learner.lr_step();
                        learner.optimizer_step(accumulator.grads());
                        accumulated = 0;
                    }
                }
            }
            let rate = Some(learner.lr_current());
            self.tell(item(output.item, progress, iteration, rate));
            if self.interrupter.should_stop() {
                break;
            }
        }
        self.tell(LearnerEvent::EndSplit(epoch));
    }

    fn validate(&mut self, learner: &Learner<M>, epoch: usize) {
        self.tell_valid(LearnerEvent::StartSplit {
            epoch_number: epoch,
            total_items: self.valid.num_items(),
        });
        let model = learner.model().valid();
        let loader = self.valid.clone();
        let mut batches = loader.iter();
        let mut iteration = 0;
        while let Some(batch) = batches.next() {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    self.interrupter.fail(error);
                    break;
                }
            };
            iteration += 1;
            let progress = batches.progress();
            let output = InferenceStep::step(&model, batch);
            self.tell_valid(item(output, progress, iteration, None));
            if self.interrupter.should_stop() {
                break;
            }
        }
        self.tell_valid(LearnerEvent::EndSplit(epoch));
        self.tell(LearnerEvent::EndEpoch(epoch));
    }

    fn tell(&mut self, event: TrainEvent<M>) {
        let told = self.events.process_train(event);
        self.interrupter.fail_on_error(told);
    }

    fn tell_valid(&mut self, event: ValidEvent<M>) {
        let told = self.events.process_valid(event);
        self.interrupter.fail_on_error(told);
    }

    fn flush(&mut self) {
        let flushed = self.events.flush();
        self.interrupter.fail_on_error(flushed);
    }

    /// An error of the hook is one of training, or the end of captures; `false` for an error.
    fn guard(&self, result: Result<()>) -> bool {
        let Err(error) = result else { return true };
        let message = format!("Fisher hook: {error}");
        match self.hook.fail(&error) {
            OnFailure::Detach => tracing::error!("{message}; training goes on without captures"),
            OnFailure::Stop => {
                let error = CheckpointerError::Unknown(message);
                self.interrupter.fail(TrainingError::Checkpoint(error));
            }
        }
        false
    }
}

fn item<T>(
    item: T,
    progress: Progress,
    iteration: usize,
    rate: Option<burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate>,
) -> LearnerEvent<T> {
    LearnerEvent::ProcessedItem(TrainingItem::new(item, progress, Some(iteration), rate))
}

impl<B> FisherHook<B> {
    /// No more captures, because of `error`.
    fn fail(&self, error: &Error) -> OnFailure {
        self.state()
            .failure
            .get_or_insert_with(|| error.to_string());
        self.shared.config.on_failure
    }
}
