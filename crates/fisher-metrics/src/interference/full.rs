//! `g_iᵀ (F + λI)⁻¹ g_j` with the full empirical Fisher of a slice.
//!
//! With `F = VᵀV`, where row `m` of `V` is `√c_m g_m` and `c_m` a sample's share of F divided by
//! its tokens, the inverse never appears. For a sample `m` that is part of F the push-through
//! identity gives `(λI + VᵀV)⁻¹ g_m = Vᵀ (λI + VVᵀ)⁻¹ e_m / √c_m`, and for one that is not,
//! Woodbury's `(λI + VᵀV)⁻¹ = (I − Vᵀ (λI + VVᵀ)⁻¹ V) / λ`. Either way only inner products of
//! samples are needed, and a system of their number. The former is used wherever it can be: λ is
//! small, and the latter's difference would lose the digits.

use super::config::{FisherEstimate, InterferenceConfig, Normalize, Pool};
use crate::error::{Error, Result};
use crate::pairs::{Rows, Slice};

/// Inner products of the samples of A and then B, over one slice.
struct Gram<'a> {
    values: &'a [f64],
    n: usize,
    name: &'a str,
}

/// The scores `[n_A, n_B]`, summed over the slice.
pub(super) fn scores(
    config: &InterferenceConfig,
    slice: &Slice,
    gram: &[f64],
    rows: &[Rows; 3],
    lambdas: &[f64],
) -> Result<Vec<f64>> {
    let (n_a, n_b) = (rows[0].len(), rows[1].len());
    let gram = Gram {
        values: gram,
        n: n_a + n_b,
        name: &slice.name,
    };
    let (a, b): (Vec<usize>, Vec<usize>) = ((0..n_a).collect(), (n_a..n_a + n_b).collect());
    let tokens = &rows[2].tokens;
    let weights = |of: &[usize], share: f64, count: usize| -> Vec<(usize, f64)> {
        let weight = |&m: &usize| (m, share / (count as f64 * tokens[m]));
        of.iter().map(weight).collect()
    };
    let mut scores = vec![0.0; n_a * n_b];
    match (config.pool, config.estimate) {
        (Pool::A | Pool::Pooled, FisherEstimate::LeaveOneOut) => {
            for i in 0..n_a {
                let others: Vec<usize> = a.iter().copied().filter(|m| *m != i).collect();
                let into = &mut scores[i * n_b..(i + 1) * n_b];
                if config.pool == Pool::A {
                    let of = weights(&others, 1.0, n_a - 1);
                    into.copy_from_slice(&gram.outside(&of, i, &b, lambdas[i])?);
                } else {
                    let mut of = weights(&others, 0.5, n_a - 1);
                    of.extend(weights(&b, 0.5, n_b));
                    let found =
                        gram.inside(&of, others.len()..others.len() + n_b, &[i], lambdas[i])?;
                    into.copy_from_slice(&found);
                }
            }
        }
        (Pool::A | Pool::Pooled, FisherEstimate::All) => {
            let mut of = match config.pool {
                Pool::A => weights(&a, 1.0, n_a),
                _ => weights(&a, 0.5, n_a),
            };
            if config.pool == Pool::Pooled {
                of.extend(weights(&b, 0.5, n_b));
            }
            scores = gram.inside(&of, 0..n_a, &b, lambdas[0])?;
        }
        (Pool::B, _) => {
            let of = weights(&b, 1.0, n_b);
            let transposed = gram.inside(&of, 0..n_b, &a, lambdas[0])?;
            for (k, score) in scores.iter_mut().enumerate() {
                *score = transposed[k % n_b * n_a + k / n_b];
            }
        }
    }
    normalize(&mut scores, config.normalize, &rows[1].tokens);
    Ok(scores)
}

/// The scores of all samples against each other, with F over all of them.
pub(super) fn among(
    config: &InterferenceConfig,
    slice: &Slice,
    gram: &[f64],
    rows: &Rows,
    lambdas: &[f64],
) -> Result<Vec<f64>> {
    let n = rows.len();
    let all: Vec<usize> = (0..n).collect();
    let of: Vec<(usize, f64)> = all
        .iter()
        .map(|&m| (m, 1.0 / (n as f64 * rows.tokens[m])))
        .collect();
    let gram = Gram {
        values: gram,
        n,
        name: &slice.name,
    };
    let mut scores = gram.inside(&of, 0..n, &all, lambdas[0])?;
    normalize(&mut scores, config.normalize, &rows.tokens);
    Ok(scores)
}

