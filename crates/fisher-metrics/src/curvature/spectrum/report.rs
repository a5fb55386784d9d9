//! The report of [`Spectrum`](super::Spectrum).

use serde::{Deserialize, Serialize};

use super::super::estimate::Estimate;
use super::config::SpectrumConfig;
use crate::report::{GradientSource, SampleRef};

/// A sample's part in an eigenvector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The sample.
    pub sample: SampleRef,
    /// `⟨g_i, w⟩² / (n T_i λ)`: its share of the eigenvalue. Shares of all samples add up to 1.
    pub share: f64,
}

/// An eigenvector of the Fisher, told by samples: it is a sum of their gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Direction {
    /// λ.
    pub eigenvalue: f64,
    /// What the Fisher of one half of the samples is along this eigenvector of the other half, over both halves and
    /// all splits. Its expectation is no larger than the true eigenvalue, for the first, and that of sums no
    /// larger than the sum of as many true ones. `None` where a half has fewer eigenvectors.
    pub held_out: Option<f64>,
    /// The samples with the largest shares, those first. Where eigenvalues are equal the vectors are any of their
    /// space, and so are shares.
    pub parts: Vec<Part>,
}

/// The spectrum of one slice.
///
/// The Fisher of the samples, F, is an estimate of Φ, the Fisher of what they were drawn from.
///
/// | | of F | of Φ |
/// |---|---|---|
/// | `trace` | exact | unbiased |
/// | `square` | exact | too large, by about `(tr Φ)²/n` |
/// | `unbiased_square` | | unbiased |
/// | `participation` | exact | too small: at most n |
/// | `unbiased_participation` | | a ratio of unbiased numbers, itself biased by order 1/n |
/// | `eigenvalues` | exact | spread out: sums of the largest are too large, of the smallest too small |
/// | `Direction::held_out` | | the first, and sums from the first: too small |
/// | `dimension` | exact | too small (it is concave in F) |
/// | `stable_rank`, `holding` | exact | too small |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceSpectrum {
    /// The parameter, head, layer or chosen set.
    pub name: String,
    /// Its elements.
    pub elements: usize,
    /// Eigenvalues that are not 0 by their own, the largest first: as many as samples, of which those from
    /// `rank` on are below rounding and told as 0.
    pub eigenvalues: Vec<f64>,
    /// Eigenvalues above rounding.
    pub rank: usize,
    /// What rounding makes of a 0: eigenvalues up to it are told as 0.
    pub rounding: f64,
    /// `tr F`.
    pub trace: Estimate,
    /// `tr F²`.
    pub square: f64,
    /// `tr Φ²` by pairs of different clusters; `None` for a single cluster.
    pub unbiased_square: Option<Estimate>,
    /// `tr F / λ₁`.
    pub stable_rank: Option<f64>,
    /// `(tr F)² / tr F²`.
    pub participation: Option<f64>,
    /// `(tr Φ)² / tr Φ²`, each without bias; `None` for a single cluster, or where no two clusters have a product
    /// other than 0.
    pub unbiased_participation: Option<Estimate>,
    /// c of the effective dimension.
    pub cutoff: f64,
    /// `Σ λ/(λ + c)`, with its error and without an interval.
    pub dimension: Option<Estimate>,
    /// The eigenvalues, from the largest, that hold 50, 90 and 99 % of the trace.
    pub holding: Option<[usize; 3]>,
    /// The first eigenvectors.
    pub top: Vec<Direction>,
}

impl SliceSpectrum {
    /// λ₁, or 0.
    pub fn largest(&self) -> f64 {
        self.eigenvalues.first().copied().unwrap_or(0.0)
    }
}

/// The spectrum of the full Fisher of a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpectrumReport {
    /// Version of this form.
    pub schema: u64,
    /// The task.
    pub task: String,
    /// Hash of the model's weights.
    pub model: String,
    /// The gradients.
    pub gradients: GradientSource,
    /// The settings.
    pub settings: SpectrumConfig,
    /// Ids of the samples.
    pub samples: Vec<String>,
    /// How many of them count as independent: clusters, with copies put together.
    pub independent: usize,
    /// Groups of samples that are copies of each other.
    pub copies: Vec<Vec<SampleRef>>,
    /// The slices.
    pub slices: Vec<SliceSpectrum>,
    /// All slices together, blocks between them too; `None` where there is one, or where they overlap.
    pub together: Option<SliceSpectrum>,
    /// What a reader must know.
    pub warnings: Vec<String>,
}
