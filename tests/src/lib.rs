//! What the tests share: devices, tolerances, golden cases, small models.

pub mod backend;
pub mod golden;
pub mod models;
pub mod tolerance;
