//! What a store takes.

use std::fmt;

/// What a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Samples of all tasks.
    pub samples: usize,
    /// Bytes of gradients in memory.
    pub memory: usize,
    /// Bytes that may be in memory.
    pub budget: usize,
    /// Bytes of gradients on disk.
    pub disk: u64,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: f64| bytes / 1e6;
        write!(
            f,
            "{} samples, {:.1} MB of {:.1} MB in memory, {:.1} MB on disk",
            self.samples,
            mb(self.memory as f64),
            mb(self.budget as f64),
            mb(self.disk as f64)
        )
    }
}
