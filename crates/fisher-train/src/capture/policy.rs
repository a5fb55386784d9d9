//! Which engine takes gradients, and what becomes of those that are not finite.

use burn::config::Config;
use serde::{Deserialize, Serialize};

/// How per-sample gradients are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Engine {
    /// Traces, and the loop for what they do not cover.
    #[default]
    Auto,
    /// One backward pass per sample: exact for any module, and slow.
    Loop,
    /// One recorded forward and backward pass a batch: a parameter that it does not cover is an error.
    Trace,
}

/// What to do with a sample whose gradient is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NonFinite {
    /// Stop with an error that names sample and parameter.
    #[default]
    Error,
    /// Leave the sample out, warn, and record it in the statistics.
    ///
    /// By traces, an element of a product that overflows although its factors are finite, as in float16, is an error
    /// all the same where elements are kept: it is seen too late. [`Engine::Loop`] skips it.
    Skip,
}

/// Configuration of a [`Capture`](super::Capture).
#[derive(Config, Debug)]
pub struct CaptureConfig {
    /// How per-sample gradients are taken.
    #[config(default = "Engine::Auto")]
    pub engine: Engine,
    /// What to do with a sample whose gradient is NaN or infinite.
    #[config(default = "NonFinite::Error")]
    pub non_finite: NonFinite,
}
