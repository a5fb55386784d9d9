//! The largest eigenvalues of an operator, by Lanczos' method.

use faer::Mat;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

use super::eigen::{Eigen, symmetric};
use super::operator::Operator;
use super::vectors::{add, dot, norm, orthogonalize, random, scale};
use crate::error::{Result, check_argument};

/// Configuration of [`eigenpairs`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LanczosConfig {
    /// At most so many products; as many vectors are held.
    pub steps: usize,
    /// A pair is found when `|F w − λ w|` is at most this share of the largest eigenvalue.
    pub tolerance: f64,
    /// Seed of the first vector.
    pub seed: u64,
}

impl Default for LanczosConfig {
    fn default() -> Self {
        Self {
            steps: 200,
            tolerance: 1e-8,
            seed: 0,
        }
    }
}

/// The largest eigenvalues and their vectors.
#[derive(Debug, Clone)]
pub struct Eigenpairs {
    /// λ, the largest first.
    pub values: Vec<f64>,
    /// Unit vectors w.
    pub vectors: Vec<Vec<f64>>,
    /// `|F w − λ w|` of each, by a product of its own: some eigenvalue is within that of λ.
    pub residuals: Vec<f64>,
    /// Products before those.
    pub steps: usize,
    /// Whether all residuals are within the tolerance.
    pub converged: bool,
}

/// What [`Krylov::extend`] has found.
pub(super) struct Krylov {
    pub(super) basis: Vec<Vec<f64>>,
    diagonal: Vec<f64>,
    beside: Vec<f64>,
    /// The next vector, where it is not a restart.
    next: Option<Vec<f64>>,
    largest: f64,
}

/// What is left of a product is rounding below this share of the largest entry of the tridiagonal matrix.
const NOTHING: f64 = 1e-13;

impl Krylov {
    pub(super) fn new(mut start: Vec<f64>) -> Self {
        let length = norm(&start);
        let next = (length > 0.0).then(|| {
            scale(&mut start, length.recip());
            start
        });
        Self {
            basis: Vec::new(),
            diagonal: Vec::new(),
            beside: Vec::new(),
            next,
            largest: 0.0,
        }
    }

    /// One more product; whether there was a vector to take it of.
    pub(super) fn extend(&mut self, operator: &impl Operator) -> Result<bool> {
        let Some(vector) = self.next.take() else {
            return Ok(false);
        };
        let products = operator.apply(std::slice::from_ref(&vector))?;
        let mut left = products.into_iter().next().unwrap_or_default();
        let along = dot(&left, &vector);
        self.basis.push(vector);
        self.diagonal.push(along);
        orthogonalize(&mut left, &self.basis);
        let beside = norm(&left);
        self.largest = self.largest.max(along.abs()).max(beside);
        if beside > NOTHING * self.largest && self.basis.len() < operator.dimension() {
            scale(&mut left, beside.recip());
            self.next = Some(left);
            self.beside.push(beside);
        } else {
            // The space is invariant: nothing of it leads elsewhere.
            self.beside.push(0.0);
        }
        Ok(true)
    }

    /// Go on from a new direction, where the space is invariant and not all there is.
    fn restart(&mut self, dimension: usize, rng: &mut ChaCha8Rng) {
        if self.next.is_some() || self.basis.len() >= dimension {
            return;
        }
        let mut vector = random(dimension, rng);
        let before = norm(&vector);
        orthogonalize(&mut vector, &self.basis);
        let length = norm(&vector);
        if length > 1e-8 * before {
            scale(&mut vector, length.recip());
            self.next = Some(vector);
        }
    }

    /// The tridiagonal matrix's eigenvalues and vectors.
    pub(super) fn eigen(&self) -> Result<Eigen> {
        let m = self.diagonal.len();
        let entry = |i: usize, j: usize| match i.abs_diff(j) {
            0 => self.diagonal[i],
            1 => self.beside[i.min(j)],
            _ => 0.0,
        };
        symmetric(Mat::from_fn(m, m, entry).as_ref(), "the operator")
    }

    /// Estimated residuals of the first `count` pairs.
    fn residuals(&self, eigen: &Eigen, count: usize) -> Vec<f64> {
        let last = self.diagonal.len() - 1;
        let of = |k: usize| (self.beside[last] * eigen.vectors[(last, k)]).abs();
        (0..count).map(of).collect()
    }
}

/// The `count` largest eigenvalues of a symmetric operator, with their vectors, by Lanczos' method with full
/// reorthogonalization (Parlett 1998, "The symmetric eigenvalue problem", §13).
///
/// Where the space that the first vector leads to is invariant, it goes on from another random one, so that eigenvalues that are
/// equal, and zeros, are all found in the end; short of the operator's dimension, those of equal eigenvalues may be missed. Fewer
/// pairs come back where the dimension is smaller.
///
/// # Errors
/// [`crate::Error::Argument`] unless `count`, steps and tolerance are above 0, [`crate::Error::NotFinite`], and those of the
/// operator.
pub fn eigenpairs(
    operator: &impl Operator,
    count: usize,
    config: &LanczosConfig,
) -> Result<Eigenpairs> {
    check_argument(count > 0, "count", "above 0", count as f64)?;
    check_argument(
        config.steps >= count,
        "steps",
        "at least the eigenvalues asked for",
        config.steps as f64,
    )?;
    check_argument(
        config.tolerance > 0.0,
        "tolerance",
        "above 0",
        config.tolerance,
    )?;
    let dimension = operator.dimension();
    let rng = &mut ChaCha8Rng::seed_from_u64(config.seed);
    let mut krylov = Krylov::new(random(dimension, rng));
    let most = config.steps.min(dimension);
    let wanted = count.min(dimension);
    let mut eigen = krylov.eigen()?;
    while krylov.basis.len() < most {
        if !krylov.extend(operator)? {
            break;
        }
        let steps = krylov.basis.len();
        // Finding out costs more than a step where vectors are short.
        if steps == most || steps.is_multiple_of(8) && steps >= wanted {
            eigen = krylov.eigen()?;
            let largest = eigen.values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let found = steps >= wanted
                && krylov.next.is_some()
                && krylov
                    .residuals(&eigen, wanted)
                    .iter()
                    .all(|r| *r <= 0.1 * config.tolerance * largest);
            if found {
                break;
            }
        }
        krylov.restart(dimension, rng);
    }
    if eigen.values.len() != krylov.basis.len() {
        eigen = krylov.eigen()?;
    }
    let wanted = wanted.min(eigen.values.len());
    let vectors: Vec<Vec<f64>> = (0..wanted)
        .map(|k| {
            let mut vector = vec![0.0; dimension];
            let basis = krylov.basis.iter().enumerate();
            basis.for_each(|(i, b)| add(&mut vector, eigen.vectors[(i, k)], b));
            let length = norm(&vector);
            scale(&mut vector, length.recip());
            vector
        })
        .collect();
    let values = eigen.values[..wanted].to_vec();
    let products = operator.apply(&vectors)?.into_iter();
    let residual = |((mut product, vector), value): ((Vec<f64>, &Vec<f64>), &f64)| {
        add(&mut product, -value, vector);
        norm(&product)
    };
    let residuals: Vec<f64> = products.zip(&vectors).zip(&values).map(residual).collect();
    let largest = eigen.values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let converged = residuals
        .iter()
        .all(|r| *r <= config.tolerance * largest.max(f64::MIN_POSITIVE));
    Ok(Eigenpairs {
        values,
        vectors,
        residuals,
        steps: krylov.basis.len(),
        converged,
    })
}
