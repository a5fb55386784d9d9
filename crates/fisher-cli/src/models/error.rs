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
         llama, mistral, qwen2 and gpt2"
    )]
    Architecture {
        /// `model_type`.
        found: String,
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

    /// An output head beside a tied embedding that is not the embedding.
    #[error(
        "`lm_head.weight` differs from `{embedding}`, but config.json ties them \
         (tie_word_embeddings)"
    )]
    NotTied {
        /// The embedding.
        embedding: String,
    },

    /// Loading failed.
    #[error("cannot load {}: {reason}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
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
