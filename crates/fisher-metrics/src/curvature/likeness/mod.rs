//! How alike the full Fishers of two tasks are.

mod angles;
mod operator;
mod overlap;
mod report;
mod words;

pub use crate::pairs::SliceBy;
pub use operator::{Likeness, LikenessConfig};
pub use report::{Angles, LikenessReport, Overlap, SliceLikeness};
