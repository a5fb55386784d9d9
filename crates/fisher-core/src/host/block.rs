//! The squares of all samples at a few rows and columns, while they are in registers.

use super::packed::Packed;
use super::panels::{Cells, R, gradient};
use super::product::Moments;

/// Samples whose squares are summed in float32 before they go to float64.
const BURST: usize = 16;
/// What a sample counts for in the mean of its burst so far.
const SHARES: [f32; BURST] = {
    let mut shares = [1.0; BURST];
    let mut at = 0;
    while at < BURST {
        shares[at] = 1.0 / (at + 1) as f32;
        at += 1;
    }
    shares
};
/// Partial sums over columns, side by side.
pub(super) const LANES: usize = 16;

/// Where a block's sums go, and the weights of its rows and columns in them.
pub(super) struct SidesOfBlock<'a, const C: usize> {
    /// `[R, samples]`
    pub(super) rows: &'a mut [[f32; LANES]],
    /// `[samples]`
    pub(super) columns: &'a mut [[f32; C]],
    pub(super) left: [f32; R],
    pub(super) right: [f32; C],
}

/// All samples at `R` rows and `C` columns.
#[inline(always)]
pub(super) fn block<const C: usize>(
    product: &Packed<C>,
    at: [usize; 2],
    first_row: usize,
    moments: Option<&mut Moments>,
    sides: SidesOfBlock<C>,
) {
    let (samples, positions) = (product.samples, product.positions);
    let (left, right) = (product.left.block(at[0]), product.right.block(at[1]));
    let variance = moments.as_ref().is_some_and(|m| m.m2.is_some());
    let mut running = Running::new();
    // Of the samples of a burst: sums; or, where M2 is wanted, means.
    let mut sums = [[0.0f32; C]; R];
    let mut m2s = [[0.0f32; C]; R];
    for sample in 0..samples {
        let range = sample * positions..(sample + 1) * positions;
        let mut squares = gradient(&left[range.clone()], &right[range]);
        if !product.squared {
            for cells in &mut squares {
                cells.iter_mut().for_each(|cell| *cell *= *cell);
            }
        }
        if !sides.rows.is_empty() {
            for (r, cells) in squares.iter().enumerate() {
                let mut sums = [0.0f32; LANES];
                let chunks = cells.chunks_exact(LANES);
                for (cells, weights) in chunks.zip(sides.right.chunks_exact(LANES)) {
                    for lane in 0..LANES {
                        sums[lane] = cells[lane].mul_add(weights[lane], sums[lane]);
                    }
                }
                let lanes = sides.rows[r * samples + sample].iter_mut();
                lanes.zip(sums).for_each(|(lane, sum)| *lane += sum);
            }
        }
        if !sides.columns.is_empty() {
            let mut sums = [0.0f32; C];
            for (cells, weight) in squares.iter().zip(sides.left) {
                for c in 0..C {
                    sums[c] = cells[c].mul_add(weight, sums[c]);
                }
            }
            let columns = sides.columns[sample].iter_mut();
            columns.zip(sums).for_each(|(column, sum)| *column += sum);
        }
        if moments.is_none() {
            continue;
        }
        let in_burst = sample % BURST;
        if variance {
            // Sample by sample (Welford): deviations from one that stands out would lose digits.
            let share = SHARES[in_burst];
            for r in 0..R {
                for c in 0..C {
                    let step = squares[r][c] - sums[r][c];
                    sums[r][c] = step.mul_add(share, sums[r][c]);
                    m2s[r][c] = step.mul_add(squares[r][c] - sums[r][c], m2s[r][c]);
                }
            }
        } else {
            for r in 0..R {
                for c in 0..C {
                    sums[r][c] += squares[r][c];
                }
            }
        }
        if in_burst + 1 == BURST || sample + 1 == samples {
            running.absorb(in_burst + 1, &mut sums, variance.then_some(&mut m2s));
        }
    }
    if let Some(moments) = moments {
        product.merge(at, first_row, moments, &running.means, &running.m2s);
    }
}

/// Mean and M2 of the samples so far.
struct Running<const C: usize> {
    count: f64,
    means: Cells<f64, C>,
    m2s: Cells<f64, C>,
}

impl<const C: usize> Running<C> {
    #[inline(always)]
    fn new() -> Self {
        Self {
            count: 0.0,
            means: [[0.0; C]; R],
            m2s: [[0.0; C]; R],
        }
    }

    /// Take in `count` samples: their means and M2, or else their sums.
    #[inline(always)]
    fn absorb(&mut self, count: usize, sums: &mut Cells<f32, C>, m2s: Option<&mut Cells<f32, C>>) {
        let count = count as f64;
        let weight = count / (self.count + count);
        let between = self.count * weight;
        if let Some(m2s) = m2s {
            for r in 0..R {
                for c in 0..C {
                    let step = f64::from(sums[r][c]) - self.means[r][c];
                    self.m2s[r][c] += f64::from(m2s[r][c]) + step * step * between;
                    self.means[r][c] += step * weight;
                }
            }
            *m2s = [[0.0; C]; R];
        } else {
            let inverse = count.recip();
            for (means, sums) in self.means.iter_mut().zip(&*sums) {
                for (mean, sum) in means.iter_mut().zip(sums) {
                    *mean += (f64::from(*sum) * inverse - *mean) * weight;
                }
            }
        }
        *sums = [[0.0; C]; R];
        self.count += count;
    }
}
