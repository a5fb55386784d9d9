//! The effective dimension `Σ λ/(λ + c)`, and what it is without a cluster.

use faer::Mat;

use super::super::eigen::{Eigen, symmetric};
use super::super::estimate::{Estimate, effective};
use super::super::moments::Moments;
use super::config::Cutoff;
use crate::error::Result;

/// `Σ λ/(λ + c)` of eigenvalues that are not negative.
pub(super) fn dimension(values: &[f64], c: f64) -> f64 {
    values.iter().map(|v| v / (v + c)).sum()
}

/// The dimension with its jackknife error.
///
/// Without the samples `X` of a cluster, m of n, F is `n/(n − m) (F − XᵀX/n)`. With `c' = c (n − m)/n` and
/// `A = F + c'I`, Woodbury gives `Σ λ/(λ + c') − c' tr (I − Q₁)⁻¹ Q₂`, where `Q₁ = X A⁻¹ Xᵀ/n` and `Q₂ = X A⁻² Xᵀ/n` follow from
/// the eigenvectors of the products between samples: no other decomposition is needed. Where c is relative to the
/// trace it is that of the trace without the cluster.
pub(super) fn estimate(
    eigen: &Eigen,
    rank: usize,
    moments: &Moments,
    members: &[Vec<usize>],
    cutoff: Cutoff,
    what: &str,
) -> Result<Option<Estimate>> {
    let values = &eigen.values[..rank];
    let c = cutoff.of(values.iter().sum());
    if rank == 0 {
        return Ok(None);
    }
    let value = dimension(values, c);
    let mut without = Vec::with_capacity(members.len());
    if members.len() > 1 {
        for (of, trace) in members.iter().zip(moments.traces_without()) {
            let left = moments.n - of.len() as f64;
            let shrunk = cutoff.of(trace) * left / moments.n;
            let lost = if shrunk > 0.0 {
                shrunk * lost(eigen, rank, of, shrunk, what)?
            } else {
                // A relative cutoff, and nothing is left.
                value
            };
            without.push((of.len(), dimension(values, shrunk) - lost));
        }
    }
    let parts = members.iter().map(|of| {
        let shares = values.iter().enumerate().map(|(k, v)| {
            let share: f64 = of.iter().map(|&i| eigen.vectors[(i, k)].powi(2)).sum();
            share * v / (v + c)
        });
        shares.sum()
    });
    let found = Estimate::on_logs(value, &without, effective(parts), 0.95);
    Ok(Some(found.without_interval()))
}

/// `tr (I − Q₁)⁻¹ Q₂`.
fn lost(eigen: &Eigen, rank: usize, of: &[usize], c: f64, what: &str) -> Result<f64> {
    let product = |i: usize, j: usize, power: i32| -> f64 {
        let terms = eigen.values[..rank].iter().enumerate();
        let term = |(k, v): (usize, &f64)| {
            v / (v + c).powi(power) * eigen.vectors[(of[i], k)] * eigen.vectors[(of[j], k)]
        };
        terms.map(term).sum()
    };
    let m = of.len();
    if m == 1 {
        return Ok(product(0, 0, 2) / (1.0 - product(0, 0, 1)));
    }
    let q1 = Mat::from_fn(m, m, |i, j| product(i, j, 1));
    let q2 = Mat::from_fn(m, m, |i, j| product(i, j, 2));
    let Eigen { values, vectors } = symmetric(q1.as_ref(), what)?;
    let rotated = vectors.transpose() * &q2 * &vectors;
    let terms = values.iter().enumerate();
    Ok(terms.map(|(k, v)| rotated[(k, k)] / (1.0 - v)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curvature::gram::Gram;
    use crate::jackknife::members;

    /// Leaving clusters out by Woodbury is leaving them out.
    #[test]
    fn what_is_left_is_what_is_left() {
        let clusters = [0, 1, 1, 2, 3, 3, 3, 4];
        let n = clusters.len();
        let x = |i: usize, e: usize| ((i * 7 + e * 13 + i * e) as f64 * 0.37).sin();
        let product = |i: usize, j: usize| (0..11).map(|e| x(i, e) * x(j, e)).sum();
        let values = (0..n * n).map(|k| product(k / n, k % n)).collect();
        let gram = Gram::new(values, &[1.0; 8]);
        let all: Vec<usize> = (0..n).collect();
        let of = |samples: &[usize], cutoff: Cutoff| {
            let top = gram.top(samples, 1e-13, "it").expect("finite");
            let values = &top.eigen.values[..top.rank];
            dimension(values, cutoff.of(values.iter().sum()))
        };
        for cutoff in [Cutoff::Absolute(0.3), Cutoff::Relative(0.01)] {
            let top = gram.top(&all, 1e-13, "it").expect("finite");
            let moments = Moments::new(&gram, 0, &clusters);
            let members = members(&clusters);
            let found = estimate(&top.eigen, top.rank, &moments, &members, cutoff, "it");
            let found = found.expect("finite").expect("a dimension");
            let without: Vec<(usize, f64)> = members
                .iter()
                .map(|gone| {
                    let rest: Vec<usize> =
                        all.iter().copied().filter(|i| !gone.contains(i)).collect();
                    (gone.len(), of(&rest, cutoff))
                })
                .collect();
            let expected = Estimate::on_logs(of(&all, cutoff), &without, 9.0, 0.95);
            assert!((found.value - expected.value).abs() < 1e-12);
            let [x, y] = [found, expected].map(|e| e.standard_error.expect("an error"));
            assert!((x / y - 1.0).abs() < 1e-9, "{cutoff:?}: {x} {y}");
        }
    }
}
