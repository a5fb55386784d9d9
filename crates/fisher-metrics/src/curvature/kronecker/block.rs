//! The approximation of one parameter.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use fisher_core::factors::Second;

use super::super::eigen::{Eigen, symmetric};
use crate::error::{Error, Result};

/// That of one parameter `[first axis, all others]`.
#[derive(Debug, Clone)]
pub struct KroneckerBlock {
    shape: Vec<usize>,
    /// Of the first axis, and of all others.
    bases: [Basis; 2],
    /// `[first axis, all others]`, in the basis of either.
    eigenvalues: Vec<f64>,
    corrected: bool,
}

/// The basis of a side.
#[derive(Debug, Clone)]
pub enum Basis {
    /// Eigenvectors of its factor, as columns, with its eigenvalues.
    Eigen(Eigen),
    /// The side's own coordinates, of a factor that is a diagonal, which stands here.
    Coordinates(Vec<f64>),
}

impl Basis {
    fn of(second: Second, path: &str) -> Result<Self> {
        match second {
            Second::Diagonal(values) => finite(values, path).map(Self::Coordinates),
            Second::Matrix { side: 1, sums } => finite(sums, path).map(Self::Coordinates),
            Second::Matrix { side, sums } => {
                let matrix = MatRef::from_row_major_slice(&sums, side, side);
                let mut eigen = symmetric(matrix, path)?;
                // It is a sum of squares; what is below 0 is rounding.
                eigen.values.iter_mut().for_each(|x| *x = x.max(0.0));
                Ok(Self::Eigen(eigen))
            }
        }
    }

    /// The eigenvalues of the factor.
    pub fn values(&self) -> &[f64] {
        match self {
            Self::Eigen(eigen) => &eigen.values,
            Self::Coordinates(values) => values,
        }
    }

    pub(super) fn vectors(&self) -> Option<MatRef<'_, f64>> {
        match self {
            Self::Eigen(eigen) => Some(eigen.vectors.as_ref()),
            Self::Coordinates(_) => None,
        }
    }
}

fn finite(values: Vec<f64>, path: &str) -> Result<Vec<f64>> {
    if values.iter().all(|x| x.is_finite()) {
        return Ok(values.into_iter().map(|x| x.max(0.0)).collect());
    }
    Err(Error::not_finite("the matrix of second moments", path))
}

impl KroneckerBlock {
    /// KFAC of a parameter's factors.
    ///
    /// # Errors
    /// [`Error::NotFinite`], naming the parameter at `path`.
    pub fn new(shape: &[usize], factors: [Second; 2], path: &str) -> Result<Self> {
        let [a, s] = factors;
        let bases = [Basis::of(a, path)?, Basis::of(s, path)?];
        let [alpha, sigma] = [&bases[0], &bases[1]].map(Basis::values);
        let eigenvalues = alpha.iter().flat_map(|a| sigma.iter().map(move |s| a * s));
        Ok(Self {
            shape: shape.to_vec(),
            eigenvalues: eigenvalues.collect(),
            bases,
            corrected: false,
        })
    }

    /// The parameter's shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bases of the first axis and of all others.
    pub fn bases(&self) -> &[Basis; 2] {
        &self.bases
    }

    /// `[first axis, all others]`: `α_k σ_l` of KFAC, `s_kl` of EKFAC.
    pub fn eigenvalues(&self) -> &[f64] {
        &self.eigenvalues
    }

    /// Whether they are `s_kl`.
    pub fn is_corrected(&self) -> bool {
        self.corrected
    }

    /// The same bases with other eigenvalues, `[first axis, all others]`.
    ///
    /// # Panics
    /// When they are not as many.
    #[must_use]
    pub fn with_eigenvalues(mut self, eigenvalues: Vec<f64>) -> Self {
        assert_eq!(
            self.eigenvalues.len(),
            eigenvalues.len(),
            "eigenvalues of a block"
        );
        self.eigenvalues = eigenvalues;
        self.corrected = true;
        self
    }

    /// The diagonal in these bases of what another block is in its own: `Σ_ab (u_k · u'_a)² (v_l · v'_b)² s'_ab`. It has the same
    /// trace.
    ///
    /// # Panics
    /// When the other is of other sides.
    pub fn diagonal_of(&self, other: &Self) -> Vec<f64> {
        assert_eq!(self.sides(), other.sides(), "sides of two blocks");
        let [rows, columns] = self.sides();
        let overlap = |at: usize| -> Option<Mat<f64>> {
            let identity = || Mat::identity(self.sides()[at], self.sides()[at]);
            let [ours, theirs] = [self, other].map(|of| of.bases[at].vectors());
            if ours.is_none() && theirs.is_none() {
                return None;
            }
            let [ours, theirs] = [ours, theirs].map(|u| u.map_or_else(identity, |u| u.to_owned()));
            let product = ours.transpose() * &theirs;
            Some(Mat::from_fn(product.nrows(), product.ncols(), |i, j| {
                product[(i, j)] * product[(i, j)]
            }))
        };
        let s = MatRef::from_row_major_slice(&other.eigenvalues, rows, columns).to_owned();
        let s = overlap(0).map_or(s.clone(), |u| u * &s);
        let s = overlap(1).map_or(s.clone(), |v| &s * v.transpose());
        let cells = (0..rows).flat_map(|k| (0..columns).map(move |l| (k, l)));
        cells.map(|at| s[at]).collect()
    }

    /// The lengths of the first axis, and of all others together.
    pub fn sides(&self) -> [usize; 2] {
        [0, 1].map(|at| self.bases[at].values().len())
    }

    /// `Uᵀ X V`, or back again `U X Vᵀ`.
    fn rotated(&self, x: Mat<f64>, back: bool) -> Mat<f64> {
        let turned = |u: MatRef<'_, f64>, x: MatRef<'_, f64>| -> Mat<f64> {
            let mut product = Mat::zeros(u.nrows(), x.ncols());
            let u = if back { u } else { u.transpose() };
            matmul(&mut product, Accum::Replace, u, x, 1.0, Par::rayon(0));
            product
        };
        let x = match self.bases[0].vectors() {
            Some(u) => turned(u, x.as_ref()),
            None => x,
        };
        match self.bases[1].vectors() {
            Some(v) => turned(v, x.transpose()).transpose().to_owned(),
            None => x,
        }
    }

    /// `f(F) v`: `f` of the eigenvalues, in the bases.
    pub(super) fn apply(&self, v: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
        let [rows, columns] = self.sides();
        let x = MatRef::from_row_major_slice(v, rows, columns).to_owned();
        let mut x = self.rotated(x, false);
        for (k, values) in self.eigenvalues.chunks(columns.max(1)).enumerate() {
            for (l, &value) in values.iter().enumerate() {
                x[(k, l)] *= f(value);
            }
        }
        let x = self.rotated(x, true);
        let rows = (0..rows).flat_map(|k| (0..columns).map(move |l| (k, l)));
        rows.map(|at| x[at]).collect()
    }
}
