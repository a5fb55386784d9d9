//! Which samples of two tasks collide, where, and how surely.

mod cluster;
mod config;
mod operator;
mod report;
mod test;

pub use cluster::{Cluster, HotSpot, Involved};
pub use config::{ConflictsConfig, SliceBy};
pub use operator::Conflicts;
pub use report::{Conflict, ConflictReport, Pairs, SliceConflicts};
pub use test::MeanCosine;
