//! The approximation and what is computed with it.

use std::collections::BTreeMap;

use burn::tensor::Device;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use fisher_core::factors::{Factors, Second};
use fisher_core::provenance::Provenance;

use super::corrections::Corrections;
use crate::curvature::eigen::{Eigen, symmetric};
use crate::error::{Error, Result};

/// The Fisher of every parameter of a task, as a Kronecker product with eigenvalues of its own.
#[derive(Debug, Clone)]
pub struct Kronecker {
    pub(super) provenance: Provenance,
    pub(super) task: String,
    pub(super) samples: u64,
    pub(super) blocks: BTreeMap<String, KroneckerBlock>,
}

/// That of one parameter `[first axis, all others]`.
#[derive(Debug, Clone)]
pub struct KroneckerBlock {
    pub(super) shape: Vec<usize>,
    /// Of the first axis, and of all others.
    pub(super) bases: [Basis; 2],
    /// `[first axis, all others]`, in the basis of either.
    pub(super) eigenvalues: Vec<f64>,
    pub(super) corrected: bool,
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
        return Ok(values);
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

    /// `[first axis, all others]`: `α_k σ_l` of [KFAC](self), `s_kl` of EKFAC.
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
    fn apply(&self, v: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
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

impl Kronecker {
    /// KFAC of the samples of `task`: the eigenvalues of both factors of every parameter, multiplied.
    ///
    /// Takes *side³* operations and three times the memory of a factor, one parameter after the other.
    ///
    /// # Errors
    /// [`Error::NoSamples`] when the task has none, [`Error::NotFinite`] when a factor has left float64's range, errors of the
    /// factors for a task that is not there.
    pub fn of(factors: &Factors, task: &str) -> Result<Self> {
        let of_task = factors.task(task)?;
        if of_task.count() == 0 {
            return Err(Error::no_samples(task));
        }
        let mut blocks = BTreeMap::new();
        for (path, shape) in factors.parameters() {
            let block = KroneckerBlock::new(shape, of_task.factors(path)?, path)?;
            blocks.insert(path.to_owned(), block);
        }
        Ok(Self {
            provenance: factors.provenance().clone(),
            task: task.into(),
            samples: of_task.count(),
            blocks,
        })
    }

    /// Of blocks that were made one by one.
    ///
    /// # Errors
    /// [`Error::NoSamples`] without samples.
    pub fn of_blocks(
        provenance: Provenance,
        task: &str,
        samples: u64,
        blocks: BTreeMap<String, KroneckerBlock>,
    ) -> Result<Self> {
        if samples == 0 {
            return Err(Error::no_samples(task));
        }
        Ok(Self {
            provenance,
            task: task.into(),
            samples,
            blocks,
        })
    }

    /// A sink for a second pass over the task's samples, or over others of its kind: the corrected eigenvalues of
    /// [EKFAC](Self::corrected). Gradients are rotated on `device`.
    ///
    /// # Errors
    /// Those of statistics.
    pub fn corrections(&self, device: &Device) -> Result<Corrections> {
        Corrections::new(self, device)
    }

    /// EKFAC: the same bases with the eigenvalues that `corrections` have seen.
    ///
    /// # Errors
    /// [`Error::NoSamples`] when they have seen none, [`Error::Keys`] or [`Error::Sizes`] when they are of other parameters,
    /// [`Error::NotFinite`] when one has left the range.
    pub fn corrected(mut self, corrections: &Corrections) -> Result<Self> {
        for (path, block) in &mut self.blocks {
            let eigenvalues = corrections.eigenvalues(path)?;
            if eigenvalues.len() != block.eigenvalues.len() {
                let (ours, theirs) = (block.eigenvalues.len(), eigenvalues.len());
                return Err(Error::sizes(path.clone(), ours, theirs));
            }
            if eigenvalues.iter().any(|x| !x.is_finite()) {
                return Err(Error::not_finite("an eigenvalue", path));
            }
            *block = block.clone().with_eigenvalues(eigenvalues);
        }
        Ok(self)
    }

    /// Whether it is EKFAC.
    pub fn is_corrected(&self) -> bool {
        self.blocks.values().any(KroneckerBlock::is_corrected)
    }

    /// The task.
    pub fn task(&self) -> &str {
        &self.task
    }

    /// The samples that the factors are of.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Where they come from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Every parameter's, by path.
    pub fn blocks(&self) -> impl Iterator<Item = (&str, &KroneckerBlock)> {
        self.blocks.iter().map(|(path, block)| (&**path, block))
    }

    /// That of the parameter at `path`.
    ///
    /// # Errors
    /// [`Error::Keys`] when it has no factors.
    pub fn block(&self, path: &str) -> Result<&KroneckerBlock> {
        let block = self.blocks.get(path);
        block.ok_or_else(|| Error::keys(path, "what is asked for", "the factors"))
    }

    /// `f(F) v` for a vector over one parameter, flattened: `|s| s` multiplies by *F*, `|s| 1.0 / (s + λ)` by the inverse of
    /// `F + λ`, and so on for any function of the eigenvalues.
    ///
    /// # Errors
    /// [`Error::Keys`] when it has no factors, [`Error::Sizes`] when `v` is of another size.
    pub fn apply(&self, path: &str, v: &[f64], f: impl Fn(f64) -> f64) -> Result<Vec<f64>> {
        let block = self.block(path)?;
        if v.len() != block.eigenvalues.len() {
            return Err(Error::sizes(path, v.len(), block.eigenvalues.len()));
        }
        Ok(block.apply(v, f))
    }

    /// Of all bases, to tell them from others: FNV-1a of their bits.
    pub(super) fn digest(&self) -> u64 {
        let bases = self.blocks.values().flat_map(|block| &block.bases);
        let vectors = bases.filter_map(Basis::vectors);
        let values = vectors.flat_map(|u| {
            let cells = (0..u.ncols()).flat_map(move |k| (0..u.nrows()).map(move |i| (i, k)));
            cells.map(move |at| u[at].to_bits())
        });
        values.fold(0xcbf2_9ce4_8422_2325, |digest, bits| {
            (digest ^ bits).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// The sum of all eigenvalues of all parameters. EKFAC's is the trace of the Fisher.
    pub fn trace(&self) -> f64 {
        let blocks = self.blocks.values();
        blocks
            .map(|block| block.eigenvalues.iter().sum::<f64>())
            .sum()
    }

    /// The mean of all eigenvalues, to which damping can be relative; 0 without parameters.
    pub fn mean_eigenvalue(&self) -> f64 {
        let counts = self.blocks.values().map(|block| block.eigenvalues.len());
        let count: usize = counts.sum();
        self.trace() / count.max(1) as f64
    }
}
