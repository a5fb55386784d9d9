//! `fisher influence`: which training samples move the losses of others.

mod args;
mod command;
mod gradients;
mod told;

pub use args::{InfluenceArgs, Inverted};
pub(crate) use command::influence;
