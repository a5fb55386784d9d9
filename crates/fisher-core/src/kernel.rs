//! Contributions of gradients that are products, on the host: multiplied, squared, reduced and
//! accumulated while they are in registers, so that no gradient is ever written to memory.

use std::ops::Range;

use macerator::{AutoArch, Simd, WithSimd};
use rayon::prelude::*;

/// Gradients `g_i = L_iᵀ R_i` of a parameter `[rows, columns]`.
pub(crate) struct Product {
    pub(crate) samples: usize,
    /// Of every sample.
    pub(crate) positions: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// `[samples, positions, rows]`
    pub(crate) left: Vec<f32>,
    /// `[samples, positions, columns]`
    pub(crate) right: Vec<f32>,
    /// What each sample's gradients are multiplied by before they are squared.
    pub(crate) roots: Vec<f32>,
}

/// Mean and M2 of the elements, `[rows, columns]`, over `before` samples.
pub(crate) struct Moments<'a> {
    pub(crate) before: u64,
    pub(crate) mean: &'a mut [f64],
    pub(crate) m2: Option<&'a mut [f64]>,
}

/// Over which sides contributions are to be summed.
#[derive(Clone, Copy)]
pub(crate) struct Sides {
    pub(crate) rows: bool,
    pub(crate) columns: bool,
}

/// Sums of contributions over the sides, empty where not wanted.
#[derive(Default)]
pub(crate) struct SideSums {
    /// `[samples, rows]`
    pub(crate) rows: Vec<f64>,
    /// `[samples, columns]`
    pub(crate) columns: Vec<f64>,
}

impl Product {
    /// Fold the squares of the gradients into their elements' moments, if these are wanted, and
    /// sum them over the sides.
    ///
    /// Squares of elements are summed in float32 over few samples, then in float64; sums over the
    /// sides are float32 along the side. With one position a sample, M2 is had from sums of fourth
    /// powers, but where contributions hardly vary.
    ///
    /// Columns are scaled, samples are not: where all that a column has is 1e-19 of its largest
    /// value in another sample, or 1e-10 for M2, it may read 0.
    pub(crate) fn fold(self, moments: Option<Moments>, sides: Sides) -> SideSums {
        // As many columns at a time as two vectors have: the sums then fit the registers.
        match AutoArch::new().dispatch(Lanes) {
            16 => self.fold_in::<32>(moments, sides),
            _ => self.fold_in::<16>(moments, sides),
        }
    }

    fn fold_in<const C: usize>(self, moments: Option<Moments>, sides: Sides) -> SideSums {
        if self.positions > 1 || self.samples == 1 {
            return Packed::<C>::new(self).fold(moments, sides);
        }
        let sums = self.side_sums(sides);
        if let Some(moments) = moments {
            Packed::<C>::new(self).fold_squares(moments);
        }
        sums
    }

    /// `l_i² Σ r_i²` and `r_i² Σ l_i²`, for one position a sample.
    fn side_sums(&self, sides: Sides) -> SideSums {
        let mut sums = SideSums::default();
        let square = |x: &f32| f64::from(*x) * f64::from(*x);
        let samples = self
            .left
            .chunks_exact(self.rows)
            .zip(self.right.chunks_exact(self.columns));
        for ((left, right), root) in samples.zip(&self.roots) {
            let weight = square(root);
            if sides.rows {
                let total = right.iter().map(square).sum::<f64>() * weight;
                sums.rows.extend(left.iter().map(|l| square(l) * total));
            }
            if sides.columns {
                let total = left.iter().map(square).sum::<f64>() * weight;
                sums.columns.extend(right.iter().map(|r| square(r) * total));
            }
        }
        sums
    }
}

/// The number of float32 in a vector of this machine.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> usize {
        S::lanes32()
    }
}

/// Rows that are worked on at a time.
const R: usize = 6;
/// Samples whose squares are summed in float32 before they go to float64.
const BURST: usize = 16;
/// Likewise, where a sample has one position.
const LONG_BURST: usize = 64;
/// A variance of less than this share of the squared mean is not had from sums of fourth powers.
const CANCELLED: f64 = 1e-2;
/// A sum of squares of less than this share of what it can be at most is not had by a ghost.
pub(crate) const GHOST: f64 = 1e-3;
/// One in so many such sums may be had from its gradients; with more, ghosts are not worth it.
pub(crate) const LOST: usize = 8;
/// Partial sums over columns, side by side.
const LANES: usize = 16;
/// Parts that work is cut into: not by the number of threads, on which no rounding may depend. Sums
/// over rows are kept for each.
const SHARES: usize = 8;

