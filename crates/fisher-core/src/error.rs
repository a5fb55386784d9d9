//! What can go wrong, with the name of the parameter, sample, task or file it went wrong at.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of this crate. Every variant names what it is about and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A sample without a single label that counts has no per-token gradient.
    #[error(
        "sample `{sample}` has no active token: every label is masked or padding; leave it out"
    )]
    NoActiveTokens {
        /// The sample's id.
        sample: String,
    },

    /// A tensor is not as its parameter's must be: its shape, or the device it lies on.
    #[error("parameter `{parameter}`: expected {expected}, found {found}")]
    Shape {
        /// Path of the parameter.
        parameter: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },

    /// A parameter that is part of the statistics got no gradient.
    #[error(
        "no gradient for parameter `{parameter}`; every parameter of the statistics needs one \
         (zeros where a sample does not reach it)"
    )]
    MissingParameter {
        /// Path of the parameter.
        parameter: String,
    },

    /// Gradients of one parameter came twice in one batch.
    #[error(
        "parameter `{parameter}` came twice in one batch, and would count each sample twice; add up \
         the gradients of its uses and give each path once"
    )]
    ParameterTwice {
        /// Path of the parameter.
        parameter: String,
    },

    /// The gradients of a parameter were found in one form before and come in another now.
    #[error(
        "the gradients of parameter `{parameter}` came as {before} before and now as {now}: factors of the two are not the \
         same numbers; take them all by one engine, or leave the parameter out (`FactorsConfig::only`)"
    )]
    Form {
        /// Path of the parameter.
        parameter: String,
        /// The form before.
        before: &'static str,
        /// The form now.
        now: &'static str,
    },

    /// Half a batch is in the statistics: an error came while it was taken in.
    #[error(
        "the statistics hold half a batch, since an error came while it was taken in; go on from \
         what was saved last"
    )]
    HalfBatch,

    /// A parameter that is not there.
    #[error("no parameter `{parameter}` here; there are: {known}")]
    UnknownParameter {
        /// Path of the parameter.
        parameter: String,
        /// Paths that exist.
        known: String,
    },

    /// A task that is not there.
    #[error("no task named `{task}`; there are: {known}")]
    UnknownTask {
        /// Name of the task asked for.
        task: String,
        /// Names that exist.
        known: String,
    },

    /// Nothing is left to measure.
    #[error("no trainable float parameter {context}; there are: {found}")]
    NoParameters {
        /// Where nothing was found.
        context: String,
        /// What there was.
        found: String,
    },

    /// A module and its fresh copy, or one module that is used in two places.
    #[error(
        "`{first}` and `{second}` share the ids of all their parameters and have equal weights, so a \
         copy of a module cannot be told from one that is used twice. Freeze a copy with `no_grad`, \
         or give it ids of its own with `new_ids`; hold what is used twice once, and call it twice"
    )]
    Copies {
        /// Path of the one module.
        first: String,
        /// Path of the other.
        second: String,
    },

    /// A grouping scheme that does not fit its parameter.
    #[error("parameter `{parameter}` cannot be grouped by {scheme}: {reason}")]
    Scheme {
        /// Path of the parameter.
        parameter: String,
        /// Name of the scheme.
        scheme: String,
        /// Why not.
        reason: String,
    },

    /// Names or shapes that fit no known attention layout.
    #[error("no attention head layout fits: {reason}; found: {found}")]
    HeadLayout {
        /// What does not fit.
        reason: String,
        /// The parameters that were looked at, with their shapes.
        found: String,
    },

    /// A number that a reader could not use.
    #[error("`{name}` must be {expected}, found {found}")]
    Argument {
        /// Name of the argument.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it was.
        found: String,
    },

    /// A gradient or its square is NaN or infinite.
    #[error(
        "the squared gradient of sample `{sample}` in parameter `{parameter}` is NaN or infinite; \
         check the sample and the loss, or skip such samples by configuration"
    )]
    NonFinite {
        /// The sample's id.
        sample: String,
        /// Path of the parameter.
        parameter: String,
    },

    /// Statistics that do not belong together.
    #[error("cannot merge: {what} differs: `{ours}` here, `{theirs}` there")]
    Incompatible {
        /// What differs.
        what: String,
        /// The value of the statistics merged into.
        ours: String,
        /// The value of the other statistics.
        theirs: String,
    },

    /// The same sample in both of two statistics that are merged.
    #[error(
        "cannot merge: sample `{sample}` of task `{task}` is in both; counting it twice would \
         shrink the error bars. Give the samples of different shards different ids"
    )]
    DuplicateSample {
        /// Name of the task.
        task: String,
        /// The sample's id.
        sample: String,
    },

    /// A sample that has been taken in already, or is twice in one batch.
    #[error(
        "sample `{sample}` of task `{task}` is there already; counting it twice would shrink the \
         error bars. Ids must differ within a task: number the samples of the data set, not of the \
         batch"
    )]
    SampleTwice {
        /// Name of the task.
        task: String,
        /// The sample's id.
        sample: String,
    },

    /// A sample that is already in a store, and is not the same there.
    #[error(
        "the store holds sample `{sample}` of task `{task}` with {what} than were given now; was it \
         filled from other data? Choose another folder, or give other samples other ids"
    )]
    OtherSample {
        /// Name of the task.
        task: String,
        /// The sample's id.
        sample: String,
        /// What differs.
        what: String,
    },

    /// A sample that is not in a store.
    #[error("no sample `{sample}` of task `{task}`; there are: {known}")]
    UnknownSample {
        /// Name of the task.
        task: String,
        /// The sample asked for.
        sample: String,
        /// Ids that exist.
        known: String,
    },

    /// A task without samples has no Fisher.
    #[error("task `{task}` has no samples")]
    NoSamples {
        /// Name of the task.
        task: String,
    },

    /// No memory left for per-sample gradients.
    #[error(
        "the store would need {needed} bytes and may hold {budget} in memory; raise `memory`, give \
         it a `folder`, keep fewer parameters with `only`, or halve them with `precision`"
    )]
    Budget {
        /// Bytes with the samples that were to be added.
        needed: usize,
        /// Bytes allowed.
        budget: usize,
    },

    /// Gradients were put or committed, and no batch was begun.
    #[error("no batch was begun: `begin` says whose gradients follow, before `put` and `commit`")]
    NoBatch,

    /// A store whose index names samples that are not there.
    #[error(
        "the store in {path} is cut short: {reason}. If a copy broke off, copy the folder again; if \
         the program that wrote was killed, give up what it left half with `GradientStore::repair` \
         or by opening the store for writing"
    )]
    Truncated {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },

    /// A store that cannot be written to.
    #[error("cannot write to the store in {path}: {reason}; is another program writing to it?")]
    StoreLocked {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },

    /// A folder that holds the gradients of something else.
    #[error(
        "the store in {path} is of another {what}: `{theirs}` there, `{ours}` here; choose another \
         folder"
    )]
    OtherStore {
        /// The folder.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What was wanted.
        ours: String,
        /// What is there.
        theirs: String,
    },

    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// A file that is not one of this library's, is truncated, or contradicts itself.
    #[error("{path} is not valid: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A file whose header would be longer than readers take.
    #[error(
        "{path} would have a header of {bytes} bytes, and readers take {limit}; write fewer tasks \
         or parameters into one file"
    )]
    Header {
        /// The file.
        path: PathBuf,
        /// How long the header would be.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },

    /// A file whose content is not what was written.
    #[error("{path} is corrupted: its checksum is {found}, {expected} was written")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The checksum in the file.
        expected: String,
        /// The checksum of its content.
        found: String,
    },

    /// A file of another schema version.
    #[error("{path} has schema version {found}; this library reads versions up to {supported}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u64,
        /// The latest version that can be read.
        supported: u64,
    },

    /// The device failed to give a tensor's values.
    #[error("reading from the device failed: {reason}")]
    Device {
        /// The device's error.
        reason: String,
    },
}

