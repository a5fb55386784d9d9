//! The exact spectrum of the full Fisher, by inner products of samples.

mod config;
mod dimension;
mod operator;
mod report;
mod slice;
mod words;

pub use crate::pairs::SliceBy;
pub use config::{Cutoff, SpectrumConfig};
pub use operator::Spectrum;
pub use report::{Direction, Part, SliceSpectrum, SpectrumReport};
