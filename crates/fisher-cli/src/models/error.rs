//! What can be wrong with a checkpoint folder.

use std::path::{Path, PathBuf};

/// The result of reading a checkpoint.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of reading a checkpoint. Every one names the field, tensor or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// A file is not what it should be.
    #[error("{} cannot be made sense of: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },

    /// Another architecture.
    #[error(
        "the architecture `{found}` (model_type in config.json) is not supported; supported are \
         {supported}. Any other model can be measured by fisher-train: write it as a Burn module, load \
         its weights by burn-store, and give it to a `Collector`"
    )]
    Architecture {
        /// `model_type`.
        found: String,
        /// What is.
        supported: String,
    },

    /// A field of `config.json` that is missing or asks for what is not supported.
    #[error("config.json: `{field}` is {found}; supported is {supported}")]
    Field {
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What is supported.
        supported: String,
    },

    /// A field of `config.json` of which it is not known what it changes.
    #[error(
        "config.json: `{field}` is {found}, and it is not known whether that changes what the model computes; \
         take it out of config.json if it does not"
    )]
    UnknownField {
        /// The field.
        field: String,
        /// Its value.
        found: String,
    },

    /// No checkpoint folder, or a file in it that is something else.
    #[error("{} {what}: {advice}", path.display())]
    NoCheckpoint {
        /// The folder or file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do about it.
        advice: String,
    },

    /// Tensors that config.json asks for and the files do not have.
    #[error("the checkpoint lacks tensors that config.json asks for: {tensors}")]
    Missing {
        /// Their names.
        tensors: String,
    },

    /// Tensors that the architecture has no place for.
    #[error(
        "the checkpoint has tensors that this architecture has no place for: {tensors}; is \
         config.json of the same model?"
    )]
    Extra {
        /// Their names.
        tensors: String,
    },

    /// A folder that is no low-rank adapter of the model.
    #[error("{} is no adapter that can be used: {reason}", folder.display())]
    Adapter {
        /// The folder.
        folder: PathBuf,
        /// Why.
        reason: String,
    },

    /// A tensor of another shape.
    #[error("tensor `{tensor}` has shape {found:?}, but config.json makes it {expected:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },

    /// A tensor of another type.
    #[error(
        "tensor `{tensor}` is of type {found}; float32, float16, bfloat16 and float64 are \
         supported"
    )]
    Type {
        /// Its name.
        tensor: String,
        /// The type in the file.
        found: String,
    },

    /// A tensor that would be rounded.
    #[error(
        "tensor `{tensor}` is of type {found} and would be rounded to bfloat16: leave --dtype out, or \
         save the model in bfloat16 first"
    )]
    Rounded {
        /// Its name.
        tensor: String,
        /// The type in the file.
        found: String,
    },

    /// Experts that a token chooses by numbers of few digits.
    #[error(
        "experts are chosen by the largest of their weights, of which bfloat16 makes some equal: leave --dtype out"
    )]
    Experts,

    /// A device that does not have a type.
    #[error("{device} does not compute in {dtype}: leave --dtype out, or choose another --device")]
    Device {
        /// The type.
        dtype: String,
        /// The device.
        device: String,
    },

    /// An output head beside a tied embedding that is not the embedding.
    #[error(
        "`{head}` differs from `{embedding}`, but config.json ties them \
         (tie_word_embeddings)"
    )]
    NotTied {
        /// The output head.
        head: String,
        /// The embedding.
        embedding: String,
    },

    /// An error of the statistics.
    #[error(transparent)]
    Core(#[from] fisher_core::Error),

    /// An error of collection.
    #[error(transparent)]
    Train(#[from] fisher_train::Error),
}

impl Error {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }

    pub(super) fn json(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Json {
            path: path.into(),
            reason: reason.to_string(),
        }
    }
}
