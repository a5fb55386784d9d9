#![doc = include_str!("../README.md")]
//! # Rooms
//!
//! Every analysis is an operator in Burn's manner: a configuration, `init()`, and `forward(..)` that gives a report.
//! Reports are serializable and print as tables.
//!
//! 1. [`importance`] ranks whole layers and heads, [`ranking`] every group; [`ranks`] says which ranks hold, [`shares`]
//!    how well shares are known.
//! 2. [`pruning`]: scores of groups or elements, the masks that prune the lowest, and how far those of two tasks agree.
//! 3. [`scaling`] divides gradients by the Fisher, [`damping`] says what is added to it.
//! 4. [`conflicts`]: where two tasks pull apart, which samples do, and how surely, by the tests of [`permutation`] and [`jackknife`].
//! 5. [`interference`] scores attention heads, sample against sample.
//! 6. [`jackknife`]: the sign of a mean over pairs of samples.
//! 6. [`curvature`]: the full Fisher, its spectrum, and how alike those of two tasks are.
//! 6. [`kinds`]: the empirical Fisher against the true one.
//! 6. [`truth`] holds scores of layers, heads and channels ([`candidates`]) against measured ablation.
//! 7. [`picture`]: maps of numbers as SVG.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod candidates;
pub mod conflicts;
pub mod correction;
pub mod curvature;
pub mod damping;
mod error;
pub mod growth;
pub mod importance;
pub mod interference;
pub mod jackknife;
pub mod kinds;
mod pairs;
pub mod permutation;
pub mod picture;
pub mod prelude;
#[doc(hidden)]
pub mod progress;
pub mod pruning;
pub mod ranking;
pub mod ranks;
pub mod report;
pub mod scaling;
pub mod shares;
pub mod truth;
pub mod weights;

#[doc(hidden)]
pub use error::check_argument;
pub use error::{Error, Result};
