//! Work and accumulators, cut for the threads.

use std::ops::Range;

use super::product::Moments;
use crate::pieces::pieces;

/// Parts that work is cut into: not by the number of threads, on which no rounding may depend. Sums
/// over rows are kept for each.
const SHARES: usize = 8;

/// Stretches of `0..length`, each of whose places has `width` elements, and their moments.
pub(super) fn shares(
    length: usize,
    width: usize,
    moments: Option<Moments>,
) -> Vec<(Range<usize>, Option<Moments>)> {
    let step = length.div_ceil(SHARES).max(1);
    let ranges = pieces(length, step);
    let Some(Moments { before, mean, m2 }) = moments else {
        return ranges.map(|range| (range, None)).collect();
    };
    let elements = (step * width).max(1);
    let m2s: Vec<Option<&mut [f64]>> = match m2 {
        Some(m2) => m2.chunks_mut(elements).map(Some).collect(),
        None => ranges.clone().map(|_| None).collect(),
    };
    let moments = mean.chunks_mut(elements).zip(m2s);
    let moments = moments.map(|(mean, m2)| Some(Moments { before, mean, m2 }));
    ranges.zip(moments).collect()
}
