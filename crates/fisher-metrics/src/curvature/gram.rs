//! Products between samples, in units of the Fisher: `k_ij = ⟨g_i, g_j⟩ / √(T_i T_j)`.

use faer::Mat;

use super::eigen::{Eigen, symmetric};
use crate::error::Result;

/// `k`, row-major, of a slice.
#[derive(Debug, Clone)]
pub(super) struct Gram {
    pub(super) n: usize,
    pub(super) values: Vec<f64>,
}

impl Gram {
    /// Of inner products, and of the samples' active tokens.
    pub(super) fn new(mut values: Vec<f64>, tokens: &[f64]) -> Self {
        let n = tokens.len();
        for (row, t) in values.chunks_exact_mut(n.max(1)).zip(tokens) {
            row.iter_mut().zip(tokens).for_each(|(k, u)| {
                *k /= t.sqrt() * u.sqrt();
            });
        }
        Self { n, values }
    }

    pub(super) fn add(&mut self, other: &Self) {
        let pairs = self.values.iter_mut().zip(&other.values);
        pairs.for_each(|(x, y)| *x += y);
    }

    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n + j]
    }

    /// The eigenvalues of the Fisher of some samples alone that are above rounding, and their vectors over these
    /// samples: `F = (1/m) Σ x_i x_iᵀ` has the eigenvectors `w_k = Σ_i u_ik x_i / √(m λ_k)`.
    pub(super) fn top(&self, of: &[usize], rounding: f64, what: &str) -> Result<Top> {
        let m = of.len() as f64;
        let matrix = Mat::from_fn(of.len(), of.len(), |i, j| self.at(of[i], of[j]) / m);
        let eigen = symmetric(matrix.as_ref(), what)?;
        let trace: f64 = eigen.values.iter().sum();
        let rank = eigen.values.iter().filter(|v| **v > rounding * trace);
        Ok(Top {
            rank: rank.count(),
            of: of.to_vec(),
            eigen,
        })
    }
}

/// Eigenvectors of the Fisher of some samples.
#[derive(Debug, Clone)]
pub(super) struct Top {
    pub(super) of: Vec<usize>,
    pub(super) eigen: Eigen,
    /// Eigenvalues above rounding.
    pub(super) rank: usize,
}

impl Top {
    /// `⟨x_j, w_k⟩` of a sample `j` of the gram, which need not be one of these.
    pub(super) fn along(&self, gram: &Gram, j: usize, k: usize) -> f64 {
        let terms = self.of.iter().enumerate();
        let sum: f64 = terms
            .map(|(at, &i)| self.eigen.vectors[(at, k)] * gram.at(j, i))
            .sum();
        sum / (self.of.len() as f64 * self.eigen.values[k]).sqrt()
    }

    /// `⟨w_k, w'_l⟩` of the first `count` eigenvectors of two sets of samples.
    pub(super) fn with(&self, gram: &Gram, other: &Self, count: usize) -> Mat<f64> {
        let along = Mat::from_fn(other.of.len(), count, |j, k| {
            self.along(gram, other.of[j], k)
        });
        Mat::from_fn(count, count, |k, l| {
            let terms = (0..other.of.len()).map(|j| other.eigen.vectors[(j, l)] * along[(j, k)]);
            terms.sum::<f64>() / (other.of.len() as f64 * other.eigen.values[l]).sqrt()
        })
    }
}
