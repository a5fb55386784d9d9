//! Vectors and kernels in the host's memory: what needs no tensor operation.

mod block;
mod ghost;
mod kernel;
mod one_position;
mod packed;
mod panels;
mod product;
mod rows;
mod shares;
mod values;
mod vectors;
mod whole;

pub(crate) use ghost::{GHOST, LOST, ghost};
pub(crate) use product::{Moments, Product, SideSums, Sides};
pub(crate) use rows::Rows;
pub(crate) use values::{Values, take};
#[cfg(feature = "cube")]
pub(crate) use vectors::is_cube;
pub(crate) use vectors::{contributions, give, is_host, moments, sum_columns, traces};
pub(crate) use whole::Whole;
