//! What the tests share: devices, tolerances, golden cases, small models.

pub mod agree;
pub mod backend;
pub mod compare;
pub mod course;
pub mod differences;
pub mod golden;
pub mod layers;
pub mod models;
pub mod pupil;
pub mod signed;
pub mod subjects;
pub mod tolerance;

/// The README's program, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The programs of the chapter on the library.
#[cfg(doctest)]
#[doc = include_str!("../../docs/library.md")]
pub struct Library;

/// The program of the notes on Burn.
#[cfg(doctest)]
#[doc = include_str!("../../docs/burn.md")]
pub struct Burn;
