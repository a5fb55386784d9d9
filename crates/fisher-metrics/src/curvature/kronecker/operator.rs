//! The approximation and what is computed with it.

use std::collections::BTreeMap;

use fisher_core::factors::{Factors, Second};
use fisher_core::provenance::Provenance;

use super::block::{Basis, KroneckerBlock};
use crate::error::{Error, Result};

/// The Fisher of every parameter of a task, as a Kronecker product with eigenvalues of its own.
#[derive(Debug, Clone)]
pub struct Kronecker {
    pub(super) provenance: Provenance,
    pub(super) task: String,
    pub(super) samples: u64,
    pub(super) blocks: BTreeMap<String, KroneckerBlock>,
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

    /// `A ⊗ 1`: the inputs' factors alone, which RegMean weighs weights by; 1 for vectors, tied tables and gradients that were written
    /// out, whose factors say nothing of inputs alone.
    ///
    /// # Errors
    /// As [`Kronecker::of`].
    pub fn of_inputs(factors: &Factors, task: &str) -> Result<Self> {
        let of_task = factors.task(task)?;
        if of_task.count() == 0 {
            return Err(Error::no_samples(task));
        }
        let mut blocks = BTreeMap::new();
        for ((path, shape), (_, sums)) in factors.parameters().zip(of_task.blocks()) {
            let mut sides = of_task.factors(path)?;
            for (at, side) in sides.iter_mut().enumerate() {
                if sums.input_side() != Some(at) {
                    *side = Second::Diagonal(vec![1.0; side.side()]);
                }
            }
            blocks.insert(path.to_owned(), KroneckerBlock::new(shape, sides, path)?);
        }
        Self::of_blocks(factors.provenance().clone(), task, of_task.count(), blocks)
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
        if v.len() != block.eigenvalues().len() {
            return Err(Error::sizes(path, v.len(), block.eigenvalues().len()));
        }
        Ok(block.apply(v, f))
    }

    /// Of all bases, to tell them from others: FNV-1a of their bits.
    pub(super) fn digest(&self) -> u64 {
        let bases = self.blocks.values().flat_map(|block| block.bases());
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
            .map(|block| block.eigenvalues().iter().sum::<f64>())
            .sum()
    }

    /// The mean of all eigenvalues, to which damping can be relative; 0 without parameters.
    pub fn mean_eigenvalue(&self) -> f64 {
        let counts = self.blocks.values().map(|block| block.eigenvalues().len());
        let count: usize = counts.sum();
        self.trace() / count.max(1) as f64
    }
}
