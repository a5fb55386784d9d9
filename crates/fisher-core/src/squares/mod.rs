//! Squares of per-sample gradients that come as outer products or as rows of a table, in sums that
//! need less than the gradients themselves.

mod lookup;
mod norms;
mod outer;
mod wanted;
mod way;

pub use norms::{SquaredNorms, squared_norms};
pub use way::Way;

pub(crate) use lookup::Lookup;
pub(crate) use outer::Outer;
#[cfg(feature = "cube")]
pub(crate) use outer::for_kernel;
pub(crate) use wanted::Wanted;
