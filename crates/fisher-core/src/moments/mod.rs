//! Means and variances over samples, and averages over time.

mod compensated;
mod ema;
mod interval;
mod welford;

pub use compensated::accumulation_dtype;
pub use ema::Ema;
pub use interval::{ConfidenceInterval, IntervalMethod};
pub use welford::{SampleMoments, Welford};

pub(crate) use compensated::to_device;
pub(crate) use welford::BatchMoments;
