//! The Fisher beyond its diagonal.

mod kronecker;
