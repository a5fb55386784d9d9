//! What can go wrong in an analysis.

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
}
