//! The small models and tasks that the programs share.

pub mod chapters;
pub mod chart;
pub mod checkpoint;
pub mod collisions;
pub mod course;
pub mod decoder;
pub mod device;
pub mod memory;
pub mod model;
pub mod tasks;
pub mod training;
pub mod usual;