/// Divide scores, row-major, by what `g_j` is divided by: `tokens` are the columns'.
fn normalize(scores: &mut [f64], how: Normalize, tokens: &[f64]) {
    let total: f64 = tokens.iter().sum();
    for row in scores.chunks_mut(tokens.len().max(1)) {
        for (score, tokens) in row.iter_mut().zip(tokens) {
            *score *= how.factor(*tokens, total);
        }
    }
}

impl Gram<'_> {
    fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n + j]
    }

    /// Scores of samples `which` of `of`, which are part of F, with `others`.
    fn inside(
        &self,
        of: &[(usize, f64)],
        which: std::ops::Range<usize>,
        others: &[usize],
        lambda: f64,
    ) -> Result<Vec<f64>> {
        let factor = self.factor(of, lambda)?;
        let mut scores = vec![0.0; which.len() * others.len()];
        for (column, &other) in others.iter().enumerate() {
            let mut x: Vec<f64> = of
                .iter()
                .map(|&(m, c)| c.sqrt() * self.at(m, other))
                .collect();
            factor.solve(&mut x);
            for (row, m) in which.clone().enumerate() {
                scores[row * others.len() + column] = x[m] / of[m].1.sqrt();
            }
        }
        Ok(scores)
    }

    /// Scores of sample `i`, which is not part of F, with `others`, which are neither.
    fn outside(
        &self,
        of: &[(usize, f64)],
        i: usize,
        others: &[usize],
        lambda: f64,
    ) -> Result<Vec<f64>> {
        let factor = self.factor(of, lambda)?;
        let mut x: Vec<f64> = of.iter().map(|&(m, c)| c.sqrt() * self.at(m, i)).collect();
        factor.solve(&mut x);
        let score = |&other: &usize| {
            let terms = of.iter().zip(&x);
            let inside: f64 = terms
                .map(|(&(m, c), x)| c.sqrt() * self.at(m, other) * x)
                .sum();
            (self.at(i, other) - inside) / lambda
        };
        Ok(others.iter().map(score).collect())
    }

    /// `λI + VVᵀ`, factored.
    fn factor(&self, of: &[(usize, f64)], lambda: f64) -> Result<Cholesky> {
        let n = of.len();
        let mut matrix = vec![0.0; n * n];
        for (row, &(i, c)) in of.iter().enumerate() {
            for (column, &(j, d)) in of.iter().enumerate() {
                matrix[row * n + column] = (c * d).sqrt() * self.at(i, j);
            }
            matrix[row * n + row] += lambda;
        }
        Cholesky::of(matrix, n).ok_or_else(|| Error::Singular {
            slice: self.name.into(),
            lambda,
        })
    }
}

/// `LLᵀ` of a positive definite matrix.
struct Cholesky {
    lower: Vec<f64>,
    n: usize,
}

impl Cholesky {
    fn of(mut m: Vec<f64>, n: usize) -> Option<Self> {
        for j in 0..n {
            for i in j..n {
                let (above, below) = (&m[j * n..j * n + j], &m[i * n..i * n + j]);
                let dot: f64 = above.iter().zip(below).map(|(x, y)| x * y).sum();
                let rest = m[i * n + j] - dot;
                m[i * n + j] = if i != j {
                    rest / m[j * n + j]
                } else if rest > 0.0 {
                    rest.sqrt()
                } else {
                    return None;
                };
            }
        }
        Some(Self { lower: m, n })
    }

    fn solve(&self, x: &mut [f64]) {
        let (l, n) = (&self.lower, self.n);
        for i in 0..n {
            let dot: f64 = l[i * n..i * n + i]
                .iter()
                .zip(&*x)
                .map(|(l, x)| l * x)
                .sum();
            x[i] = (x[i] - dot) / l[i * n + i];
        }
        for i in (0..n).rev() {
            x[i] /= l[i * n + i];
            let xi = x[i];
            for k in 0..i {
                x[k] -= l[i * n + k] * xi;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_solved() {
        let m = vec![4.0, 2.0, 0.6, 2.0, 3.0, 0.4, 0.6, 0.4, 2.0];
        let expected = [1.0, -2.0, 0.5];
        let mut x: Vec<f64> = m
            .chunks(3)
            .map(|row| row.iter().zip(expected).map(|(m, x)| m * x).sum())
            .collect();
        Cholesky::of(m, 3).expect("definite").solve(&mut x);
        assert!(x.iter().zip(expected).all(|(x, e)| (x - e).abs() < 1e-14));
        assert!(Cholesky::of(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }
}
