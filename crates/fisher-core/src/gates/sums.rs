//! `(g_i · θ)_G` of one parameter for the samples of a batch, from gradients in the form in which they came.

use burn::tensor::{DType, Int, Tensor};

use crate::gradient::{Contribution, Raw, SampleGradient, add_at, at_least_single};
use crate::grouping::{GroupReduction, Grouping, Margins};
use crate::pieces::pieces;

/// Products of a parameter's elements, of all samples, that are held at a time.
const CELLS: usize = 1 << 22;

/// Which sums over the sides of a parameter are needed.
#[derive(Clone, Copy)]
struct Sides {
    rows: bool,
    columns: bool,
}

/// Sums over the groups of each grouping, `[samples, groups]`, at the weights `[first axis, all others]`.
///
/// No `[samples, elements]` is made that was not there before: of a product `L_iᵀ R_i` the sums over a side are
/// `Σ_t R_tj (L_t θ)_j`, one more product of the size of the layer's own.
pub(super) fn gate_sums(
    gradient: &SampleGradient,
    weights: &Tensor<2>,
    groupings: &[Grouping],
) -> Vec<Tensor<2>> {
    let weights = at_least_single(weights.clone());
    let margins = match gradient {
        SampleGradient::Full(_) => return by_samples(gradient, &weights, groupings),
        SampleGradient::Zero {
            device, samples, ..
        } => {
            let zeros =
                |of: &Grouping| Tensor::zeros([*samples, of.groups()], (device, DType::F32));
            return groupings.iter().map(zeros).collect();
        }
        SampleGradient::Tied(tied) => {
            let [a, b] =
                [tied.product(), tied.lookup()].map(|part| gate_sums(&part, &weights, groupings));
            return a.into_iter().zip(b).map(|(a, b)| a + b).collect();
        }
        SampleGradient::Outer { left, right } => {
            let [left, right] = [left, right].map(|t| at_least_single(t.clone()));
            of_product(&left, &right, &weights, Sides::of(groupings))
        }
        SampleGradient::Rows { ids, delta, table } => {
            let delta = at_least_single(delta.clone());
            of_lookup(ids, delta, *table, &weights, Sides::of(groupings))
        }
    };
    let sums = groupings.iter().map(|grouping| {
        let of_sides = grouping.reduce_margins(&margins, GroupReduction::Sum);
        of_sides.unwrap_or_else(|| by_tiles(gradient, &weights, grouping))
    });
    sums.collect()
}

impl Sides {
    fn of(groupings: &[Grouping]) -> Self {
        let on = |side: fn(usize) -> bool| groupings.iter().any(|g| g.axis().is_some_and(side));
        let (rows, columns) = (on(|axis| axis == 0), on(|axis| axis > 0));
        let whole = groupings.iter().any(Grouping::is_whole);
        Self {
            rows,
            // The whole can be had from either.
            columns: columns || (whole && !rows),
        }
    }
}

/// All positions of all samples as rows.
fn flat(tensor: &Tensor<3>) -> Tensor<2> {
    tensor.clone().flatten(0, 1)
}

/// The sums over positions of products, `[samples, positions, side]` to `[samples, side]`.
fn over_positions(a: Tensor<3>, b: Tensor<3>) -> Tensor<2> {
    let [samples, _, side] = a.dims();
    (a * b).sum_dim(1).reshape([samples, side])
}

fn of_product(left: &Tensor<3>, right: &Tensor<3>, weights: &Tensor<2>, sides: Sides) -> Margins {
    let columns = sides.columns.then(|| {
        let out = flat(left).matmul(weights.clone()).reshape(right.dims());
        over_positions(out, right.clone())
    });
    let rows = sides.rows.then(|| {
        let back = flat(right).matmul(weights.clone().transpose());
        over_positions(back.reshape(left.dims()), left.clone())
    });
    Margins { rows, columns }
}

fn of_lookup(
    ids: &Tensor<2, Int>,
    delta: Tensor<3>,
    table: usize,
    weights: &Tensor<2>,
    sides: Sides,
) -> Margins {
    let [samples, positions, width] = delta.dims();
    let at = ids.clone().reshape([samples * positions]);
    let looked_up = weights
        .clone()
        .select(0, at)
        .reshape([samples, positions, width]);
    let products = looked_up * delta;
    let columns = sides
        .columns
        .then(|| products.clone().sum_dim(1).reshape([samples, width]));
    let rows = sides.rows.then(|| {
        let (device, dtype) = (products.device(), products.dtype());
        let of_positions = products.sum_dim(2).reshape([samples * positions]);
        // Every sample has a table of its own.
        let tables = Tensor::<1, Int>::arange(0..samples as i64, &device);
        let tables = tables.cast(ids.dtype()).mul_scalar(table as i64);
        let at = ids.clone() + tables.reshape([samples, 1]);
        let sums = Tensor::<1>::zeros([samples * table], (&device, dtype));
        let at = at.reshape([samples * positions]);
        add_at(sums, 0, at, of_positions).reshape([samples, table])
    });
    Margins { rows, columns }
}

/// Of groups that are no slices of an axis: products of a few rows at a time.
fn by_tiles(gradient: &SampleGradient, weights: &Tensor<2>, grouping: &Grouping) -> Tensor<2> {
    let SampleGradient::Outer { left, right } = gradient else {
        return by_samples(gradient, weights, std::slice::from_ref(grouping)).swap_remove(0);
    };
    let [left, right] = [left, right].map(|t| at_least_single(t.clone()));
    let [samples, _, rows] = left.dims();
    let width = right.dims()[2];
    let left = left.swap_dims(1, 2);
    let options = (&right.device(), right.dtype());
    let sums = Tensor::<2>::zeros([samples, grouping.groups()], options);
    let step = (CELLS / (samples * width)).clamp(1, rows);
    pieces(rows, step).fold(sums, |sums, rows| {
        let tile = left.clone().narrow(1, rows.start, rows.len());
        let tile = tile.matmul(right.clone());
        let theta = weights.clone().narrow(0, rows.start, rows.len());
        let products = tile * theta.unsqueeze();
        let run = products.reshape([samples, rows.len() * width]);
        grouping.add_run(sums, rows.start * width, run)
    })
}

/// From gradients that are written out, of a few samples at a time.
fn by_samples(
    gradient: &SampleGradient,
    weights: &Tensor<2>,
    groupings: &[Grouping],
) -> Vec<Tensor<2>> {
    let [samples, elements] = gradient.dims();
    let theta = weights.clone().reshape([1, elements]);
    let step = (CELLS / elements.max(1)).max(1);
    let mut parts: Vec<Vec<Tensor<2>>> = vec![Vec::new(); groupings.len()];
    for range in pieces(samples, step) {
        let full = match gradient {
            SampleGradient::Full(full) => {
                let full = full.tensor().clone();
                full.narrow(0, range.start, range.len())
            }
            other => {
                let rows = range.map(|sample| other.sample(sample).to_full());
                Tensor::cat(rows.collect(), 0)
            }
        };
        let products = Contribution::<Raw>::of(at_least_single(full) * theta.clone());
        for (parts, grouping) in parts.iter_mut().zip(groupings) {
            let sums = grouping.reduce(&products, GroupReduction::Sum);
            parts.push(sums.tensor().clone());
        }
    }
    parts
        .into_iter()
        .map(|parts| Tensor::cat(parts, 0))
        .collect()
}