/// One side of a product in the order it is read: blocks of `W` columns, each `[length, W]`.
///
/// Every column is divided by a power of two close to its largest value, so that squares and their
/// squares stay in float32's range whatever the scale of layer and loss.
struct Panels<const W: usize> {
    values: Vec<[f32; W]>,
    length: usize,
    /// Of every column, and of padding.
    scales: Vec<f64>,
    largest: f64,
}

impl<const W: usize> Panels<W> {
    /// `factors` are of samples, which are equal stretches of `values`.
    fn new(values: &[f32], side: usize, factors: &[f32]) -> Self {
        let length = values.len() / side;
        let positions = length / factors.len();
        let blocks = side.div_ceil(W);
        let rows = length.div_ceil(rayon::current_num_threads()).max(1);
        let maxima = values.par_chunks(rows * side).map(|rows| {
            let mut largest = vec![0.0f32; blocks * W];
            for row in rows.chunks_exact(side) {
                for (largest, value) in largest.iter_mut().zip(row) {
                    // Unlike `max`, this takes a vector instruction.
                    let value = value.abs();
                    *largest = if value > *largest { value } else { *largest };
                }
            }
            largest
        });
        let largest = maxima.reduce(
            || vec![0.0; blocks * W],
            |a, b| a.into_iter().zip(b).map(|(a, b)| a.max(b)).collect(),
        );
        let scales: Vec<f32> = largest.into_iter().map(power_of_two).collect();
        let mut panels = vec![[0.0; W]; blocks * length];
        let fill = |(block, panel): (usize, &mut [[f32; W]])| {
            let columns = block * W..side.min((block + 1) * W);
            let mut inverses = [0.0; W];
            for (inverse, scale) in inverses.iter_mut().zip(&scales[columns.clone()]) {
                *inverse = scale.recip();
            }
            let rows = values.chunks_exact(side).zip(panel);
            for (at, (row, cells)) in rows.enumerate() {
                let factor = factors[at / positions];
                let cells = cells.iter_mut().zip(&row[columns.clone()]).zip(&inverses);
                cells.for_each(|((cell, value), inverse)| *cell = value * inverse * factor);
            }
        };
        panels
            .par_chunks_mut(length.max(1))
            .enumerate()
            .for_each(fill);
        Self {
            values: panels,
            length,
            largest: scales.iter().copied().fold(0.0, f32::max).into(),
            scales: scales.into_iter().map(f64::from).collect(),
        }
    }

    #[inline(always)]
    fn block(&self, block: usize) -> &[[f32; W]] {
        &self.values[block * self.length..(block + 1) * self.length]
    }

    fn blocks(&self) -> usize {
        self.scales.len() / W
    }

    /// Squares of a block's scales, as shares of the largest.
    fn weights(&self, block: usize, largest: f64) -> [f32; W] {
        let mut weights = [0.0; W];
        for (weight, scale) in weights.iter_mut().zip(&self.scales[block * W..]) {
            *weight = (scale / largest).powi(2) as f32;
        }
        weights
    }

    /// Values squared, for sums of squares over samples as products.
    fn squared(&self) -> Self {
        let square = |row: &[f32; W]| row.map(|value| value * value);
        Self {
            values: self.values.par_iter().map(square).collect(),
            length: self.length,
            scales: self.scales.iter().map(|scale| scale * scale).collect(),
            largest: self.largest * self.largest,
        }
    }
}

/// The power of two at or below `x`, or the smallest scale there is: a column of zeros must not
/// count as a large one.
fn power_of_two(x: f32) -> f32 {
    let power = f32::from_bits(x.to_bits() & 0xff80_0000);
    match power.is_finite() {
        true => power.clamp(SMALLEST, SMALLEST.recip()),
        false => 1.0,
    }
}

const SMALLEST: f32 = f32::from_bits(27 << 23); // 2⁻¹⁰⁰

