//! Per-sample gradients, kept in memory or on disk so that samples can be compared with each other.

mod compare;
mod config;
mod filling;
mod gradients;
mod index;
mod intake;
mod joining;
mod positioned;
mod precision;
mod shards;
mod usage;

pub use config::GradientStoreConfig;
pub use gradients::GradientStore;
pub use precision::Precision;
pub use usage::Usage;
