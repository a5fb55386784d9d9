//! What bits cost: the rise of the loss that rounding is predicted to make.

use fisher_metrics::weights::Weights;

use super::choose::Item;
use super::round::Rounding;
use super::scored::Scored;
use super::source::Source;
use crate::measure::Result;

/// The predicted rise of the loss, `½ Σ_k F_k Δ_k²` nats a token, of each matrix at each of `widths`, `Δ` being exactly what
/// [`Rounding`] does to its weights. The score is the rise a weight at `reference`, one of the widths.
///
/// That is the second order of the loss with the diagonal of the empirical Fisher in the place of its curvature: there is no first order in it,
/// no cross term between weights (which rounding, unlike noise, may have), and what is far is not near. For a sample,
/// `½ Σ_k g_ik² Δ_k² / T_i`.
///
/// # Errors
/// When weights or F of every element are not there.
pub fn bits(
    source: &Source,
    weights: &Weights,
    widths: &[u32],
    group: usize,
    reference: u32,
) -> Result<Scored> {
    let at = widths.iter().position(|width| *width == reference);
    let at = at.ok_or("the reference is one of the widths")?;
    let mut scored = Scored::none(source)?;
    let mut progress = source.progress("rounding");
    for matrix in &source.matrices {
        let shape = [matrix.shape()[0], matrix.shape()[1]];
        let axis = matrix.input_axis().unwrap_or(1);
        let theta = weights.get(matrix.path(), matrix.elements())?;
        let errors: Vec<Vec<f64>> = widths
            .iter()
            .map(|&bits| Rounding { bits, group }.squared_errors(theta, shape, axis))
            .collect();
        let fisher = source.elements(matrix.path())?;
        let half = |values: &[f64], squares: &[f64]| {
            let products = values.iter().zip(squares);
            0.5 * products.map(|(v, s)| v * s).sum::<f64>()
        };
        let size = matrix.elements() as f64;
        let costs: Vec<f64> = errors.iter().map(|e| half(&fisher.mean, e)).collect();
        let bound = fisher.errors.map(|of| half(&of, &errors[at]) / size);
        let score = costs[at] / size;
        let item = Item {
            size: matrix.elements() as u64,
            levels: widths.to_vec(),
            costs,
        };
        let of_sample = |weight: f64, g: &[f32]| {
            let squares: Vec<f64> = g.iter().map(|&g| f64::from(g).powi(2)).collect();
            let costs = errors.iter().map(|e| weight * half(&squares, e));
            let costs: Vec<f64> = costs.collect();
            (costs[at] / size, costs)
        };
        scored.take(source, matrix.path(), item, (score, bound), of_sample)?;
        progress.advance(matrix.elements() as u64);
    }
    progress.finish();
    Ok(scored)
}
