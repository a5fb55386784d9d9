//! Devices whose tensors lie in the host's memory: there a tile of gradients is squared, reduced and
//! accumulated in two sweeps through the cache, where tensor operations would go through memory ten
//! times.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pulp::Arch;
use rayon::prelude::*;

use crate::{Error, Result};

/// Whether tensors of `device` can be read and made without a transfer.
pub(crate) fn is_host(device: &Device) -> bool {
    let known = [
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "supported as long as Burn has it")]
        Device::ndarray(),
    ];
    known.contains(device)
}

/// The values, without a copy where nobody else holds the tensor.
pub(crate) fn take<E: burn::tensor::Element, const D: usize>(tensor: Tensor<D>) -> Result<Vec<E>> {
    let device = |e: String| Error::Device { reason: e };
    let data = tensor.try_into_data().map_err(|e| device(e.to_string()))?;
    data.try_into_vec().map_err(|e| device(format!("{e:?}")))
}

/// The other way.
pub(crate) fn give(values: Vec<f64>, device: &Device) -> Tensor<1> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), (device, DType::F64))
}

/// Roots of contributions, `C = root² · scale²`, of some rows of a parameter.
pub(crate) struct Tile {
    /// `[samples, height, width]`
    roots: Vec<f32>,
    samples: usize,
    height: usize,
    width: usize,
    scale: f64,
}

/// What of a tile's contributions is wanted besides their moments.
#[derive(Clone, Copy)]
pub(crate) struct Sides {
    pub(crate) rows: bool,
    pub(crate) columns: bool,
}

/// Sums of a tile's contributions.
pub(crate) struct SideSums {
    /// `[samples, height]`, empty where not wanted.
    pub(crate) rows: Vec<f64>,
    /// `[samples, width]`, likewise.
    pub(crate) columns: Vec<f64>,
}

/// Mean and M2 of the tile's elements over `before` samples.
pub(crate) struct Moments<'a> {
    pub(crate) before: u64,
    pub(crate) mean: &'a mut [f64],
    pub(crate) m2: Option<&'a mut [f64]>,
}

/// Elements that are worked on at a time: the sums stay in the first-level cache.
const SEGMENT: usize = 256;
/// Squares that are summed in float32 before they go to float64.
const BURST: usize = 8;
/// Running sums side by side, so that they can be vectors.
const LANES: usize = 16;

/// Largest roots whose squares, and those of roots 1e-15 as large, are well in float32's range.
const COMFORTABLE: Range<f32> = 1e-4..1e6;

impl Tile {
    /// A tile of `[samples, height, width]` roots.
    pub(crate) fn new(mut roots: Vec<f32>, [samples, height, width]: [usize; 3]) -> Self {
        let mut largest = 0.0f32;
        Arch::new().dispatch(|| largest = roots.iter().fold(0.0, |max, r| r.abs().max(max)));
        let scale = match largest {
            0.0 => 1.0,
            largest if !largest.is_finite() || COMFORTABLE.contains(&largest) => 1.0,
            largest => {
                roots.iter_mut().for_each(|root| *root /= largest);
                f64::from(largest)
            }
        };
        Self {
            roots,
            samples,
            height,
            width,
            scale,
        }
    }

    /// Fold the contributions into their elements' moments, if these are wanted, and sum them
    /// over the sides.
    pub(crate) fn fold(&self, moments: Option<Moments>, sides: Sides) -> SideSums {
        let elements = self.height * self.width;
        let share = elements.div_ceil(rayon::current_num_threads()).max(SEGMENT);
        let parts: Vec<Part> = match moments {
            None => (0..elements)
                .into_par_iter()
                .step_by(share)
                .map(|start| self.part(start..elements.min(start + share), None, sides))
                .collect(),
            Some(Moments { before, mean, m2 }) => {
                let m2s: Vec<Option<&mut [f64]>> = match m2 {
                    Some(m2) => m2.chunks_mut(share).map(Some).collect(),
                    None => mean.chunks(share).map(|_| None).collect(),
                };
                let shares = mean.par_chunks_mut(share).zip(m2s).enumerate();
                let fold = |(index, (mean, m2)): (usize, (&mut [f64], Option<&mut [f64]>))| {
                    let range = index * share..index * share + mean.len();
                    self.part(range, Some(Moments { before, mean, m2 }), sides)
                };
                shares.map(fold).collect()
            }
        };
        let mut sums = SideSums {
            rows: vec![
                0.0;
                if sides.rows {
                    self.samples * self.height
                } else {
                    0
                }
            ],
            columns: vec![
                0.0;
                if sides.columns {
                    self.samples * self.width
                } else {
                    0
                }
            ],
        };
        let square = self.scale * self.scale;
        for part in parts {
            for (row, of_samples) in (part.first..).zip(part.rows.chunks(self.samples)) {
                for (sample, sum) in of_samples.iter().enumerate() {
                    sums.rows[sample * self.height + row] += sum * square;
                }
            }
            let columns = sums.columns.iter_mut().zip(&part.columns);
            columns.for_each(|(sum, part)| *sum += part * square);
        }
        sums
    }

