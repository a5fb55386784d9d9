//! The Fisher beyond its diagonal.

mod influence;
mod kronecker;
