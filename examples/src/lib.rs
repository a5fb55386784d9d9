//! The small models and tasks that the programs share.

pub mod chapters;
pub mod chart;
pub mod collisions;
pub mod course;
// A link to the file of the program `fisher`: these compile without that program.
pub mod device;
pub mod digits;
pub mod groups;
pub mod model;
pub mod seeds;
pub mod tasks;
pub mod training;
pub mod truth;
pub mod usual;
