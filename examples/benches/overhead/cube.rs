//! Devices of CubeCL: their names, kernels and memory.

pub(crate) use device::Cube;

/// What was launched while something ran.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Launched {
    /// Kernels.
    pub(crate) launches: usize,
    /// Kernels of different names.
    pub(crate) kernels: usize,
    /// The most bytes in use, looked at before every launch and at the end.
    pub(crate) most: u64,
}

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu"))]
mod device {
    use std::collections::HashSet;
    use std::sync::{Arc, Mutex, PoisonError};

    use burn::backend::DispatchDevice;
    use burn::tensor::Device;
    use cubecl::MemoryScope;
    use cubecl::client::Client;
    use cubecl::logging::{LaunchObservation, LaunchObserver};

    use super::Launched;
    use crate::Outcome;

    #[derive(Clone)]
    pub(crate) struct Cube(Client);

    impl Cube {
        /// `device`, if it is one of CubeCL's.
        pub(crate) fn of(device: &Device) -> Option<Self> {
            match device.clone().without_autodiff().as_dispatch() {
                DispatchDevice::Cube(device) => Some(Self(device.client())),
                _ => None,
            }
        }

        /// As it names itself.
        pub(crate) fn name(&self) -> String {
            self.0.properties().identity.name.clone()
        }

        /// Bytes in use, without what is kept for later.
        pub(crate) fn in_use(&self) -> u64 {
            self.0
                .memory_report(MemoryScope::Device)
                .usage()
                .bytes_in_use
        }

        /// Run something and count what it launches.
        pub(crate) fn watch(&self, run: impl FnOnce() -> Outcome) -> Outcome<Launched> {
            let counter = Arc::new(Counter {
                cube: self.clone(),
                seen: Mutex::default(),
            });
            let watching = LaunchObservation::new(counter.clone());
            run()?;
            drop(watching);
            let seen = counter.seen.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Launched {
                most: seen.0.most.max(self.in_use()),
                kernels: seen.1.len(),
                ..seen.0
            })
        }
    }

    struct Counter {
        cube: Cube,
        seen: Mutex<(Launched, HashSet<&'static str>)>,
    }

    impl LaunchObserver for Counter {
        fn launched(&self, kernel: &'static str) {
            let in_use = self.cube.in_use();
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.0.launches += 1;
            seen.0.most = seen.0.most.max(in_use);
            seen.1.insert(kernel);
        }
    }
}

#[cfg(not(any(feature = "wgpu", feature = "cuda", feature = "cpu")))]
mod device {
    use burn::tensor::Device;

    use super::Launched;
    use crate::Outcome;

    /// There is none in this build.
    pub(crate) enum Cube {}

    impl Cube {
        pub(crate) fn of(_: &Device) -> Option<Self> {
            None
        }

        pub(crate) fn name(&self) -> String {
            match *self {}
        }

        pub(crate) fn in_use(&self) -> u64 {
            match *self {}
        }

        pub(crate) fn watch(&self, _: impl FnOnce() -> Outcome) -> Outcome<Launched> {
            match *self {}
        }
    }
}
