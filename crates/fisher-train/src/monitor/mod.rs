//! The Fisher of a model while it is trained: a hook that captures on a schedule, in Burn's training or a loop of one's
//! own, and what it finds: a history, the noise scale, the cosine across tasks.

mod checkpoint;
mod config;
mod cosine;
mod folder;
mod history;
mod hook;
mod journal;
mod lines;
mod metric;
mod noise_by_task;
mod noise_scale;
mod schedule;
mod state;
mod stores;
mod strategy;

pub use config::{HookConfig, HookSource, OnFailure, Probes};
pub use cosine::AcrossTasks;
pub use history::{HISTORY_SCHEMA, History, PartReading, Reading, TaskReading};
pub use hook::FisherHook;
pub use metric::{FisherMetric, Quantity};
pub use noise_scale::{
    GradientMoments, NoiseEstimate, NoiseInterval, NoiseScale, NoiseScaleConfig, SampleWeight,
};
pub use schedule::{Schedule, TrainingPoint};
pub use strategy::FisherStrategy;
