//! Vectors: products, random ones, and what is orthogonal to others.

use rand::RngExt;
use rand::rngs::ChaCha8Rng;

pub(super) fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

pub(super) fn norm(x: &[f64]) -> f64 {
    let largest = x.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    largest * x.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt()
}

/// `y ← y + a x`
pub(super) fn add(y: &mut [f64], a: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

pub(super) fn scale(x: &mut [f64], by: f64) {
    x.iter_mut().for_each(|x| *x *= by);
}

/// Random signs: `E zzᵀ = I`.
pub(super) fn signs(dimension: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let sign = |positive| if positive { 1.0 } else { -1.0 };
    (0..dimension).map(|_| sign(rng.random())).collect()
}

/// A random vector of no special direction.
pub(super) fn random(dimension: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    (0..dimension)
        .map(|_| 2.0 * rng.random::<f64>() - 1.0)
        .collect()
}

/// Take from `x` what lies in the span of `basis`, twice, so that what is left is orthogonal to rounding (Kahan and
/// Parlett's "twice is enough").
pub(super) fn orthogonalize(x: &mut [f64], basis: &[Vec<f64>]) {
    for _ in 0..2 {
        for b in basis {
            let along = dot(x, b);
            add(x, -along, b);
        }
    }
}

/// An orthonormal basis of the span, without vectors that hardly leave the span of those before them.
pub(super) fn basis(vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(vectors.len());
    for mut vector in vectors {
        let before = norm(&vector);
        orthogonalize(&mut vector, &basis);
        let left = norm(&vector);
        if left > 1e-10 * before {
            scale(&mut vector, left.recip());
            basis.push(vector);
        }
    }
    basis
}
