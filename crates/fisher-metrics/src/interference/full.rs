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

/// What the scores of one slice are made of.
pub(super) struct Full<'a> {
    config: &'a InterferenceConfig,
    gram: Gram<'a>,
    counts: [usize; 2],
    /// Of all samples.
    tokens: &'a [f64],
}

impl<'a> Full<'a> {
    /// `gram` is of all rows, `rows` are those of A, of B and of both.
    pub(super) fn new(
        config: &'a InterferenceConfig,
        slice: &'a Slice,
        gram: &'a [f64],
        rows: &'a [Rows; 3],
    ) -> Self {
        Self {
            config,
            gram: Gram {
                values: gram,
                n: rows[2].len(),
                name: &slice.name,
            },
            counts: [rows[0].len(), rows[1].len()],
            tokens: &rows[2].tokens,
        }
    }

    /// The samples that F is of, and the weight `c_m` of each, without sample `out` of A: those of A
    /// before those of B.
    fn members(&self, out: Option<usize>) -> Vec<(usize, f64)> {
        let [n_a, n_b] = self.counts;
        let (of_a, of_b) = match self.config.pool {
            Pool::A => (1.0, 0.0),
            Pool::B => (0.0, 1.0),
            Pool::Pooled => (0.5, 0.5),
        };
        let a = (0..n_a).filter(|m| Some(*m) != out);
        let left = n_a - usize::from(out.is_some());
        let weigh = |m: usize, share: f64, n: usize| (m, share / (n as f64 * self.tokens[m]));
        let a = a.map(|m| weigh(m, of_a, left));
        let b = (n_a..n_a + n_b).map(|m| weigh(m, of_b, n_b));
        a.chain(b).filter(|(_, weight)| *weight > 0.0).collect()
    }

    /// `tr F / n` of the samples that F is of: the mean of the eigenvalues that they make.
    fn mean_eigenvalue(&self, of: &[(usize, f64)]) -> f64 {
        let trace: f64 = of.iter().map(|&(m, c)| c * self.gram.at(m, m)).sum();
        trace / of.len() as f64
    }

    /// The same where no sample is left out.
    pub(super) fn eigenvalue(&self) -> f64 {
        self.mean_eigenvalue(&self.members(None))
    }

    /// λ for such a mean eigenvalue.
    pub(super) fn lambda(&self, eigenvalue: f64) -> f64 {
        let ridge = &self.config.ridge;
        ridge.ridge.max(ridge.ridge_rel * eigenvalue)
    }

    fn lambda_of(&self, of: &[(usize, f64)]) -> f64 {
        self.lambda(self.mean_eigenvalue(of))
    }

    /// The scores `[n_A, n_B]`, summed over the slice.
    pub(super) fn scores(&self) -> Result<Vec<f64>> {
        let [n_a, n_b] = self.counts;
        let (pool, gram) = (self.config.pool, &self.gram);
        let (a, b): (Vec<usize>, Vec<usize>) = ((0..n_a).collect(), (n_a..n_a + n_b).collect());
        let mut scores = vec![0.0; n_a * n_b];
        match (pool, self.config.estimate) {
            (Pool::A | Pool::Pooled, FisherEstimate::LeaveOneOut) => {
                for (i, into) in scores.chunks_exact_mut(n_b).enumerate() {
                    let of = self.members(Some(i));
                    let lambda = self.lambda_of(&of);
                    let found = match pool {
                        Pool::A => gram.outside(&of, i, &b, lambda)?,
                        _ => gram.inside(&of, n_a - 1..n_a - 1 + n_b, &[i], lambda)?,
                    };
                    into.copy_from_slice(&found);
                }
            }
            (Pool::A | Pool::Pooled, FisherEstimate::All) => {
                let of = self.members(None);
                scores = gram.inside(&of, 0..n_a, &b, self.lambda_of(&of))?;
            }
            (Pool::B, _) => {
                let of = self.members(None);
                let transposed = gram.inside(&of, 0..n_b, &a, self.lambda_of(&of))?;
                for (k, score) in scores.iter_mut().enumerate() {
                    *score = transposed[k % n_b * n_a + k / n_b];
                }
            }
        }
        normalize(&mut scores, self.config.normalize, &self.tokens[n_a..]);
        Ok(scores)
    }
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