impl Error {
    /// [`Error::Device`]: what a device said instead of a tensor's values.
    #[doc(hidden)]
    pub fn device(error: impl std::fmt::Display) -> Self {
        Self::Device {
            reason: error.to_string(),
        }
    }
}

/// [`Error::Argument`], unless it fits.
#[doc(hidden)]
pub fn check_argument(
    fits: bool,
    name: &'static str,
    expected: &'static str,
    found: impl std::fmt::Display,
) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::Argument {
        name,
        expected,
        found: found.to_string(),
    })
}

/// The names in one line, cut short when there are many.
pub(crate) fn list<S: std::fmt::Display>(names: impl IntoIterator<Item = S>) -> String {
    const SHOWN: usize = 24;
    let names: Vec<String> = names.into_iter().map(|n| n.to_string()).collect();
    match names.len() {
        0 => "nothing".into(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        _ => names.join(", "),
    }
}

/// [`Error::Io`].
#[doc(hidden)]
pub fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.into(),
        source,
    }
}

/// [`Error::Format`].
#[doc(hidden)]
pub fn format_error(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Format {
        path: path.into(),
        reason: reason.to_string(),
    }
}

/// [`Error::Version`], unless a file is of a version that can be read.
#[doc(hidden)]
pub fn check_version(path: &Path, found: u64, versions: RangeInclusive<u64>) -> Result<()> {
    if versions.contains(&found) {
        return Ok(());
    }
    Err(Error::Version {
        path: path.into(),
        found,
        supported: *versions.end(),
    })
}
