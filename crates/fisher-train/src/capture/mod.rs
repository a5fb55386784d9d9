//! The engines: per-sample gradients of batches by a trace or by the loop, compared where they could go wrong, and where
//! they go.

mod alone;
mod batches;
mod check;
mod checkup;
mod deliver;
mod names;
mod per_sample;
mod policy;
mod sink;
mod unbounded;
mod watch;

pub(crate) use alone::Alone;
pub use batches::Capture;
pub use check::check;
pub use checkup::{Checkup, Difference};
pub use deliver::Outcome;
pub use names::Names;
pub(crate) use per_sample::deterministic;
pub use per_sample::{PerSample, SampleGradient};
pub use policy::{CaptureConfig, Engine, NonFinite};
pub use sink::Destination;
pub(crate) use sink::check_model;
pub(crate) use watch::{EVERY, Watch};
