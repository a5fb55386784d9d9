//! The gradients of all samples of a batch, with the losses that they are of and how far rounding may carry them.

mod captured;
mod rounding;
mod together;

pub(crate) use captured::{Captured, HELD, form};
pub(crate) use rounding::{Rounding, ratio};
pub(crate) use together::{Together, all_shortest, is_ragged};
