//! Pairs of samples: slices of the model, the samples' gradients as rows over them, and products
//! between rows, within a budget of memory.

mod budget;
mod choice;
mod dependence;
mod joined;
mod products;
mod rows;
mod slices;

pub(crate) use budget::{Work, bar};
pub use choice::SliceBy;
pub(crate) use dependence::Dependence;
pub(crate) use joined::{Joined, renumbered};
pub(crate) use products::products;
pub(crate) use rows::{Rows, View, fisher, for_each_run};
pub(crate) use slices::{BLOCKS, BlockSlices, Slice, head_slices};
