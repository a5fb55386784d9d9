//! Which matrix is inverted: the configuration.

use burn::config::Config;
use burn::module::ParamGroup;
use fisher_core::statistics::TaskStatistics;

use super::super::kronecker::Kronecker;
use crate::damping::Damping;

/// Configuration of [`Influence`].
#[derive(Config, Debug)]
pub struct InfluenceConfig {
    /// λ: relative to the mean eigenvalue, of each parameter's block, or of the whole Fisher where that is inverted.
    #[config(default = "Damping::Relative(0.1)")]
    pub damping: Damping,
    /// The parameters whose gradients are compared; all when absent.
    pub only: Option<ParamGroup>,
    /// Bytes for gradients while they are multiplied.
    #[config(default = "1 << 30")]
    pub memory: usize,
    /// Show progress.
    #[config(default = true)]
    pub progress: bool,
}

/// The matrix whose inverse weighs gradients.
#[derive(Debug, Clone, Copy)]
pub enum Inverse<'a> {
    /// The Fisher of the training samples over all pairs of elements, by the matrix of products between samples: exact, for
    /// up to some 10⁴ samples.
    Exact,
    /// A Kronecker approximation, parameter by parameter: KFAC or EKFAC.
    Kronecker(&'a Kronecker),
    /// The diagonal: elements of statistics of the training task.
    Diagonal(&'a TaskStatistics),
    /// None: inner products of gradients (Charpiat et al. 2019, "Input similarity from the neural network perspective"; Pruthi et
    /// al. 2020, "TracIn", of one checkpoint).
    Identity,
}

impl Inverse<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Kronecker(kronecker) if kronecker.is_corrected() => "ekfac",
            Self::Kronecker(_) => "kfac",
            Self::Diagonal(_) => "diagonal",
            Self::Identity => "identity",
        }
    }
}
