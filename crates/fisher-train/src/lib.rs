#![doc = include_str!("../README.md")]
//! # Rooms
//!
//! 1. [`batch`]: what a model and its batches have to say: samples and their losses ([`losses`], [`labels`]).
//! 2. [`capture`]: the engines. One recorded forward and backward pass serves a whole batch
//!    ([`Engine::Trace`](capture::Engine::Trace)), one backward pass a sample serves any model; each gradient goes to a
//!    [`GradientSink`](fisher_core::gradient::GradientSink). [`check`](capture::check) says whether a model and its
//!    batches are fit, and how the gradient of each parameter is taken.
//! 3. [`collect`] fills [`Statistics`](fisher_core::statistics::Statistics), and a
//!    [`GradientStore`](fisher_core::store::GradientStore) in the same pass. [`sketch`] estimates the mean from batch
//!    gradients of any model.
//! 4. [`monitor`]: a hook that captures on a schedule, in Burn's `SupervisedTraining` or in a loop of one's own.
//! 5. [`ablation`]: what the losses of held-out samples are without a layer, head or channel, measured.
//! 6. [`apply`]: an optimizer on gradients that are scaled by the Fisher, elastic weight consolidation, merged models.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod ablation;
pub mod apply;
pub mod batch;
pub mod capture;
pub mod collect;
pub mod destination;
mod error;
mod gradients;
pub mod kinds;
pub mod labels;
pub mod losses;
pub mod monitor;
mod placeholder;
pub mod predictions;
pub mod prelude;
pub mod sketch;
pub mod targets;
mod trace;

pub use error::{Error, Result};
