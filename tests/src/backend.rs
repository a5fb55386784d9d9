//! The devices that the suite runs on.

use burn::tensor::{Device, DeviceKind, DeviceType};

/// A backend under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Burn's CPU backend.
    Flex,
    /// The ndarray CPU backend.
    Ndarray,
    /// Vulkan, by lavapipe where there is no GPU.
    Wgpu,
}

impl Backend {
    /// The device, or `None` with a line that says so on a machine without it.
    ///
    /// # Panics
    /// Where the environment has `CI` and the device is missing: there nothing may be skipped.
    pub fn device(self) -> Option<Device> {
        match self {
            Self::Flex => Some(Device::flex()),
            #[allow(deprecated)] // tested for as long as Burn has it
            Self::Ndarray => Some(Device::ndarray()),
            Self::Wgpu => {
                let device = Device::wgpu(DeviceKind::DefaultDevice);
                if Device::enumerate(DeviceType::Wgpu).into_iter().count() > 0 {
                    return Some(device);
                }
                assert!(
                    std::env::var_os("CI").is_none(),
                    "no Vulkan device; install mesa-vulkan-drivers and libvulkan1"
                );
                eprintln!("SKIPPED on wgpu: no Vulkan device (mesa-vulkan-drivers has one)");
                None
            }
        }
    }
}
