//! `--device` on the command line.

use burn::tensor::Device;
use clap::ValueEnum;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Burn's CPU backend.
    Flex,
    /// The ndarray CPU backend (deprecated in Burn).
    Ndarray,
    /// Any GPU by Vulkan, Metal or WebGPU; or a software Vulkan such as lavapipe.
    Wgpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl Backend {
    /// The device, if this program was built with its feature.
    ///
    /// # Errors
    /// What to build with, when it was not.
    pub fn device(self) -> Result<Device, String> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated)] // supported for as long as Burn has it
            Self::Ndarray => Ok(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(Device::cuda(0)),
            #[allow(unreachable_patterns)] // reachable where a feature is off
            other => Err(format!(
                "this program was built without {other:?}; build it with `--features {}`",
                format!("{other:?}").to_lowercase()
            )),
        }
    }
}
