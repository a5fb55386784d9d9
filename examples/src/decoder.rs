//! Decoders of Hugging Face checkpoints, tapped.

mod attention;
mod config;
mod gpt2;
mod llama;
mod load;

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_metrics::Weights;
use fisher_train::{IGNORE, Names, SampleBatch, SampleLoss, SampleLosses};

pub use config::{DecoderConfig, Gpt2Config, LlamaConfig};
pub use gpt2::Gpt2;
pub use llama::Llama;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The configuration asks for what these decoders do not have.
    #[error("`{field}` is {found} in config.json; supported is {expected}")]
    Unsupported {
        /// The field.
        field: String,
        /// What it is.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A tensor is missing, one too many, or of another shape.
    #[error("tensor `{name}` {problem}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An error of the statistics.
    #[error(transparent)]
    Train(#[from] fisher_train::Error),
}

/// A decoder of one of the families.
#[derive(Module, Debug)]
pub enum Decoder {
    /// LLaMA, Mistral, Qwen2.
    Llama(Llama),
    /// GPT-2.
    Gpt2(Gpt2),
}

/// A checkpoint that was read.
#[derive(Debug)]
pub struct Checkpoint {
    /// The model, with its weights.
    pub decoder: Decoder,
    /// Its configuration.
    pub config: DecoderConfig,
    /// The checkpoint's names of the model's parameters.
    pub names: Names,
    /// The weights by the checkpoint's names, as they lie there.
    pub weights: Weights,
}

impl Checkpoint {
    /// Read `config.json` and `model.safetensors` (or its shards) of `folder`.
    ///
    /// # Errors
    /// [`DecoderError`], naming the file, field or tensor.
    pub fn open(folder: &Path, device: &Device) -> Result<Self, DecoderError> {
        let config = DecoderConfig::read(folder)?;
        let decoder = Decoder::init(&config, device);
        load::load(folder, config, decoder)
    }
}

impl Decoder {
    /// A model with random weights.
    pub fn init(config: &DecoderConfig, device: &Device) -> Self {
        match config {
            DecoderConfig::Llama(config) => Self::Llama(Llama::init(config, device)),
            DecoderConfig::Gpt2(config) => Self::Gpt2(Gpt2::init(config, device)),
        }
    }

    /// Logits of the next token, `[samples, positions]` to `[samples, positions, vocabulary]`.
    pub fn logits(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        match self {
            Self::Llama(model) => model.logits(tokens),
            Self::Gpt2(model) => model.logits(tokens),
        }
    }
}

impl SampleLoss for Decoder {
    type Batch = TokenBatch;

    fn sample_losses(&self, batch: &TokenBatch) -> SampleLosses {
        SampleLosses::next_token(self.logits(batch.tokens.clone()), batch.labels.clone())
    }
}

/// A sequence of tokens and its labels, which are not shifted; those at [`IGNORE`] do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// A name.
    pub id: String,
    /// What goes in.
    pub tokens: Vec<i64>,
    /// As many.
    pub labels: Vec<i64>,
}

/// Sequences padded to the longest.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    tokens: Tensor<2, Int>,
    labels: Tensor<2, Int>,
    ids: Vec<String>,
    lengths: Vec<usize>,
}

impl TokenBatch {
    /// A batch of sequences.
    pub fn new(sequences: &[Sequence], device: &Device) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let matrix = |of: fn(&Sequence) -> &Vec<i64>, padding: i64| {
            let rows = sequences.iter().flat_map(|sequence| {
                let padded = of(sequence)
                    .iter()
                    .copied()
                    .chain(std::iter::repeat(padding));
                padded.take(longest)
            });
            let data = TensorData::new(rows.collect::<Vec<i64>>(), [sequences.len(), longest]);
            Tensor::from_data(data, device)
        };
        Self {
            // Attention is causal: what pads the end changes nothing before it.
            tokens: matrix(|s| &s.tokens, 0),
            labels: matrix(|s| &s.labels, IGNORE),
            ids: sequences.iter().map(|s| s.id.clone()).collect(),
            lengths,
        }
    }
}

impl SampleBatch for TokenBatch {
    fn ids(&self) -> Vec<String> {
        self.ids.clone()
    }

    fn sample(&self, index: usize) -> Self {
        let length = self.lengths[index];
        let cut = |t: &Tensor<2, Int>| t.clone().narrow(0, index, 1).narrow(1, 0, length);
        Self {
            tokens: cut(&self.tokens),
            labels: cut(&self.labels),
            ids: vec![self.ids[index].clone()],
            lengths: vec![length],
        }
    }
}
