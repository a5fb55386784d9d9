//! The accumulators of several tasks: their configuration, the batches that come in, and their files.

mod accumulators;
mod averages;
mod config;
mod copies;
mod file;
mod joining;
mod mixture;
mod pending;
mod plan;
mod rows;
mod saved;
mod saved_means;
mod saved_totals;
mod sink;
mod slots;
mod task;
mod training;
mod writer;

pub use accumulators::Statistics;
pub use averages::Averages;
pub use config::StatisticsConfig;
pub use file::SCHEMA_VERSION;
pub use mixture::{Mixed, Mixture, SampleTraces};
pub use rows::UnitSums;
pub use saved::SavedSamples;
pub use saved_means::SavedMeans;
pub use task::{ParameterStatistics, TaskStatistics};
