//! Eigenvalues of symmetric matrices, in float64 on the host.

use faer::{Mat, MatRef, Side};

use crate::error::{Error, Result};

/// `M = U diag(λ) Uᵀ`.
#[derive(Debug, Clone)]
pub struct Eigen {
    /// `λ`, the largest first.
    pub values: Vec<f64>,
    /// `U`: the eigenvector of `values[k]` is column `k`.
    pub vectors: Mat<f64>,
}

/// The eigenvalues and eigenvectors of a symmetric matrix, of which the lower half is read.
///
/// # Errors
/// [`Error::NotFinite`], naming `what` it is a matrix of, where an entry or a result is NaN or infinite.
///
/// # Panics
/// When the matrix is not square.
pub fn symmetric(matrix: MatRef<f64>, what: &str) -> Result<Eigen> {
    let not_finite = || Error::not_finite("the matrix of second moments", what);
    if !matrix.is_all_finite() {
        return Err(not_finite());
    }
    if matrix.nrows() == 0 {
        // faer expects a row.
        return Ok(Eigen {
            values: Vec::new(),
            vectors: Mat::new(),
        });
    }
    let found = matrix.self_adjoint_eigen(Side::Lower);
    let found = found.map_err(|_| not_finite())?;
    // Ascending, as they come.
    let values: Vec<f64> = found.S().column_vector().iter().rev().copied().collect();
    Ok(Eigen {
        values,
        vectors: found.U().reverse_cols().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symmetric_matrix_is_its_eigenvalues() {
        let n = 7;
        // Symmetric, of both signs.
        let entry = |i: usize, j: usize| ((i * j + i + j) as f64 * 0.7).sin();
        let matrix = Mat::from_fn(n, n, entry);
        let Eigen { values, vectors } = symmetric(matrix.as_ref(), "it").expect("finite");
        assert!(values.is_sorted_by(|a, b| a >= b));
        let scaled = Mat::from_fn(n, n, |i, k| vectors[(i, k)] * values[k]);
        let again = &scaled * vectors.transpose();
        assert!((&again - &matrix).norm_max() < 1e-13);
        let one = vectors.transpose() * &vectors;
        assert!((&one - Mat::<f64>::identity(n, n)).norm_max() < 1e-13);
    }

    #[test]
    fn nothing_comes_of_what_is_not_finite() {
        let matrix = Mat::from_fn(2, 2, |_, _| f64::NAN);
        let error = symmetric(matrix.as_ref(), "blocks.0.weight").expect_err("NaN");
        assert!(error.to_string().contains("blocks.0.weight"));
        assert!(symmetric(Mat::<f64>::new().as_ref(), "nothing").is_ok());
    }
}
