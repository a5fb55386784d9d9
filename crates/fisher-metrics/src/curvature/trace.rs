//! The trace of an operator from few products (Hutch++).

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::operator::Operator;
use super::vectors::{basis, dot, orthogonalize, signs};
use crate::error::{Result, check_argument};

/// A trace with the error of the draws. That of samples is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TraceEstimate {
    /// The trace, unbiased over draws.
    pub value: f64,
    /// What the draws leave uncertain; 0 where the directions found hold all there is.
    pub standard_error: f64,
    /// Directions of which the trace is exact.
    pub exact: usize,
    /// Random vectors for what is left.
    pub drawn: usize,
}

/// `tr A ≈ tr QᵀAQ + mean_z zᵀ(I − QQᵀ)A(I − QQᵀ)z`: exact on the space `Q` of the products of some random vectors, by other random
/// signs `z` elsewhere (Meyer, Musco, Musco & Woodruff 2021, "Hutch++: optimal stochastic trace estimation"). With m
/// products the error falls as 1/m where eigenvalues are not negative, in the place of 1/√m.
///
/// # Errors
/// [`crate::Error::Argument`] for fewer than six products, and those of the operator.
pub fn hutch_plus_plus(
    operator: &impl Operator,
    products: usize,
    seed: u64,
) -> Result<TraceEstimate> {
    check_argument(products >= 6, "products", "at least 6", products as f64)?;
    let (dimension, each) = (operator.dimension(), products / 3);
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let draw = |rng: &mut ChaCha8Rng| -> Vec<Vec<f64>> {
        (0..each).map(|_| signs(dimension, rng)).collect()
    };
    let sketch = draw(rng);
    let space = basis(operator.apply(&sketch)?);
    let along = |vectors: &[Vec<f64>]| -> Result<Vec<f64>> {
        let found = operator.apply(vectors)?;
        Ok(vectors.iter().zip(&found).map(|(x, y)| dot(x, y)).collect())
    };
    let exact: f64 = along(&space)?.iter().sum();
    let mut probes = draw(rng);
    probes
        .iter_mut()
        .for_each(|probe| orthogonalize(probe, &space));
    let rest = along(&probes)?;
    let n = rest.len() as f64;
    let mean = rest.iter().sum::<f64>() / n;
    let squares: f64 = rest.iter().map(|x| (x - mean).powi(2)).sum();
    Ok(TraceEstimate {
        value: exact + mean,
        standard_error: (squares / (n - 1.0) / n).sqrt(),
        exact: space.len(),
        drawn: rest.len(),
    })
}