/// `x`, or 0 where rounding left less; NaN stays NaN, which `f64::max` would hide.
fn not_negative(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

struct Packed<const C: usize> {
    samples: usize,
    positions: usize,
    rows: usize,
    columns: usize,
    left: Panels<R>,
    right: Panels<C>,
}

type Cells<T, const C: usize> = [[T; C]; R];

impl<const C: usize> Packed<C> {
    fn new(product: Product) -> Self {
        let Product {
            samples,
            positions,
            rows,
            columns,
            left,
            right,
            roots,
        } = product;
        Self {
            samples,
            positions,
            rows,
            columns,
            left: Panels::new(&left, rows, &vec![1.0; samples]),
            right: Panels::new(&right, columns, &roots),
        }
    }

    fn fold(self, moments: Option<Moments>, sides: Sides) -> SideSums {
        let shares = self.shares(moments);
        let work = |(blocks, moments)| {
            let share = Share {
                product: &self,
                blocks,
                moments,
                sides,
            };
            AutoArch::new().dispatch(share)
        };
        let parts: Vec<Part> = shares.into_par_iter().map(work).collect();
        let length = |wanted, side| if wanted { self.samples * side } else { 0 };
        let mut sums = SideSums {
            rows: vec![0.0; length(sides.rows, self.rows)],
            columns: vec![0.0; length(sides.columns, self.columns)],
        };
        for part in parts {
            let rows = part.first_row..self.rows;
            for (row, of_samples) in rows.zip(part.rows.chunks(self.samples)) {
                let scale = (self.left.scales[row] * self.right.largest).powi(2);
                for (sample, lanes) in of_samples.iter().enumerate() {
                    let sum: f64 = lanes.iter().map(|&lane| f64::from(lane)).sum();
                    sums.rows[sample * self.rows + row] = sum * scale;
                }
            }
            let columns = sums.columns.iter_mut().zip(&part.columns);
            columns.for_each(|(sum, part)| *sum += part);
        }
        for of_sample in sums.columns.chunks_mut(self.columns) {
            for (sum, scale) in of_sample.iter_mut().zip(&self.right.scales) {
                *sum *= (self.left.largest * scale).powi(2);
            }
        }
        sums
    }

    /// Blocks of rows, and the moments of their elements, for one thread after the other.
    fn shares<'a>(&self, moments: Option<Moments<'a>>) -> Vec<(Range<usize>, Option<Moments<'a>>)> {
        let blocks = self.left.blocks();
        let step = blocks.div_ceil(SHARES).max(1);
        let ranges = (0..blocks)
            .step_by(step)
            .map(|start| start..blocks.min(start + step));
        let Some(Moments { before, mean, m2 }) = moments else {
            return ranges.map(|range| (range, None)).collect();
        };
        let elements = step * R * self.columns;
        let m2s: Vec<Option<&mut [f64]>> = match m2 {
            Some(m2) => m2.chunks_mut(elements).map(Some).collect(),
            None => ranges.clone().map(|_| None).collect(),
        };
        let moments = mean.chunks_mut(elements).zip(m2s);
        let moments = moments.map(|(mean, m2)| Some(Moments { before, mean, m2 }));
        ranges.zip(moments).collect()
    }

    /// One position a sample: `C_i = l_i² r_i²`, and a sum of those over samples is a product.
    fn fold_squares(self, moments: Moments) {
        let squared = Self {
            left: self.left.squared(),
            right: self.right.squared(),
            ..self
        };
        let fourth = moments.m2.is_some().then(|| Self {
            left: squared.left.squared(),
            right: squared.right.squared(),
            ..squared
        });
        let shares = squared.shares(Some(moments));
        let work = |(blocks, moments)| {
            let share = SquaresShare {
                product: &self,
                squares: &squared,
                fourth: fourth.as_ref(),
                blocks,
                moments,
            };
            AutoArch::new().dispatch(share)
        };
        shares.into_par_iter().for_each(work);
    }

    /// One gradient's elements at `R` rows and `C` columns.
    #[inline(always)]
    fn gradient(left: &[[f32; R]], right: &[[f32; C]]) -> Cells<f32, C> {
        let mut sums = [[0.0f32; C]; R];
        for (left, right) in left.iter().zip(right) {
            for r in 0..R {
                for c in 0..C {
                    sums[r][c] = left[r].mul_add(right[c], sums[r][c]);
                }
            }
        }
        sums
    }

    /// Merge what a block's samples come to into the moments of its share: mean and M2 of the
    /// cells, divided by their scales' squares to the power `power`.
    #[inline(always)]
    fn merge(
        &self,
        [left, right]: [usize; 2],
        first_row: usize,
        moments: &mut Moments,
        means: &Cells<f64, C>,
        m2s: &Cells<f64, C>,
        power: i32,
    ) {
        let (before, added) = (moments.before as f64, self.samples as f64);
        let weight = added / (before + added);
        let width = C.min(self.columns - right * C);
        let mut of_columns = [0.0f64; C];
        for (square, scale) in of_columns.iter_mut().zip(&self.right.scales[right * C..]) {
            *square = scale.powi(power);
        }
        for r in 0..R.min(self.rows - left * R) {
            let of_row = self.left.scales[left * R + r].powi(power);
            let start = (left * R + r - first_row) * self.columns + right * C;
            let row = start..start + width;
            let mut steps = [0.0f64; C];
            let mean = moments.mean[row.clone()].iter_mut();
            for (c, mean) in mean.enumerate() {
                let step = means[r][c] * (of_row * of_columns[c]) - *mean;
                *mean += step * weight;
                steps[c] = step;
            }
            if let Some(m2) = &mut moments.m2 {
                for (c, m2) in m2[row].iter_mut().enumerate() {
                    let square = of_row * of_columns[c];
                    *m2 += m2s[r][c] * square * square + steps[c] * steps[c] * before * weight;
                }
            }
        }
    }
}

