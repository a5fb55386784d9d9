//! The whole Fisher's inverse between samples, by their inner products.

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use crate::error::{Error, Result};

/// `τ(i → j) = g_jᵀ (F + λ)⁻¹ g_i` for all training samples *i*, `[queries, training]`.
///
/// With `X = [g_i / √(n T_i)]` is `F = X Xᵀ` and `K = Xᵀ X`, and since `(X Xᵀ + λ)⁻¹ X = X (K + λ)⁻¹`, no difference of large
/// numbers is taken: `τ(i → j) = √(n T_i) [(K + λ)⁻¹ Xᵀ g_j]_i`.
///
/// `products` are `⟨g_i, g_j⟩` of training samples with themselves, `[n, n]`, and `across` of queries with these, `[queries, n]`.
/// `lambda` is of `K`'s trace.
pub(super) fn exact(
    products: &[f64],
    across: &[f64],
    tokens: &[f64],
    lambda: impl FnOnce(f64) -> f64,
) -> Result<(Vec<f64>, f64)> {
    let n = tokens.len();
    let roots: Vec<f64> = tokens.iter().map(|t| (n as f64 * t).sqrt()).collect();
    let mut k = Mat::from_fn(n, n, |i, j| products[i * n + j] / roots[i] / roots[j]);
    let lambda = lambda((0..n).map(|i| k[(i, i)]).sum());
    (0..n).for_each(|i| k[(i, i)] += lambda);
    let singular = || Error::Singular {
        slice: "the training samples".into(),
        lambda,
    };
    if !k.is_all_finite() || !lambda.is_finite() {
        return Err(Error::not_finite(
            "a product of gradients",
            "the training samples",
        ));
    }
    let factor = k.llt(Side::Lower).map_err(|_| singular())?;
    let queries = across.len() / n.max(1);
    let right = Mat::from_fn(n, queries, |i, j| across[j * n + i] / roots[i]);
    let solved = factor.solve(&right);
    let scores = (0..queries).flat_map(|j| (0..n).map(move |i| (j, i)));
    let scores = scores.map(|(j, i)| roots[i] * solved[(i, j)]).collect();
    Ok((scores, lambda))
}
