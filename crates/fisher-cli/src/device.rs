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
    /// CubeCL's kernels on the CPU.
    Cpu,
    /// A device of one of Burn's remote servers: `FISHER_REMOTE` is its address, such as
    /// `ws://host:3000`, and `FISHER_REMOTE_TOKEN` what it asks for.
    Remote,
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
            #[cfg(feature = "cpu")]
            Self::Cpu => Ok(Device::cpu()),
            #[cfg(feature = "remote")]
            Self::Remote => remote(),
            #[allow(unreachable_patterns)] // reachable where a feature is off
            other => {
                let name = |backend: &Self| format!("{backend:?}").to_lowercase();
                let built: Vec<String> = BUILT.iter().map(name).collect();
                let other = name(&other);
                Err(format!(
                    "this program was built without {other}, and has --device {}; {other} needs one built with \
                     `--features {other}`",
                    built.join(", ")
                ))
            }
        }
    }
}

/// Those that this program was built with.
const BUILT: &[Backend] = &[
    #[cfg(feature = "flex")]
    Backend::Flex,
    #[cfg(feature = "ndarray")]
    Backend::Ndarray,
    #[cfg(feature = "wgpu")]
    Backend::Wgpu,
    #[cfg(feature = "cuda")]
    Backend::Cuda,
    #[cfg(feature = "cpu")]
    Backend::Cpu,
    #[cfg(feature = "remote")]
    Backend::Remote,
];

#[cfg(feature = "remote")]
fn remote() -> Result<Device, String> {
    let address = std::env::var("FISHER_REMOTE")
        .map_err(|_| "set FISHER_REMOTE to the address of a server, such as ws://host:3000")?;
    let mut host = burn::remote::RemoteHost::websocket(&address);
    if let Ok(token) = std::env::var("FISHER_REMOTE_TOKEN") {
        host = host.with_credential(token.as_str());
    }
    let device = Device::remote_options(&host).init();
    device.map_err(|e| format!("no device at {address}: {e}"))
}

#[cfg(all(test, feature = "flex", not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_built_in_is_told_beside_what_is() {
        let error = Backend::Cuda.device().expect_err("no CUDA");
        assert!(error.contains("has --device flex"), "{error}");
        assert!(error.contains("--features cuda"), "{error}");
    }
}
