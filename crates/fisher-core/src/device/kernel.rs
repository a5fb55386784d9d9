//! The kernel: gradients that are products are multiplied, squared, summed and accumulated in
//! registers.

use cubecl::prelude::*;

/// What the kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Units of a cube along the rows and columns.
    pub(super) units: [usize; 2],
    /// Rows and columns of a unit.
    pub(super) cells: [usize; 2],
    /// Whether products are taken and squared; else the right side is contributions already.
    pub(super) gradients: bool,
    /// Whether elements are accumulated.
    pub(super) elements: bool,
    /// Whether accumulators are pairs.
    pub(super) pairs: bool,
    pub(super) variance: bool,
    /// Sums over columns, of every row.
    pub(super) rows: bool,
    /// Sums over rows, of every column.
    pub(super) columns: bool,
}

/// `√C_i = root_i Σ_t l_itr r_itc` of all samples at some rows and columns of one parameter, mean and
/// M2 of `C_i`, and its sums over each side.
///
/// A unit has a few rows and columns in its registers, over all samples, so that an element's moments are
/// read and written once. They are taken sample by sample in float32 (Welford), and then merged with
/// those of earlier batches (Chan, Golub & LeVeque), in float64 or in pairs of float32.
///
/// # Shapes
/// - left: `[samples, positions, rows]`
/// - right: `[samples, positions, columns]`
/// - roots: `[samples]`
/// - mean, m2, and what they lack of float32: `[rows, columns]`
/// - sides: `[samples, cubes along columns, rows]` and `[samples, cubes along rows, columns]`
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn fold<A: Float, NL: Size, NR: Size>(
    left: &[Vector<f32, NL>],
    right: &[Vector<f32, NR>],
    roots: &[f32],
    mean: &mut [A],
    mean_low: &mut [A],
    m2: &mut [A],
    m2_low: &mut [A],
    sides: &mut [f32],
    samples: usize,
    positions: usize,
    rows: usize,
    columns: usize,
    // before · added / (before + added), and added / (before + added), as pairs.
    share: f32,
    share_low: f32,
    weight: f32,
    weight_low: f32,
    one: f32,
    #[comptime] shape: Shape,
    #[define(A)] _accumulators: ElemType,
) {
    let [units_y, units_x] = comptime!(shape.units);
    let [height, width] = comptime!(shape.cells);
    let (tile_y, tile_x) = comptime!((units_y * height, units_x * width));
    let (unit_y, unit_x) = (UNIT_POS_Y as usize, UNIT_POS_X as usize);
    let (cube_y, cube_x) = (CUBE_POS_Y as usize, CUBE_POS_X as usize);
    let row = cube_y * tile_y + unit_y * height;
    let column = cube_x * tile_x + unit_x * width;
    let vector_l = NL::value();
    let vector_r = NR::value();
    let loads_l = comptime!(height / vector_l);
    let loads_r = comptime!(width / vector_r);

    let mut of_mean = Array::<f32>::new(comptime!(height * width));
    let mut of_m2 = Array::<f32>::new(comptime!(height * width));
    // What the mean lacks: where contributions hardly vary, or the first stands out, deviations from a
    // rounded mean would have no digits left.
    let mut of_rest = Array::<f32>::new(comptime!(height * width));
    #[unroll]
    for cell in 0..comptime!(height * width) {
        of_mean[cell] = 0.0;
        of_m2[cell] = 0.0;
        of_rest[cell] = 0.0;
    }
    let mut over_columns =
        Shared::<[f32]>::new_slice(comptime!(if shape.rows { 2 * units_x * tile_y } else { 1 }));
    let mut over_rows = Shared::<[f32]>::new_slice(comptime!(if shape.columns {
        2 * units_y * tile_x
    } else {
        1
    }));

    for sample in 0..samples {
        let mut gradient = Array::<f32>::new(comptime!(height * width));
        #[unroll]
        for cell in 0..comptime!(height * width) {
            gradient[cell] = 0.0;
        }
        for position in 0..positions {
            let at = sample * positions + position;
            let mut of_left = Array::<f32>::new(height);
            #[unroll]
            for load in 0..loads_l {
                if comptime!(shape.gradients) {
                    // Beyond the last row any other will do: it is not written.
                    let wanted = row + load * vector_l;
                    let from = select(wanted < rows, wanted, 0usize);
                    let values = left[(at * rows + from) / vector_l];
                    #[unroll]
                    for lane in 0..vector_l {
                        of_left[load * vector_l + lane] = values.extract(lane);
                    }
                } else {
                    of_left[load] = 1.0;
                }
            }
            let mut of_right = Array::<f32>::new(width);
            #[unroll]
            for load in 0..loads_r {
                let wanted = column + load * vector_r;
                let from = select(wanted < columns, wanted, 0usize);
                let values = right[(at * columns + from) / vector_r];
                #[unroll]
                for lane in 0..vector_r {
                    of_right[load * vector_r + lane] = values.extract(lane);
                }
            }
            #[unroll]
            for r in 0..height {
                #[unroll]
                for c in 0..width {
                    let cell = comptime!(r * width + c);
                    gradient[cell] = fma(of_left[r], of_right[c], gradient[cell]);
                }
            }
        }

        let root = if comptime!(shape.gradients) {
            roots[sample]
        } else {
            1.0f32.runtime()
        };
        let count = f32::cast_from((sample + 1) as u32);
        let inverse = 1.0 / count;
        #[unroll]
        for cell in 0..comptime!(height * width) {
            if comptime!(shape.gradients) {
                let rooted = gradient[cell] * root;
                gradient[cell] = rooted * rooted;
            }
            if comptime!(shape.elements) {
                let before = of_mean[cell];
                let step = (gradient[cell] - before) - of_rest[cell];
                let (mean, rest) = add::<f32>(before, of_rest[cell], step * inverse, one);
                of_mean[cell] = mean;
                of_rest[cell] = rest;
                if comptime!(shape.variance) {
                    let after = (gradient[cell] - mean) - rest;
                    of_m2[cell] = fma(step, after, of_m2[cell]);
                }
            }
        }

        if comptime!(shape.rows || shape.columns) {
            // Two buffers by turns: a unit is at most one sample ahead of those that still add up.
            let turn = sample % 2;
            if comptime!(shape.rows) {
                #[unroll]
                for r in 0..height {
                    let mut sum = f32::new(0.0);
                    #[unroll]
                    for c in 0..width {
                        let cell = comptime!(r * width + c);
                        sum += select(column + c < columns, gradient[cell], 0.0f32);
                    }
                    over_columns[(turn * units_x + unit_x) * tile_y + unit_y * height + r] = sum;
                }
            }
            if comptime!(shape.columns) {
                #[unroll]
                for c in 0..width {
                    let mut sum = f32::new(0.0);
                    #[unroll]
                    for r in 0..height {
                        let cell = comptime!(r * width + c);
                        sum += select(row + r < rows, gradient[cell], 0.0f32);
                    }
                    over_rows[(turn * units_y + unit_y) * tile_x + unit_x * width + c] = sum;
                }
            }
            sync_cube();
            let unit = unit_y * units_x + unit_x;
            let units = comptime!(units_y * units_x);
            let cubes_x = CUBE_COUNT_X as usize;
            let cubes_y = CUBE_COUNT_Y as usize;
            if comptime!(shape.rows) {
                #[unroll]
                for pass in 0..comptime!(tile_y.div_ceil(units)) {
                    let local = pass * units + unit;
                    let at = cube_y * tile_y + local;
                    if local < tile_y && at < rows {
                        let mut sum = f32::new(0.0);
                        for other in 0..units_x {
                            sum += over_columns[(turn * units_x + other) * tile_y + local];
                        }
                        sides[(sample * cubes_x + cube_x) * rows + at] = sum;
                    }
                }
            }
            if comptime!(shape.columns) {
                let start = if comptime!(shape.rows) {
                    samples * cubes_x * rows
                } else {
                    0usize.runtime()
                };
                #[unroll]
                for pass in 0..comptime!(tile_x.div_ceil(units)) {
                    let local = pass * units + unit;
                    let at = cube_x * tile_x + local;
                    if local < tile_x && at < columns {
                        let mut sum = f32::new(0.0);
                        for other in 0..units_y {
                            sum += over_rows[(turn * units_y + other) * tile_x + local];
                        }
                        sides[start + (sample * cubes_y + cube_y) * columns + at] = sum;
                    }
                }
            }
        }
    }

    if comptime!(shape.elements) {
        #[unroll]
        for r in 0..height {
            #[unroll]
            for c in 0..width {
                if row + r < rows && column + c < columns {
                    let cell = comptime!(r * width + c);
                    let at = (row + r) * columns + column + c;
                    let mean_of_batch = A::cast_from(of_mean[cell]);
                    let rest_of_batch = A::cast_from(of_rest[cell]);
                    let one = A::cast_from(one);
                    let m2_of_batch = A::cast_from(of_m2[cell]);
                    let (share, weight) = (A::cast_from(share), A::cast_from(weight));
                    let share_low = A::cast_from(share_low);
                    let weight_low = A::cast_from(weight_low);
                    if comptime!(shape.pairs) {
                        let (step, step_low) =
                            add::<A>(mean_of_batch, rest_of_batch, -mean[at], one);
                        let (step, step_low) = add::<A>(step, step_low, -mean_low[at], one);
                        if comptime!(shape.variance) {
                            // Multiplied before it is squared, so that a step whose square alone is
                            // out of range counts.
                            let (high, low) =
                                add::<A>(m2[at], m2_low[at], share * step * step, one);
                            let (high, low) = add::<A>(high, low, m2_of_batch, one);
                            m2[at] = high;
                            m2_low[at] = low;
                        }
                        let (moved, moved_low) =
                            times::<A>(step, step_low, weight, weight_low, one);
                        // Of the first batch it is the mean, of any size.
                        let first = weight == A::new(1.0);
                        let moved = select(first, step, moved);
                        let moved_low = select(first, step_low, moved_low);
                        let (high, low) = add::<A>(mean[at], mean_low[at], moved, one);
                        let (high, low) = add::<A>(high, low, moved_low, one);
                        mean[at] = high;
                        mean_low[at] = low;
                    } else {
                        let step = mean_of_batch - mean[at] + rest_of_batch;
                        if comptime!(shape.variance) {
                            m2[at] += m2_of_batch + (share + share_low) * step * step;
                        }
                        mean[at] += step * (weight + weight_low);
                    }
                }
            }
        }
    }
}

