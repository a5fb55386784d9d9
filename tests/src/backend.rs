//! The devices that the suite runs on.

use std::io::Write;
use std::sync::OnceLock;

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
    /// The device, or `None` on a machine without it (see [`skip`]).
    pub fn device(self) -> Option<Device> {
        match self {
            Self::Flex => Some(Device::flex()),
            #[allow(deprecated)] // tested for as long as Burn has it
            Self::Ndarray => Some(Device::ndarray()),
            Self::Wgpu => vulkan().then(|| Device::wgpu(DeviceKind::DefaultDevice)),
        }
    }
}

/// Whether there is a device; looked for, and its absence told, once a process.
fn vulkan() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = Device::enumerate(DeviceType::Wgpu).into_iter().count() > 0;
        if !found {
            skip("wgpu: no Vulkan device (packages mesa-vulkan-drivers and libvulkan1 have one)");
        }
        found
    })
}

/// Say what is not tested here and why, past the test harness, which keeps quiet about tests
/// that pass.
///
/// # Panics
/// Where the environment has `CI`: there nothing may be skipped.
pub fn skip(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI must not skip {what}");
    let line = format!("SKIPPED {what}\n");
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("standard error");
}
