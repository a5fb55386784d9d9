//! The small models and tasks that the programs share.

pub mod chapters;
pub mod chart;
pub mod collisions;
pub mod course;
// One file, there: the program `fisher` ships it, and these compile without that program.
#[path = "../../crates/fisher-cli/src/device.rs"]
pub mod device;
pub mod model;
pub mod tasks;
pub mod training;
pub mod usual;
