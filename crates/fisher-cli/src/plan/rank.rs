//! What ranks capture of the gradients of matrices.

use super::choose::Item;
use super::scored::Scored;
use super::source::Source;
use crate::measure::Result;

/// What an adapter of each rank leaves out of the squared gradient of each matrix, at most.
///
/// A LoRA changes a matrix by `B A` with `A` of `[rank, inputs]`. At its start (`B = 0`, rows of `A` orthonormal) the gradient of `B` is
/// `G Aᵀ`, and the loss of a sample falls at the rate `‖G_i Aᵀ‖²`: the part of the squared gradient that lies in the `rank` directions of `A`.
/// Its mean over samples is at best the sum of the largest eigenvalues of `E[G_iᵀ G_i] / T`, for which the diagonal Fisher does not suffice;
/// but eigenvalues majorize the diagonal (Schur), so the sum of the `rank` largest column sums of F is captured at least, by the `A` that
/// reads those inputs. The same holds for outputs and row sums, with the parts of `A` and `B` exchanged. Of inputs and outputs the one is taken that
/// captures more at rank `reference`. The cost at a rank is what is left of tr F; a rank takes `inputs + outputs` parameters. The score is what `reference`
/// captures for each parameter.
///
/// It is a bound for the first steps, of every sample's gradient and not of their mean, and says nothing of where training ends.
///
/// # Errors
/// When F of every element is not there.
pub fn rank(source: &Source, reference: u32) -> Result<Scored> {
    let mut scored = Scored::none(source)?;
    let mut progress = source.progress("ranks");
    for matrix in &source.matrices {
        let shape = [matrix.shape()[0], matrix.shape()[1]];
        let fisher = source.elements(matrix.path())?;
        let most = shape[0].min(shape[1]).min(WIDEST * reference as usize);
        let at = most.min(reference as usize);
        let [rows, columns] = margins(&fisher.mean, shape);
        let [by_rows, by_columns] = [&rows, &columns].map(|sums| captured(sums, at));
        let axis = usize::from(by_columns > by_rows);
        let sums = if axis == 1 { &columns } else { &rows };
        let order = falling(sums);
        let left = |sums: &[f64]| -> Vec<f64> {
            let mut left: f64 = sums.iter().sum();
            let steps = order[..most].iter();
            let steps = steps.map(|&k| {
                left -= sums[k];
                left.max(0.0)
            });
            steps.collect()
        };
        let first = |sums: &[f64]| order[..at].iter().map(|&k| sums[k]).sum::<f64>();
        let size = (shape[0] + shape[1]) as f64;
        let bound = fisher
            .errors
            .map(|errors| first(&margins(&errors, shape)[axis]) / size);
        let item = Item {
            size: (shape[0] + shape[1]) as u64,
            levels: (1..=most as u32).collect(),
            costs: left(sums),
        };
        let of_sample = |weight: f64, g: &[f32]| {
            let squares: Vec<f64> = g.iter().map(|&g| weight * f64::from(g).powi(2)).collect();
            let sums = &margins(&squares, shape)[axis];
            (first(sums) / size, left(sums))
        };
        let score = first(sums) / size;
        scored.take(source, matrix.path(), item, (score, bound), of_sample)?;
        progress.advance(matrix.elements() as u64);
    }
    progress.finish();
    Ok(scored)
}

/// Ranks are tried up to so many times the mean one.
const WIDEST: usize = 8;

/// The sum of the `rank` largest of the sums of rows or columns of F.
pub fn captured(sums: &[f64], rank: usize) -> f64 {
    let order = falling(sums);
    order.iter().take(rank).map(|&k| sums[k]).sum()
}

fn falling(sums: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by(|&a, &b| sums[b].total_cmp(&sums[a]));
    order
}

/// Sums of the rows and of the columns of a matrix.
fn margins(values: &[f64], shape: [usize; 2]) -> [Vec<f64>; 2] {
    let mut columns = vec![0.0; shape[1]];
    let rows = values.chunks_exact(shape[1]).map(|row| {
        columns.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
        row.iter().sum()
    });
    [rows.collect(), columns]
}
