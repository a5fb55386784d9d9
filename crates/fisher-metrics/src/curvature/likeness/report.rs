//! The report of [`Likeness`](super::Likeness).

use serde::{Deserialize, Serialize};

use super::config::LikenessConfig;
use crate::report::{GradientSource, SampleRef};

/// The overlap of two Fishers without bias.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// `tr Φ_A Φ_B / √(tr Φ_A² tr Φ_B²)` of traces that are unbiased each, less what the jackknife finds of the ratio's
    /// bias. Between 0 and 1 but for noise.
    pub value: f64,
    /// By leaving out clusters of either task.
    pub standard_error: f64,
    /// It can reach below 0 and above 1, where the true overlap cannot be.
    pub interval: [f64; 2],
}

/// The angles between the spaces of the first eigenvectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Angles {
    /// How many eigenvectors of either task.
    pub dimensions: usize,
    /// The cosines of the principal angles, the largest first: singular values of `W_Aᵀ W_B`.
    pub cosines: Vec<f64>,
    /// The mean of their squares: 1 for equal spaces, 0 for orthogonal ones.
    pub mean_square: f64,
    /// What that is for random spaces: dimensions over elements.
    pub chance: f64,
    /// The mean square between halves of different tasks, over all splits, of as many eigenvectors as each half has, up to
    /// `dimensions`; `None` where one has none.
    pub across: Option<f64>,
    /// The mean square between two halves of one task, of each task: that of halves of different tasks
    /// is not expected above the mean of these.
    pub within: [Option<f64>; 2],
}

/// One slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceLikeness {
    /// The parameter, head, layer or chosen set.
    pub name: String,
    /// Its elements.
    pub elements: usize,
    /// `tr F` of either task.
    pub traces: [f64; 2],
    /// `tr F_A F_B`, an unbiased estimate of `tr Φ_A Φ_B` as it stands.
    pub product: f64,
    /// `tr F²` of either task: too large for `tr Φ²`.
    pub squares: [f64; 2],
    /// `tr Φ²` by pairs of different clusters; `None` for a single cluster.
    pub unbiased_squares: [Option<f64>; 2],
    /// `tr F_A F_B / √(tr F_A² tr F_B²)`: too small, the more so the fewer samples. `None` where all gradients of a
    /// task are 0.
    pub plain: Option<f64>,
    /// The ratio with unbiased traces; `None` where one of them is not above 0.
    pub unbiased: Option<f64>,
    /// The same with its error; `None` also below three clusters of a task, or where nothing varies.
    pub overlap: Option<Overlap>,
    /// The share of relabellings of samples whose overlap is as small: the tasks' gradients are not of one distribution
    /// where it is small. `None` below three clusters of a task.
    pub p: Option<f64>,
    /// Whether all relabellings were counted.
    pub exact: bool,
    /// The spaces of the first eigenvectors; `None` where a task has none.
    pub angles: Option<Angles>,
}

/// How alike the full Fishers of two tasks are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LikenessReport {
    /// Version of this form.
    pub schema: u64,
    /// The tasks.
    pub tasks: [String; 2],
    /// Hash of the model's weights.
    pub model: String,
    /// The gradients.
    pub gradients: GradientSource,
    /// The settings.
    pub settings: LikenessConfig,
    /// Ids of the samples.
    pub samples: [Vec<String>; 2],
    /// How many of either task count as independent: clusters, with copies put together.
    pub independent: [usize; 2],
    /// Groups of samples that are copies of each other.
    pub copies: Vec<Vec<SampleRef>>,
    /// The slices.
    pub slices: Vec<SliceLikeness>,
    /// All slices together; `None` where there is one, or where they overlap.
    pub together: Option<SliceLikeness>,
    /// What a reader must know.
    pub warnings: Vec<String>,
}