    /// One thread's share, a range of the flattened tile.
    fn part(&self, range: Range<usize>, mut moments: Option<Moments>, sides: Sides) -> Part {
        let rows = range.start / self.width..range.end.div_ceil(self.width);
        let mut part = Part {
            first: rows.start,
            rows: vec![
                0.0;
                if sides.rows {
                    self.samples * rows.len()
                } else {
                    0
                }
            ],
            columns: vec![
                0.0;
                if sides.columns {
                    self.samples * self.width
                } else {
                    0
                }
            ],
        };
        Arch::new().dispatch(|| {
            let mut start = range.start;
            while start < range.end {
                let row = start / self.width;
                let end = range.end.min((row + 1) * self.width).min(start + SEGMENT);
                let moments = moments.as_mut().map(|m| {
                    let own = start - range.start..end - range.start;
                    Moments {
                        before: m.before,
                        mean: &mut m.mean[own.clone()],
                        m2: m.m2.as_mut().map(|m2| &mut m2[own]),
                    }
                });
                self.segment(start..end, moments, &mut part);
                start = end;
            }
        });
        part
    }

    /// The roots of one sample.
    #[inline(always)]
    fn roots(&self, sample: usize, range: &Range<usize>) -> &[f32] {
        let offset = sample * self.height * self.width;
        &self.roots[offset + range.start..offset + range.end]
    }

    /// Elements of one row.
    #[inline(always)]
    fn segment(&self, range: Range<usize>, moments: Option<Moments>, part: &mut Part) {
        let (row, column) = (range.start / self.width, range.start % self.width);
        if !part.rows.is_empty() {
            let first = (row - part.first) * self.samples;
            let sums = &mut part.rows[first..first + self.samples];
            for (sample, sum) in sums.iter_mut().enumerate() {
                *sum += sum_of_squares(self.roots(sample, &range));
            }
        }
        if !part.columns.is_empty() {
            for sample in 0..self.samples {
                let sums = &mut part.columns[sample * self.width + column..];
                for (sum, root) in sums.iter_mut().zip(self.roots(sample, &range)) {
                    *sum += f64::from(root * root);
                }
            }
        }
        if let Some(moments) = moments {
            self.accumulate(range, moments);
        }
    }

    /// Welford's update by a batch (Chan et al.), the batch's own moments taken about its mean.
    #[inline(always)]
    fn accumulate(&self, range: Range<usize>, moments: Moments) {
        let width = range.len();
        let (before, added) = (moments.before as f64, self.samples as f64);
        let weight = added / (before + added);
        let square = self.scale * self.scale;

        let mut sums = [0.0f64; SEGMENT];
        for first in (0..self.samples).step_by(BURST) {
            let mut burst = [0.0f32; SEGMENT];
            for sample in first..self.samples.min(first + BURST) {
                for (sum, root) in burst[..width].iter_mut().zip(self.roots(sample, &range)) {
                    *sum += root * root;
                }
            }
            for (sum, burst) in sums[..width].iter_mut().zip(&burst[..width]) {
                *sum += f64::from(*burst);
            }
        }
        let Some(m2) = moments.m2 else {
            for (mean, sum) in moments.mean.iter_mut().zip(&sums[..width]) {
                *mean += (sum / added * square - *mean) * weight;
            }
            return;
        };

        let mut pivots = [0.0f32; SEGMENT];
        for (pivot, sum) in pivots[..width].iter_mut().zip(&sums[..width]) {
            *pivot = (sum / added) as f32;
        }
        let mut deviations = [0.0f64; SEGMENT];
        for sample in 0..self.samples {
            let roots = self.roots(sample, &range);
            for ((sum, root), pivot) in deviations[..width].iter_mut().zip(roots).zip(&pivots) {
                let deviation = f64::from(root * root - pivot);
                *sum += deviation * deviation;
            }
        }
        for (k, (mean, m2)) in moments.mean.iter_mut().zip(m2).enumerate() {
            // The pivot is the mean but for its rounding to float32.
            let rest = sums[k] / added - f64::from(pivots[k]);
            let within = (deviations[k] - added * rest * rest).max(0.0) * square * square;
            let step = sums[k] / added * square - *mean;
            *mean += step * weight;
            *m2 += within + step * step * before * weight;
        }
    }
}

/// Sums of one thread's share, without the scale.
struct Part {
    /// The first row it has a part of.
    first: usize,
    /// `[rows, samples]`
    rows: Vec<f64>,
    /// `[samples, width]`
    columns: Vec<f64>,
}

#[inline(always)]
fn sum_of_squares(roots: &[f32]) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = roots.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, root) in lanes.iter_mut().zip(chunk) {
            *lane += root * root;
        }
    }
    let lanes: f64 = lanes.iter().map(|&lane| f64::from(lane)).sum();
    lanes + rest.iter().map(|&root| f64::from(root * root)).sum::<f64>()
}
