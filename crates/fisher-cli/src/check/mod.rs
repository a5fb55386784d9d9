//! `fisher check`: whether a model and its data are fit to be measured, in minutes: each finding says what was tested, what was found
//! and where its bound lies.

mod args;
mod command;
mod data;
mod finding;
mod gradients;
mod losses;
mod repeated;
mod rounding;
mod special;
mod task_loss;
mod weights;

pub use args::CheckArgs;
pub(crate) use command::check;
pub use data::doubled;
pub use finding::{Finding, Findings, Judged};
pub use repeated::{Pair, Repeated, repeated};
pub use special::special_tokens;
pub use task_loss::TaskLoss;
