//! The gradients of all samples of a batch: as factors that need not be multiplied out, with the losses that they are of
//! and how far rounding may carry them.

mod captured;
mod factors;
mod moments;
mod rounding;
mod together;

pub(crate) use captured::{Captured, HELD};
pub(crate) use factors::{Factors, Lookup, Product, transpose};
pub(crate) use moments::SquaredNorms;
pub(crate) use rounding::{Rounding, ratio};
pub(crate) use together::{Together, all_shortest, is_ragged};
