//! A small model in Burn's own training.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{
    Device, ExecutionError, GradientCheckpointingStrategy, Int, Tensor, TensorData,
};
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use burn::train::{
    InferenceStep, Interrupter, ItemLazy, Learner, LearningResult, SupervisedTraining, TrainOutput,
    TrainStep,
};
use fisher_train::batch::SampleLoss;
use fisher_train::losses::SampleLosses;
use fisher_train::monitor::FisherHook;

use crate::models::{Sequences, Small};

/// [`Small`], in training, and what happens on the way.
#[derive(Module, Debug)]
pub struct Pupil {
    /// The model.
    pub model: Small,
    #[module(skip)]
    happens: Happens,
}

/// What happens in a training step.
#[derive(Clone, Default)]
pub struct Happens {
    /// A hook is called, as for training on several devices.
    pub hook: Option<FisherHook<Sequences>>,
    /// A panic, when this sample comes.
    pub panic_at: Option<String>,
    /// A loss that is NaN, when this sample comes.
    pub nan_at: Option<String>,
    /// Training is interrupted, when this sample comes.
    pub stop_at: Option<(String, Interrupter)>,
    /// Training steps are counted whose weights and data are on a device with gradient checkpointing.
    pub checkpointed: Option<Arc<AtomicUsize>>,
    /// What dropout draws depends on the batch alone, so that training goes on from a checkpoint as
    /// if it had never stopped.
    pub steady: bool,
}

impl std::fmt::Debug for Happens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Happens")
    }
}

impl Pupil {
    /// A model with made-up weights, the same on every device.
    pub fn init(device: &Device) -> Self {
        Self::with(device, Happens::default())
    }

    /// The same, to which things happen.
    pub fn with(device: &Device, happens: Happens) -> Self {
        Self {
            model: Small::init(device),
            happens,
        }
    }

    /// The same after an optimizer step, which parts what is tied.
    #[must_use]
    pub fn tied(mut self) -> Self {
        self.model.tie();
        self
    }

    /// What it is interrupted by.
    pub fn interrupter(&self) -> Option<Interrupter> {
        let stop = self.happens.stop_at.as_ref();
        stop.map(|(_, interrupter)| interrupter.clone())
    }
}

impl SampleLoss for Pupil {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let is = |at: &Option<String>| at.as_ref().is_some_and(|id| batch.ids.contains(id));
        assert!(!is(&self.happens.panic_at), "the model panics");
        let losses = self.model.sample_losses(batch);
        if is(&self.happens.nan_at) {
            losses.map(|losses| losses.mul_scalar(f32::NAN))
        } else {
            losses
        }
    }
}

/// What a step gives to metrics: nothing.
pub struct Nothing;

impl ItemLazy for Nothing {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

impl TrainStep for Pupil {
    type Input = Sequences;
    type Output = Nothing;

    fn step(&self, batch: Sequences) -> TrainOutput<Nothing> {
        if let Some(hook) = &self.happens.hook {
            hook.step(self, &batch).expect("a capture");
        }
        if let Some(count) = &self.happens.checkpointed {
            let devices = [self.devices()[0].clone(), batch.tokens.device()];
            let all = devices.iter().all(|device| {
                device.gradient_checkpointing_strategy()
                    == Some(GradientCheckpointingStrategy::Balanced)
            });
            count.fetch_add(usize::from(all), Ordering::Relaxed);
        }
        if let Some((at, interrupter)) = &self.happens.stop_at
            && batch.ids.contains(at)
        {
            interrupter.stop(Some("the test stops it"));
        }
        if self.happens.steady {
            let seed = batch
                .ids
                .iter()
                .map(|id| id.len() as u64 + u64::from(id.as_bytes()[7]))
                .sum();
            batch.tokens.device().seed(seed);
        }
        // A copy on another device, or loaded from a file, has two leaves for what is tied.
        let pupil = self.clone().tied();
        let loss = pupil.sample_losses(&batch).sums().clone().sum();
        TrainOutput::new(&pupil, loss.backward(), Nothing)
    }

    fn optimize(
        self,
        optimizer: &mut ModuleOptimizer,
        rate: ModuleLearningRate,
        gradients: GradientsParams,
    ) -> Self {
        optimizer.step(rate, self, gradients).tied()
    }
}

impl InferenceStep for Pupil {
    type Input = Sequences;
    type Output = Nothing;

    fn step(&self, _batch: Sequences) -> Nothing {
        Nothing
    }
}

/// Sequences on the host, to make batches of.
#[derive(Clone)]
struct Made {
    tokens: Vec<i64>,
    labels: Vec<i64>,
    ids: Vec<String>,
    length: usize,
}

impl Batcher<usize, Sequences> for Made {
    fn batch(&self, items: Vec<usize>, device: &Device) -> Sequences {
        let rows = |all: &[i64]| -> Tensor<2, Int> {
            let rows = items
                .iter()
                .flat_map(|&i| &all[i * self.length..(i + 1) * self.length]);
            let rows: Vec<i64> = rows.copied().collect();
            Tensor::from_data(TensorData::new(rows, [items.len(), self.length]), device)
        };
        Sequences {
            tokens: rows(&self.tokens),
            labels: rows(&self.labels),
            ids: items.iter().map(|&i| self.ids[i].clone()).collect(),
        }
    }
}

/// Batches of [`Sequences`], in the order of `order`, shuffled anew each epoch where there is a seed.
pub fn loader(
    sequences: &Sequences,
    order: Vec<usize>,
    batch: usize,
    shuffle: Option<u64>,
) -> Arc<dyn DataLoader<Sequences>> {
    let host = |t: &Tensor<2, Int>| t.to_data().iter::<i64>().collect();
    let made = Made {
        tokens: host(&sequences.tokens),
        labels: host(&sequences.labels),
        ids: sequences.ids.clone(),
        length: sequences.tokens.dims()[1],
    };
    let builder = DataLoaderBuilder::new(made)
        .batch_size(batch)
        .set_device(sequences.tokens.device());
    let builder = match shuffle {
        Some(seed) => builder.shuffle(seed),
        None => builder,
    };
    builder.build(InMemDataset::new(order))
}

/// Burn's training of a [`Pupil`], set up but for what a test wants to be different.
pub fn training(folder: &Path, train: Arc<dyn DataLoader<Sequences>>) -> SupervisedTraining<Pupil> {
    SupervisedTraining::new(folder, train.clone(), train)
        .renderer(Box::new(Silent))
        .with_application_logger(None)
        .num_epochs(2)
}

/// The optimizer of [`launch`].
pub fn optimizer() -> ModuleOptimizer {
    AdamWConfig::new().init()
}

/// Train.
pub fn launch(training: SupervisedTraining<Pupil>, pupil: Pupil) -> LearningResult<Pupil> {
    training.launch(Learner::new(pupil, optimizer(), 1e-2))
}

/// Shows nothing.
pub struct Silent;

impl TrainingProgressLogger for Silent {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}
    fn update_epoch(&mut self, _: usize) {}
    fn start_split(&mut self, _: &str, _: usize) {}
    fn update_split(&mut self, _: usize) {}
    fn end_split(&mut self) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _: String) {}
}

impl MetricsRendererTraining for Silent {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
}

impl EvaluationProgressLogger for Silent {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRendererEvaluation for Silent {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl MetricsRenderer for Silent {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}