/// Sums of a share over the sides: over columns divided by the square of the row's scale and of the
/// largest of columns, over rows likewise.
struct Part {
    first_row: usize,
    /// `[rows, samples]`, as partial sums.
    rows: Vec<[f32; LANES]>,
    /// `[samples, columns]`
    columns: Vec<f64>,
}

/// Some blocks of rows.
struct Share<'a, const C: usize> {
    product: &'a Packed<C>,
    blocks: Range<usize>,
    moments: Option<Moments<'a>>,
    sides: Sides,
}

impl<const C: usize> WithSimd for Share<'_, C> {
    type Output = Part;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) -> Part {
        let product = self.product;
        let samples = product.samples;
        let rows = if self.sides.rows {
            self.blocks.len() * R * samples
        } else {
            0
        };
        let columns = if self.sides.columns {
            samples * product.columns
        } else {
            0
        };
        let mut part = Part {
            first_row: self.blocks.start * R,
            rows: vec![[0.0; LANES]; rows],
            columns: vec![0.0; columns],
        };
        let (of_left, of_right) = (product.left.largest, product.right.largest);
        let mut of_columns = vec![[0.0f32; C]; samples];
        for right in 0..product.right.blocks() {
            let right_weights = product.right.weights(right, of_right);
            for left in self.blocks.clone() {
                let left_weights = product.left.weights(left, of_left);
                let local = left - self.blocks.start;
                let of_rows = match self.sides.rows {
                    true => &mut part.rows[local * R * samples..][..R * samples],
                    false => &mut [],
                };
                let side = SidesOfBlock {
                    rows: of_rows,
                    columns: if self.sides.columns {
                        &mut of_columns
                    } else {
                        &mut []
                    },
                    left: left_weights,
                    right: right_weights,
                };
                block(
                    product,
                    [left, right],
                    part.first_row,
                    self.moments.as_mut(),
                    side,
                );
            }
            if self.sides.columns {
                let width = C.min(product.columns - right * C);
                for (sample, sums) in of_columns.iter_mut().enumerate() {
                    let start = sample * product.columns + right * C;
                    let cells = part.columns[start..start + width].iter_mut();
                    cells
                        .zip(&*sums)
                        .for_each(|(cell, &sum)| *cell = f64::from(sum));
                    *sums = [0.0; C];
                }
            }
        }
        part
    }
}

/// Where a block's sums go, and the weights of its rows and columns in them.
struct SidesOfBlock<'a, const C: usize> {
    /// `[R, samples]`
    rows: &'a mut [[f32; LANES]],
    /// `[samples]`
    columns: &'a mut [[f32; C]],
    left: [f32; R],
    right: [f32; C],
}

