//! Which matrix is inverted: the configuration.

use burn::config::Config;
use burn::module::ParamGroup;
use fisher_core::statistics::Statistics;

use super::super::kronecker::Kronecker;
use crate::damping::Damping;

/// Configuration of [`Influence`](super::Influence).
#[derive(Config, Debug)]
pub struct InfluenceConfig {
    /// λ: relative to the mean eigenvalue of each parameter's block, or, where the whole Fisher is inverted, to its trace over the
    /// number of samples: no more of its eigenvalues are above 0. At least 1e-100.
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
    /// The diagonal: elements of statistics, of this task.
    Diagonal(&'a Statistics, &'a str),
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
            Self::Diagonal(..) => "diagonal",
            Self::Identity => "identity",
        }
    }
}
