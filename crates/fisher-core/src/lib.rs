#![doc = include_str!("../README.md")]
//! # Rooms
//!
//! Data flows one way, and so do imports:
//!
//! 1. [`sample`], [`gradient`]: samples, and the gradients of each in the form in which they were found, with
//!    their unit in the type; [`GradientSink`](gradient::GradientSink) is what takes them in.
//! 2. [`model`]: the parameters that gradients are of. [`grouping`]: their channels, rows, attention heads, layers.
//! 3. [`squares`]: squares summed over groups without all gradients at once.
//! 4. [`moments`]: means and variances over samples.
//! 5. [`statistics`]: the accumulators of several tasks, with their [`provenance`]; saved, loaded, merged.
//! 6. [`gates`]: what removing layers, heads and channels is predicted to cost.
//! 7. [`factors`]: second moments of inputs and output gradients, for the Fisher beyond its diagonal.
//! 8. [`store`]: the gradients themselves, to compare samples with each other.
//!
//! There is no autodiff and no loop here: gradients come from the crate `fisher-train`.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[doc(hidden)]
pub mod clusters;
pub mod container;
#[cfg(feature = "cube")]
mod device;
mod error;
pub mod factors;
pub mod gates;
pub mod gradient;
pub mod grouping;
mod host;
pub mod kind;
pub mod model;
pub mod moments;
mod pieces;
pub mod prelude;
pub mod provenance;
mod read;
pub mod sample;
pub mod squares;
pub mod statistics;
pub mod store;

pub use error::{Error, Result};
#[doc(hidden)]
pub use error::{check_argument, check_version, format_error, io_error};
#[doc(hidden)]
pub use pieces::pieces;
#[doc(hidden)]
pub use read::read;
