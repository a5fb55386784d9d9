//! Kernels on devices of CubeCL: wgpu (Vulkan, Metal, WebGPU), CUDA, its CPU.

mod door;
mod fold;
mod geometry;
mod kernel;
mod one_position;

pub(crate) use door::opens;
pub(crate) use fold::{Accumulators, Folded, Terms, fold};
pub(crate) use one_position::one_position;
