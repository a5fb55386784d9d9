//! Means and variances over samples, and averages over time.

mod compensated;
mod ema;
mod interval;
mod welford;

pub use compensated::accumulation_dtype;
pub use ema::Ema;
pub use interval::{ConfidenceInterval, Distribution};
pub use welford::{Moments, Welford};

pub(crate) use compensated::to_device;
pub(crate) use welford::BatchMoments;