/// All samples at `R` rows and `C` columns.
#[inline(always)]
fn block<const C: usize>(
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
    // Deviations from a sample of the same burst lose no digits, unlike squares themselves.
    let mut pivot = [[0.0f32; C]; R];
    let mut sums = [[0.0f32; C]; R];
    let mut deviations = [[0.0f32; C]; R];
    for sample in 0..samples {
        let range = sample * positions..(sample + 1) * positions;
        let mut squares = Packed::gradient(&left[range.clone()], &right[range]);
        for cells in &mut squares {
            cells.iter_mut().for_each(|cell| *cell *= *cell);
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
            if in_burst == 0 {
                pivot = squares;
            }
            for r in 0..R {
                for c in 0..C {
                    let deviation = squares[r][c] - pivot[r][c];
                    sums[r][c] += deviation;
                    deviations[r][c] = deviation.mul_add(deviation, deviations[r][c]);
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
            let deviations = variance.then_some(&mut deviations);
            running.absorb(in_burst + 1, &pivot, &mut sums, deviations);
        }
    }
    if let Some(moments) = moments {
        product.merge(at, first_row, moments, &running.means, &running.m2s, 2);
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

    /// Take in `count` samples: sums of their deviations from a pivot, and of those squared.
    #[inline(always)]
    fn absorb(
        &mut self,
        count: usize,
        pivot: &Cells<f32, C>,
        sums: &mut Cells<f32, C>,
        deviations: Option<&mut Cells<f32, C>>,
    ) {
        let count = count as f64;
        let weight = count / (self.count + count);
        let between = self.count * weight;
        let inverse = count.recip();
        if let Some(deviations) = deviations {
            for r in 0..R {
                for c in 0..C {
                    let rest = f64::from(sums[r][c]);
                    let m2 = f64::from(deviations[r][c]) - rest * rest * inverse;
                    let step = f64::from(pivot[r][c]) + rest * inverse - self.means[r][c];
                    self.m2s[r][c] += not_negative(m2) + step * step * between;
                    self.means[r][c] += step * weight;
                }
            }
            *deviations = [[0.0; C]; R];
        } else {
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

#[inline(always)]
fn widen<const C: usize>(sums: &mut Cells<f64, C>, burst: &mut Cells<f32, C>) {
    for r in 0..R {
        for c in 0..C {
            sums[r][c] += f64::from(burst[r][c]);
        }
    }
    *burst = [[0.0; C]; R];
}

/// Some blocks of rows, where a sample has one position.
struct SquaresShare<'a, const C: usize> {
    product: &'a Packed<C>,
    squares: &'a Packed<C>,
    fourth: Option<&'a Packed<C>>,
    blocks: Range<usize>,
    moments: Option<Moments<'a>>,
}

impl<const C: usize> WithSimd for SquaresShare<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Some(mut moments) = self.moments else {
            return;
        };
        let squares = self.squares;
        let added = squares.samples as f64;
        let first_row = self.blocks.start * R;
        for right in 0..squares.right.blocks() {
            for left in self.blocks.clone() {
                let mut means = over_samples(squares, left, right);
                let mut m2s = match self.fourth {
                    Some(fourth) => over_samples(fourth, left, right),
                    None => [[0.0; C]; R],
                };
                let mut cancelled = false;
                for r in 0..R {
                    for c in 0..C {
                        let mean = means[r][c] / added;
                        let m2 = m2s[r][c] - added * mean * mean;
                        cancelled |= m2 < CANCELLED * added * mean * mean;
                        m2s[r][c] = not_negative(m2);
                        means[r][c] = mean;
                    }
                }
                if cancelled && self.fourth.is_some() {
                    let at = [left, right];
                    let nowhere = SidesOfBlock {
                        rows: &mut [],
                        columns: &mut [],
                        left: [0.0; R],
                        right: [0.0; C],
                    };
                    block(self.product, at, first_row, Some(&mut moments), nowhere);
                    continue;
                }
                // The scales are those of squares already.
                squares.merge([left, right], first_row, &mut moments, &means, &m2s, 1);
            }
        }
    }
}

/// `Σ_i l_i r_i`, in float32 over few samples.
#[inline(always)]
fn over_samples<const C: usize>(product: &Packed<C>, left: usize, right: usize) -> Cells<f64, C> {
    let (left, right) = (product.left.block(left), product.right.block(right));
    let mut sums = [[0.0f64; C]; R];
    for (left, right) in left.chunks(LONG_BURST).zip(right.chunks(LONG_BURST)) {
        widen(&mut sums, &mut Packed::gradient(left, right));
    }
    sums
}

/// `Σ_k (Σ_t o_tk i_tc)²` over one side of products, from the other side's products of positions with
/// positions: `i_·cᵀ G i_·c`, with `G = O Oᵀ` of `[samples, positions, positions]` and factors `outer` of
/// `[samples, positions, other side]` and `inner` of `[samples, positions, side]`. `[samples, side]`, not
/// negative; `None` where too few digits are left of too many.
///
/// The sum is a square, so terms that cancel in the gradient are squared in it: it keeps half as many
/// digits as the gradient does. Each sum is judged by itself, since one that is lost is nothing beside
/// the others of its sample; what is lost is had from the gradient.
pub(crate) fn ghost(
    gram: &[f32],
    factors: &[Vec<f32>; 2],
    samples: usize,
    side: usize,
) -> Option<Vec<f64>> {
    match AutoArch::new().dispatch(Lanes) {
        16 => ghost_in::<32>(gram, factors, samples, side),
        _ => ghost_in::<16>(gram, factors, samples, side),
    }
}

fn ghost_in<const C: usize>(
    gram: &[f32],
    [outer, inner]: &[Vec<f32>; 2],
    samples: usize,
    side: usize,
) -> Option<Vec<f64>> {
    let positions = inner.len() / (samples * side).max(1);
    let mut sums = vec![0.0; samples * side];
    let outers = outer.par_chunks_exact(outer.len() / samples);
    let grams = gram.par_chunks_exact(positions * positions).zip(outers);
    let samples = grams.zip(inner.par_chunks_exact(positions * side));
    let samples = samples.zip(sums.par_chunks_exact_mut(side));
    let kept = samples.all(|(((gram, outer), inner), sums)| {
        AutoArch::new().dispatch(GhostOfSample::<C> {
            gram,
            outer,
            inner,
            sums,
            positions,
        })
    });
    kept.then_some(sums)
}

struct GhostOfSample<'a, const C: usize> {
    gram: &'a [f32],
    outer: &'a [f32],
    inner: &'a [f32],
    sums: &'a mut [f64],
    positions: usize,
}

impl<const C: usize> WithSimd for GhostOfSample<'_, C> {
    /// Whether enough digits are left.
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> bool {
        let (positions, side) = (self.positions, self.sums.len());
        let norms = self.gram.iter().step_by(positions + 1);
        let largest = norms.clone().copied().fold(0.0f32, f32::max);
        if !(SMALLEST..SMALLEST.recip()).contains(&largest) {
            return false;
        }
        let mut lost = Vec::new();
        // The gram matrix is its own transpose, so rows serve as columns.
        let blocks = positions.div_ceil(R);
        let mut panels = vec![[0.0f32; R]; blocks * positions];
        for (at, row) in self.gram.chunks_exact(positions).enumerate() {
            for (position, value) in row.iter().enumerate() {
                panels[position / R * positions + at][position % R] = *value;
            }
        }
        let mut columns = vec![[0.0f32; C]; positions];
        for start in (0..side).step_by(C) {
            let width = C.min(side - start);
            let mut largest = 0.0f32;
            for (column, row) in columns.iter_mut().zip(self.inner.chunks_exact(side)) {
                let row = &row[start..start + width];
                for (cell, value) in column.iter_mut().zip(row) {
                    *cell = *value;
                    largest = if value.abs() > largest {
                        value.abs()
                    } else {
                        largest
                    };
                }
            }
            let scale = power_of_two(largest);
            for column in &mut columns {
                column.iter_mut().for_each(|cell| *cell /= scale);
            }
            let mut sums = [0.0f32; C];
            for (block, panel) in panels.chunks_exact(positions).enumerate() {
                let products = Packed::gradient(panel, &columns);
                let own = columns[block * R..].iter().take(R);
                for (products, own) in products.iter().zip(own) {
                    for c in 0..C {
                        sums[c] = products[c].mul_add(own[c], sums[c]);
                    }
                }
            }
            let mut most = [0.0f32; C];
            for (column, norm) in columns.iter().zip(norms.clone()) {
                for c in 0..C {
                    most[c] = (column[c] * column[c]).mul_add(*norm, most[c]);
                }
            }
            let square = f64::from(scale) * f64::from(scale);
            let into = self.sums[start..start + width].iter_mut();
            for (c, into) in into.enumerate() {
                let sum = not_negative(sums[c].into());
                // NaN is not lost: it stays, for those who can say whose it is.
                if sum < GHOST * positions as f64 * f64::from(most[c]) {
                    lost.push(start + c);
                }
                *into = sum * square;
            }
        }
        if lost.len() > side / LOST {
            return false;
        }
        let mut gradient = vec![0.0f64; self.outer.len() / positions];
        for column in lost {
            gradient.fill(0.0);
            let rows = self.outer.chunks_exact(gradient.len());
            let inner = self.inner.iter().skip(column).step_by(side);
            for (row, inner) in rows.zip(inner) {
                let inner = f64::from(*inner);
                for (sum, outer) in gradient.iter_mut().zip(row) {
                    *sum += inner * f64::from(*outer);
                }
            }
            self.sums[column] = gradient.iter().map(|g| g * g).sum();
        }
        true
    }
}
