//! What multiplies vectors by a symmetric matrix that is not there.

use crate::error::{Error, Result};

/// A symmetric matrix of which only products with vectors are known.
pub trait Operator {
    /// Rows of the matrix.
    fn dimension(&self) -> usize;

    /// Its products with some vectors, which may cost less together than one by one.
    ///
    /// # Errors
    /// [`Error::Sizes`] when a vector has another length, [`Error::NotFinite`] when an element is NaN or infinite, and
    /// those of computing the products.
    fn apply(&self, vectors: &[Vec<f64>]) -> Result<Vec<Vec<f64>>>;
}

/// An operator from a function.
#[derive(Debug, Clone)]
pub struct Map<F> {
    dimension: usize,
    product: F,
}

impl<F: Fn(&[f64]) -> Result<Vec<f64>>> Map<F> {
    /// The symmetric matrix whose products `product` computes.
    pub fn new(dimension: usize, product: F) -> Self {
        Self { dimension, product }
    }
}

impl<F: Fn(&[f64]) -> Result<Vec<f64>>> Operator for Map<F> {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn apply(&self, vectors: &[Vec<f64>]) -> Result<Vec<Vec<f64>>> {
        check(vectors, self.dimension, "the vector")?;
        let products = vectors.iter().map(|v| (self.product)(v));
        let products = products.collect::<Result<Vec<_>>>()?;
        check(&products, self.dimension, "the product")?;
        Ok(products)
    }
}

/// Whether vectors are of this length and finite.
pub(super) fn check(vectors: &[Vec<f64>], dimension: usize, what: &'static str) -> Result<()> {
    for vector in vectors {
        if vector.len() != dimension {
            return Err(Error::sizes(what, vector.len(), dimension));
        }
        if let Some(at) = vector.iter().position(|x| !x.is_finite()) {
            return Err(Error::not_finite(what, format!("element {at}")));
        }
    }
    Ok(())
}
