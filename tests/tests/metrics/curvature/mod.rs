//! The full Fisher: its spectrum, likeness of two, products with vectors, approximations and influence; against dense matrices.

mod dense;
mod influence;
mod kronecker;
mod lanczos;
mod likeness;
mod spectrum;
