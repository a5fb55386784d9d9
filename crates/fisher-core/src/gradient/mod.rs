//! Per-sample gradients: their units, the forms they are found in, and what takes them in.

mod batch;
mod precision;
mod sample_gradient;
mod scatter;
mod sink;
mod tied;
mod units;
mod weighted_sum;

pub use batch::GradientBatch;
pub use precision::{at_least_single, unit_rows};
pub use sample_gradient::SampleGradient;
pub use scatter::add_at;
pub use sink::GradientSink;
pub use tied::Tied;

pub use units::{
    Contribution, ContributionUnit, Gradient, GradientUnit, PerToken, Raw, TokenMean, TokenSum,
};

pub(crate) use sample_gradient::sides;
pub(crate) use scatter::indices;
pub(crate) use tied::BAND;
