//! The full Fisher: its spectrum, likeness of two, products with vectors; against dense matrices.

mod dense;
mod lanczos;
mod likeness;
mod spectrum;
