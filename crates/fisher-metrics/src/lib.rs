#![doc = include_str!("../README.md")]
//! # Rooms
//!
//! Every analysis is an operator in Burn's manner: a configuration, `init()`, and `forward(..)` that gives a report.
//! Reports are serializable and print as tables.
//!
//! 1. [`importance`] ranks whole layers and heads, [`ranking`] every group, with error bars.
//! 2. [`pruning`]: scores of groups or elements, the masks that prune the lowest, and how far those of two tasks agree.
//! 3. [`scaling`] divides gradients by the Fisher, [`damping`] says what is added to it.
//! 4. [`conflicts`]: where two tasks pull apart, which samples do, and how surely, by the tests of [`permutation`] and [`jackknife`].
//! 5. [`interference`] scores attention heads, sample against sample.
//! 6. [`picture`]: maps of numbers as SVG.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod conflicts;
pub mod correction;
pub mod damping;
mod error;
pub mod growth;
pub mod importance;
pub mod interference;
pub mod jackknife;
mod pairs;
pub mod permutation;
pub mod picture;
pub mod prelude;
#[doc(hidden)]
pub mod progress;
pub mod pruning;
pub mod ranking;
pub mod report;
pub mod scaling;
pub mod weights;

#[doc(hidden)]
pub use error::check_argument;
pub use error::{Error, Result};
