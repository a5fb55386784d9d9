//! Means and variances over samples, and averages over time.

mod compensated;
mod ema;
mod interval;
mod merged;
mod skewed;
mod welford;

pub use compensated::accumulation_dtype;
pub use ema::Ema;
pub use interval::{
    ConfidenceInterval, FEWEST_FOR_INTERVAL, FEWEST_FOR_TRUST, IntervalMethod, MeanEstimate,
    student_quantile,
};
pub use welford::{SampleMoments, Welford, effective};

pub(crate) use compensated::to_device;
pub(crate) use merged::Merged;
pub(crate) use skewed::Skewed;
pub(crate) use welford::{BatchMoments, skewness};
