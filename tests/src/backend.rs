//! The devices that the suite runs on.

use std::io::Write;

use burn::tensor::Device;

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
            #[cfg(feature = "flex")]
            Self::Flex => Some(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated)] // tested for as long as Burn has it
            Self::Ndarray => Some(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => vulkan().then(|| Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[allow(unreachable_patterns)] // reachable where a feature is off
            other => {
                missing(other);
                None
            }
        }
    }
}

/// Tells once a process what was built without.
fn missing(backend: Backend) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    let name = format!("{backend:?}").to_lowercase();
    TOLD.call_once(|| skip(&format!("{name}: built without the feature `{name}`")));
}

/// Whether there is a device; looked for, and its absence told, once a process.
#[cfg(feature = "wgpu")]
fn vulkan() -> bool {
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = Device::enumerate(burn::tensor::DeviceType::Wgpu)
            .into_iter()
            .count()
            > 0;
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
    tell(&format!("SKIPPED {what}\n"));
}

/// Say what a backend does not have, wherever it runs: nothing that CI could put right.
///
/// # Panics
/// Never, but where standard error is closed.
pub fn absent(what: &str) {
    tell(&format!("ABSENT {what}\n"));
}

fn tell(line: &str) {
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("standard error");
}
