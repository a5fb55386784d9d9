//! The budget of an analysis of pairs: a device, memory, patience.

use burn::tensor::{DType, Device};
use indicatif::ProgressBar;
use rayon::prelude::*;

use super::products::{gram, products};
use super::rows::Rows;
use super::slices::Slice;
use crate::error::Result;
use crate::progress::styled;

/// A device and how much memory there is.
///
/// Half of the memory is for tiles of gradients, shared by the threads. The other half is for what
/// is held of whole slices (F, sums of products); where one slice alone needs more, it gets it, and
/// no other is worked on meanwhile.
pub(crate) struct Work {
    pub(crate) device: Device,
    /// Bytes of a tile.
    pub(crate) bytes: usize,
    /// Bytes for what is held of slices, by all threads together.
    held: usize,
    threads: usize,
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
        let threads = rayon::current_num_threads();
        Self {
            // As read, and as weighed in float64.
            bytes: (memory / 2 / threads / 3).clamp(1, LARGEST_TILE),
            held: memory / 2,
            threads,
            slack: if wide { 1e-12 } else { 1e-6 },
            device,
            wide,
        }
    }

    /// How many slices that need so many bytes each one thread takes on together.
    pub(crate) fn at_once(&self, need: usize) -> usize {
        (self.held / self.threads / need.max(1)).max(1)
    }

    /// The side of a square of float64 scores, all told twice, that fits a thread's share.
    pub(crate) fn side(&self, largest: usize) -> usize {
        let fits = self.held / self.threads / 16;
        fits.isqrt().clamp(1, largest)
    }

    /// `f` of every unit, as many in parallel as there is memory for what they need.
    pub(crate) fn map<T: Sync, R: Send>(
        &self,
        units: &[T],
        need: impl Fn(&T) -> usize,
        f: impl Fn(&T) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let mut found = Vec::with_capacity(units.len());
        self.each(units, need, f, |one| found.push(one))?;
        Ok(found)
    }

    /// The same, given one after the other in the order of the units.
    pub(crate) fn each<T: Sync, R: Send>(
        &self,
        units: &[T],
        need: impl Fn(&T) -> usize,
        f: impl Fn(&T) -> Result<R> + Sync,
        mut take: impl FnMut(R),
    ) -> Result<()> {
        let mut rest = units;
        while !rest.is_empty() {
            let mut sum = 0usize;
            let mut over = |unit: &T| {
                sum = sum.saturating_add(need(unit));
                sum > self.held
            };
            let fit = rest.iter().position(&mut over).unwrap_or(rest.len());
            let (now, later) = rest.split_at(fit.max(1));
            let found = now.par_iter().map(&f).collect::<Result<Vec<R>>>()?;
            found.into_iter().for_each(&mut take);
            rest = later;
        }
        Ok(())
    }

    /// Inner products of `left` rows with `right` ones over each slice, `[left, right]`.
    pub(crate) fn products(
        &self,
        slices: &[Slice],
        left: &Rows,
        right: &Rows,
    ) -> Result<Vec<Vec<f64>>> {
        let plain = |_: usize, _: usize, _: usize, run: &[f32], into: &mut [f64]| {
            let pairs = into.iter_mut().zip(run);
            pairs.for_each(|(into, &g)| *into = f64::from(g));
        };
        let (left, right) = ((left, plain), (right, plain));
        if self.wide {
            products::<f64>(slices, left, right, &self.device, self.bytes)
        } else {
            products::<f32>(slices, left, right, &self.device, self.bytes)
        }
    }

    /// Inner products of all rows over each slice, every element times `scale(slice, element)`.
    pub(crate) fn gram(
        &self,
        slices: &[Slice],
        rows: &Rows,
        scale: impl Fn(usize, usize) -> f64,
    ) -> Result<Vec<Vec<f64>>> {
        let weigh = |slice: usize, _, at: usize, run: &[f32], into: &mut [f64]| {
            for (k, (into, &g)) in into.iter_mut().zip(run).enumerate() {
                *into = f64::from(g) * scale(slice, at + k);
            }
        };
        if self.wide {
            gram::<f64>(slices, rows, weigh, &self.device, self.bytes)
        } else {
            gram::<f32>(slices, rows, weigh, &self.device, self.bytes)
        }
    }
}

/// A progress bar over parts of the work; hidden where standard error is no terminal.
pub(crate) fn bar(shown: bool, name: &'static str, length: usize) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length as u64);
    styled(bar, "{prefix} {wide_bar} {pos}/{len}, {eta} left", name)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    /// What is worked on together never needs more than there is, unless it is one unit alone.
    #[test]
    fn memory_bounds_what_is_held_together() {
        let work = Work::new(&Device::flex(), 200);
        let units: Vec<usize> = [30, 60, 5, 250, 7, 90, 1, 1, 100, 0].into();
        let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let found = work.map(
            &units,
            |need| *need,
            |&need| {
                let now = held.fetch_add(need, SeqCst) + need;
                assert!(now <= 100 || now == 250, "{now}");
                most.fetch_max(now, SeqCst);
                std::thread::yield_now();
                held.fetch_sub(need, SeqCst);
                Ok(need)
            },
        );
        assert_eq!(found.expect("all"), units);
        assert_eq!(most.into_inner(), 250);
        let (of_a_thread, threads) = (100 / work.threads, work.threads);
        assert_eq!(work.at_once(10), (of_a_thread / 10).max(1));
        assert_eq!(work.at_once(1000), 1);
        assert!(16 * work.side(1024).pow(2) <= (100 / threads).max(16));
        assert_eq!(Work::new(&Device::flex(), 1 << 40).side(1024), 1024);
    }
}
