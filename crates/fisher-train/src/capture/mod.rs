//! The engines: per-sample gradients of batches by a trace or by the loop, compared where they could go wrong, and where
//! they go.

mod alone;
mod batches;
mod check;
mod checkup;
mod names;
mod outcome;
mod per_sample;
mod policy;
mod unbounded;
mod watch;

pub(crate) use alone::Alone;
pub use batches::Capture;
pub(crate) use batches::Watched;
pub use check::check;
pub use checkup::{Checkup, Difference};
pub use names::Names;
pub use outcome::Outcome;
pub(crate) use per_sample::deterministic;
pub use per_sample::{LoopGradient, PerSample};
pub use policy::{CaptureConfig, Engine, NonFinite};
pub(crate) use watch::{EVERY, Watch};