/// `a − b`, rounded once, of which compilers know nothing: `(a + b) − a` is `b` to many of them, unless
/// told otherwise, which cannot be done everywhere. `one` is 1.
#[cube]
fn less<A: Float>(a: A, b: A, one: A) -> A {
    fma(-one, b, a)
}

/// `a + b` rounded, and what the rounding lost (Knuth, TAOCP 2, 4.2.2, theorem B).
#[cube]
fn two_sum<A: Float>(a: A, b: A, one: A) -> (A, A) {
    let sum = a + b;
    let of_b = less::<A>(sum, a, one);
    let of_a = less::<A>(sum, of_b, one);
    (sum, less::<A>(a, of_a, one) + less::<A>(b, of_b, one))
}

/// A pair and a term, as a pair whose first is the value rounded.
#[cube]
fn add<A: Float>(high: A, low: A, term: A, one: A) -> (A, A) {
    let (sum, error) = two_sum::<A>(high, term, one);
    let total = low + error;
    let rounded = sum + total;
    (rounded, less::<A>(total, less::<A>(rounded, sum, one), one))
}

/// A product of pairs: products of halves of 12 bits are exact in float32 (Dekker 1971).
#[cube]
fn times<A: Float>(high: A, low: A, weight: A, weight_low: A, one: A) -> (A, A) {
    let split = high * A::new(4097.0);
    let front = less::<A>(split, less::<A>(split, high, one), one);
    let back = less::<A>(high, front, one);
    let split = weight * A::new(4097.0);
    let weight_front = less::<A>(split, less::<A>(split, weight, one), one);
    let weight_back = less::<A>(weight, weight_front, one);
    let product = high * weight;
    let error = less::<A>(front * weight_front, product, one)
        + front * weight_back
        + back * weight_front
        + back * weight_back;
    (product, error + high * weight_low + low * weight)
}
