//! The errors of an analysis, and the kinds of scores that they name.

use fisher_core::store::GradientStore;
use serde::{Deserialize, Serialize};

/// Errors of this crate. Every variant names what it is about and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the statistics.
    #[error(transparent)]
    Core(#[from] fisher_core::Error),

    /// A task without samples has no importance.
    #[error("task `{task}` has no samples; collect some before ranking")]
    NoSamples {
        /// The task.
        task: String,
    },

    /// Samples of two tasks are compared, and of one there are not enough.
    #[error(
        "task `{task}` has {found} samples in the store and needs two; tasks there are: {known}"
    )]
    TooFewSamples {
        /// The task.
        task: String,
        /// Its samples.
        found: usize,
        /// The tasks there are.
        known: String,
    },

    /// A setting that means nothing together with another.
    #[error("{what}")]
    Settings {
        /// What does not go together, and what to do.
        what: &'static str,
    },

    /// A matrix that cannot be inverted.
    #[error(
        "the full Fisher of {slice} plus λ = {lambda:e} is singular in float64; raise `ridge_rel`"
    )]
    Singular {
        /// The slice.
        slice: String,
        /// The damping.
        lambda: f64,
    },

    /// A file that could not be written.
    #[error("{path}: {reason}")]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        reason: String,
    },

    /// The statistics do not hold what an analysis needs.
    #[error("the statistics hold no {what}; {advice}")]
    NotCollected {
        /// What is missing.
        what: &'static str,
        /// How to have it.
        advice: &'static str,
    },

    /// Two things that are compared or applied do not have the same keys.
    #[error("`{key}` is in {present} but not in {absent}")]
    Keys {
        /// The key that does not join.
        key: String,
        /// Where it is.
        present: &'static str,
        /// Where it is not.
        absent: &'static str,
    },

    /// Two things of one key have different sizes.
    #[error("`{key}` has {ours} entries in one and {theirs} in the other")]
    Sizes {
        /// The key.
        key: String,
        /// Entries on the one side.
        ours: usize,
        /// Entries on the other side.
        theirs: usize,
    },

    /// A parameter is not of the shape that its Fisher or mask was taken at.
    #[error(
        "`{key}` has shape {ours:?} in one and {theirs:?} in the other (a parameter that has grown can \
         be let through by `Growth::Free`, in EWC and scaling)"
    )]
    Shape {
        /// The key.
        key: String,
        /// The shape on the one side.
        ours: Vec<usize>,
        /// The shape on the other side.
        theirs: Vec<usize>,
    },

    /// Two things of one key are of different groups.
    #[error("`{key}` is grouped in one way on one side and in another on the other")]
    Groups {
        /// The key.
        key: String,
    },

    /// Fishers that are not of one kind are no numbers to add, average or compare.
    #[error(
        "the Fishers differ in {what}: `{ours}` on one side, `{theirs}` on the other; collect both \
         with the same configuration"
    )]
    OtherFisher {
        /// What differs.
        what: &'static str,
        /// It on the one side.
        ours: String,
        /// It on the other side.
        theirs: String,
    },

    /// A number that is NaN or infinite.
    #[error("{what} of `{key}` is NaN or infinite")]
    NotFinite {
        /// What the number is.
        what: &'static str,
        /// The key.
        key: String,
    },

    /// Nothing is left after protection and filters.
    #[error("nothing can be pruned: all of {all} are protected")]
    Empty {
        /// What there was.
        all: String,
    },

    /// A pattern that protects nothing is a mistake.
    #[error(
        "a pattern of `protected` matches no path (ids are not known here); there are: {paths}"
    )]
    Pattern {
        /// The paths there are.
        paths: String,
    },

    /// Scores of different kinds do not average.
    #[error("scores of kind {ours:?} and {theirs:?} cannot be averaged")]
    Kinds {
        /// The one kind.
        ours: ScoreKind,
        /// The other kind.
        theirs: ScoreKind,
    },

    /// A Fisher beyond the range of what it was accumulated in.
    #[error(
        "the Fisher of `{what}` is not finite: sums of squares have left the range of the type they \
         were accumulated in; divide the loss by a power of two, or accumulate in float64"
    )]
    OutOfRange {
        /// The layer, head, group or task.
        what: String,
    },

    /// A number out of range.
    #[error("`{name}` must be {expected}, found {found}")]
    Argument {
        /// Name of the argument.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it was.
        found: f64,
    },
}

#[doc(hidden)]
impl Error {
    pub fn no_samples(task: &str) -> Self {
        Self::NoSamples { task: task.into() }
    }

    pub(crate) fn too_few_samples(store: &GradientStore, task: &str) -> Self {
        Self::TooFewSamples {
            task: task.into(),
            found: store.samples(task).len(),
            known: store.tasks().collect::<Vec<_>>().join(", "),
        }
    }

    pub(crate) fn not_collected(what: &'static str, advice: &'static str) -> Self {
        Self::NotCollected { what, advice }
    }

    pub fn keys(key: impl Into<String>, present: &'static str, absent: &'static str) -> Self {
        Self::Keys {
            key: key.into(),
            present,
            absent,
        }
    }

    pub(crate) fn sizes(key: impl Into<String>, ours: usize, theirs: usize) -> Self {
        Self::Sizes {
            key: key.into(),
            ours,
            theirs,
        }
    }

    pub fn shape(key: &str, ours: &[usize], theirs: &[usize]) -> Self {
        Self::Shape {
            key: key.into(),
            ours: ours.to_vec(),
            theirs: theirs.to_vec(),
        }
    }

    pub fn not_finite(what: &'static str, key: impl Into<String>) -> Self {
        Self::NotFinite {
            what,
            key: key.into(),
        }
    }
}

/// [`Error::Argument`], unless the number fits.
#[doc(hidden)]
pub fn check_argument(
    fits: bool,
    name: &'static str,
    expected: &'static str,
    found: f64,
) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::Argument {
        name,
        expected,
        found,
    })
}

/// [`Error::Argument`], unless intervals can be of this level.
pub(crate) fn check_level(level: f64) -> Result<()> {
    check_argument(
        level > 0.0 && level < 1.0,
        "level",
        "between 0 and 1",
        level,
    )
}

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScoreKind {
    /// The diagonal Fisher, `F`.
    Fisher,
    /// `½ F θ²`: the loss that removing a weight is predicted to cost (LeCun, Denker & Solla 1990,
    /// "Optimal brain damage", equation 5).
    BrainDamage,
    /// `−m_G + ½ F_ξG`: the loss that shutting a gate is predicted to cost ([`fisher_core::gates`]).
    Gate,
    /// `|θ|`: not of the Fisher at all, to compare with.
    Magnitude,
    /// A baseline of the caller's.
    Other,
}
