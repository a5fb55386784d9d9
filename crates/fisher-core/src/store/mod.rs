//! Per-sample gradients, kept in memory or on disk so that samples can be compared with each other.

mod compare;
mod config;
mod filling;
mod gradients;
mod index;
mod intake;
mod positioned;
mod precision;
mod shards;
mod usage;

pub use config::StoreConfig;
pub use gradients::GradientStore;
pub use intake::Prepared;
pub use precision::Precision;
pub use usage::Usage;
