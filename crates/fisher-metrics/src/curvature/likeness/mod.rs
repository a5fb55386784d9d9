//! How alike the full Fishers of two tasks are.

mod angles;
mod config;
mod operator;
mod overlap;
mod report;
mod words;

pub use crate::pairs::SliceBy;
pub use config::LikenessConfig;
pub use operator::Likeness;
pub use report::{Angles, LikenessReport, Overlap, SliceLikeness};
