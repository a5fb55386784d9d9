//! What an analysis of pairs works with: a device, memory, patience.

use burn::tensor::{DType, Device};
use indicatif::{ProgressBar, ProgressStyle};

use crate::Result;
use crate::pairs::{Rows, Slice, gram};

/// A device and how much memory one thread may take.
pub(crate) struct Work {
    pub(crate) device: Device,
    /// Bytes of a tile.
    pub(crate) bytes: usize,
    /// Products in float64, where the device has it.
    pub(crate) wide: bool,
    /// Scores that differ by less than this share of the largest are equal: what products of
    /// float64, or of float32, round off.
    pub(crate) slack: f64,
}

/// A tile need not be larger than this to be read and multiplied at full speed.
const LARGEST_TILE: usize = 16 << 20;

impl Work {
    pub(crate) fn new(device: &Device, memory: usize) -> Self {
        let device = device.clone().without_autodiff();
        let wide = device.supports_dtype(DType::F64);
        Self {
            // As read, and as weighed for each side.
            bytes: (memory / rayon::current_num_threads() / 3).clamp(1, LARGEST_TILE),
            slack: if wide { 1e-12 } else { 1e-6 },
            device,
            wide,
        }
    }

    /// Inner products of all rows over each slice, every element times `scale(slice, element)`.
    pub(crate) fn gram(
        &self,
        slices: &[Slice],
        rows: &Rows,
        scale: impl Fn(usize, usize) -> f64,
    ) -> Result<Vec<Vec<f64>>> {
        let (device, bytes) = (&self.device, self.bytes);
        if self.wide {
            let weigh = |slice: usize, _, at: usize, run: &[f32], into: &mut [f64]| {
                for (k, (into, &g)) in into.iter_mut().zip(run).enumerate() {
                    *into = f64::from(g) * scale(slice, at + k);
                }
            };
            return gram(slices, rows, weigh, device, bytes);
        }
        let weigh = |slice: usize, _, at: usize, run: &[f32], into: &mut [f32]| {
            for (k, (into, &g)) in into.iter_mut().zip(run).enumerate() {
                *into = (f64::from(g) * scale(slice, at + k)) as f32;
            }
        };
        gram(slices, rows, weigh, device, bytes)
    }
}

/// A progress bar over parts of the work; hidden where standard error is no terminal.
pub(crate) fn bar(shown: bool, name: &'static str, length: usize) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len}, {eta} left");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64)
        .with_style(style)
        .with_prefix(name)
}
