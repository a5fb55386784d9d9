//! Kernels on devices of CubeCL: wgpu (Vulkan, Metal, WebGPU), CUDA, its CPU.

mod door;
mod fold;
mod geometry;
mod kernel;

pub(crate) use fold::{Accumulators, Folded, Terms, fold};
