//! Where the gradients of Fisher statistics come from.
//!
//! A model says what the loss of each sample is ([`SampleLoss`]), a batch says what its samples
//! are ([`SampleBatch`]), and a [`Collector`] takes the gradient of every sample and fills
//! [`Statistics`](fisher_core::Statistics), and in the same pass a
//! [`GradientStore`](fisher_core::GradientStore): exact for any Burn module and any loss.
//!
//! One forward and backward pass serves a whole batch ([`Engine::Trace`]); [`check`] says whether a model and its batches
//! are fit for that, and why a parameter is not. [`Sketch`] estimates the mean from batch gradients of any model.
//!
//! While a model is trained, a [`FisherHook`] does this on a [`Schedule`], in Burn's
//! `SupervisedTraining` or in a loop of one's own.
//!
//! What follows for training is here too: [`FisherOptimizer`] scales the gradients of any Burn
//! optimizer, [`Ewc`] keeps what a task has learnt, [`Merging`] joins models.
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::{Device, Int, Tensor};
//! use fisher_core::{HeadLayout, Statistics, StatisticsConfig};
//! use fisher_train::{CollectorConfig, SampleBatch, SampleLoss, SampleLosses, SampleMapper};
//!
//! #[derive(Clone)]
//! struct Digits {
//!     images: Tensor<2>,
//!     labels: Tensor<1, Int>,
//!     ids: Vec<String>,
//! }
//!
//! impl SampleBatch for Digits {
//!     fn ids(&self) -> Vec<String> {
//!         self.ids.clone()
//!     }
//!     fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
//!         Self {
//!             images: mapper.tensor(&self.images),
//!             labels: mapper.tensor(&self.labels),
//!             ids: mapper.list(&self.ids),
//!         }
//!     }
//! }
//!
//! #[derive(Module, Debug)]
//! struct Classifier {
//!     linear: Linear,
//! }
//!
//! impl SampleLoss for Classifier {
//!     type Batch = Digits;
//!     fn sample_losses(&self, batch: &Digits) -> SampleLosses {
//!         let logits = self.linear.forward(batch.images.clone());
//!         SampleLosses::classification(logits, batch.labels.clone())
//!     }
//! }
//!
//! let device = Device::flex().autodiff();
//! let model = Classifier { linear: LinearConfig::new(4, 3).init(&device) };
//! let batch = Digits {
//!     images: Tensor::random([8, 4], burn::tensor::Distribution::Default, &device),
//!     labels: Tensor::zeros([8], &device),
//!     ids: (0..8).map(|i| format!("digit-{i}")).collect(),
//! };
//!
//! let mut statistics: Statistics = StatisticsConfig::new().init(&model)?;
//! let collector = CollectorConfig::new().init();
//! collector.collect_batches(&model, "zeros", [batch], &mut statistics)?;
//! assert_eq!(statistics.task("zeros")?.count(), 8);
//! # Ok::<(), fisher_train::Error>(())
//! ```

pub mod apply;
mod batch;
pub mod capture;
mod collect;
mod destination;
mod error;
mod gradients;
mod labels;
mod losses;
pub mod monitor;
mod placeholder;
mod read;
mod sketch;
mod trace;

pub use apply::{
    Average, Decided, Ewc, EwcConfig, FisherOptimizer, FisherOptimizerConfig, Granularity,
    MergeConfig, MergeReport, Merged, Merging, Source, Term,
};
pub use batch::{SampleBatch, SampleLoss, SampleMapper};
pub use capture::{
    Capture, CaptureConfig, Checkup, Difference, Engine, LoopGradient, Names, NonFinite, Outcome,
    PerSample, check,
};
pub use collect::{Checkpoint, Collected, Collector, CollectorConfig};
pub use destination::Destination;
pub use error::{Error, Result};
pub use fisher_core::HeadLayout;
pub use labels::{Aligned, Class, IGNORE, Labels, NextToken};
pub use losses::SampleLosses;
pub use monitor::{
    AcrossTasks, Estimate, FisherHook, FisherMetric, FisherStrategy, GradientMoments,
    HISTORY_SCHEMA, History, HookConfig, HookSource, Moment, NoiseScale, NoiseScaleConfig,
    OnFailure, Part, Probes, Quantity, Reading, SampleWeight, Schedule, TaskReading,
};
pub use sketch::{Sketch, SketchConfig, SketchedFisher};
