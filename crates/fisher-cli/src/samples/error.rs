//! What can be wrong with a task's file.

use std::path::PathBuf;

use crate::words::count;

/// What is wrong with a task's file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// A line that is no sample.
    #[error(
        "{}, line {line}: {reason} (--skip-bad leaves such lines out and counts them)",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },

    /// A file that is no JSON lines.
    #[error("{} is {what}: {advice}", path.display())]
    NotLines {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do about it.
        advice: String,
    },

    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// Nothing in it.
    #[error(
        "{} has no samples for task `{task}` ({}{})",
        path.display(),
        count(*bad, "bad line"),
        first.as_ref().map_or(String::new(), |first| format!(", the first is {first}"))
    )]
    Empty {
        /// The file.
        path: PathBuf,
        /// The task.
        task: String,
        /// Lines that were left out.
        bad: usize,
        /// The first of them, and what is wrong with it.
        first: Option<String>,
    },
}
