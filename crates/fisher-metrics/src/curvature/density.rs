//! How the eigenvalues of an operator are spread, by stochastic Lanczos quadrature.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::lanczos::Krylov;
use super::operator::Operator;
use super::vectors::signs;
use crate::error::{Result, check_argument};

/// Nodes and weights of a quadrature for each of some random vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Density {
    /// Eigenvalues there are.
    pub dimension: usize,
    /// Of each random vector `(θ, w)`: `Σ w f(θ) ≈ zᵀ f(A) z / |z|²`, weights adding up to 1.
    pub probes: Vec<Vec<(f64, f64)>>,
}

/// A sum over eigenvalues with the error of the draws. That of samples is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpectralSum {
    /// `Σ_k f(λ_k)`.
    pub value: f64,
    /// Over random vectors; `None` for one.
    pub standard_error: Option<f64>,
}

/// The spectral density from `probes` random vectors and `steps` products of each (Golub & Welsch 1969; Ubaru, Chen & Saad
/// 2017, "Fast estimation of tr f(A) via stochastic Lanczos quadrature"). Exact for polynomials up to degree `2 steps − 1`
/// but for the draws.
///
/// # Errors
/// [`crate::Error::Argument`] unless both are above 0, and those of the operator.
pub fn spectral_density(
    operator: &impl Operator,
    probes: usize,
    steps: usize,
    seed: u64,
) -> Result<Density> {
    check_argument(probes > 0, "probes", "above 0", 0.0)?;
    check_argument(steps > 0, "steps", "above 0", 0.0)?;
    let dimension = operator.dimension();
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let mut found = Vec::with_capacity(probes);
    for _ in 0..probes {
        let mut krylov = Krylov::new(signs(dimension, rng));
        for _ in 0..steps {
            if !krylov.extend(operator)? {
                break;
            }
        }
        let eigen = krylov.eigen()?;
        let nodes = eigen.values.iter().enumerate();
        let nodes = nodes.map(|(k, v)| (*v, eigen.vectors[(0, k)].powi(2)));
        found.push(nodes.collect());
    }
    Ok(Density {
        dimension,
        probes: found,
    })
}

impl Density {
    /// `Σ_k f(λ_k) = tr f(A)`. Where `f` jumps, such as in counts of eigenvalues, the quadrature itself is off by up to the weight
    /// of a node, which the error does not tell.
    pub fn sum(&self, f: impl Fn(f64) -> f64) -> SpectralSum {
        let of = |nodes: &Vec<(f64, f64)>| -> f64 {
            let terms = nodes.iter().map(|(node, weight)| weight * f(*node));
            self.dimension as f64 * terms.sum::<f64>()
        };
        let each: Vec<f64> = self.probes.iter().map(of).collect();
        let n = each.len() as f64;
        let mean = each.iter().sum::<f64>() / n;
        let squares: f64 = each.iter().map(|x| (x - mean).powi(2)).sum();
        SpectralSum {
            value: mean,
            standard_error: (each.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()),
        }
    }

    /// The density at `points`, each node a normal of standard deviation `width`: it integrates to 1.
    ///
    /// # Panics
    /// Unless the width is above 0.
    pub fn smoothed(&self, points: &[f64], width: f64) -> Vec<f64> {
        assert!(width > 0.0, "the width of a density");
        let scale = 1.0 / (width * (std::f64::consts::TAU).sqrt() * self.dimension as f64);
        let normal = |x: f64, at: f64| (-0.5 * ((x - at) / width).powi(2)).exp();
        let density = |x: &f64| scale * self.sum(|node| normal(*x, node)).value;
        points.iter().map(density).collect()
    }
}
