//! Models and batches that are measured.

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::Device;
use clap::ValueEnum;
use fisher_examples::model::CausalTransformerConfig;
use fisher_examples::tasks::{Item, Task, TaskBatch, TaskBatcher};
use fisher_examples::usual::{DigitClassifier, Digits, Forecaster, Series, TextClassifier, Texts};
use serde::Serialize;

use crate::Outcome;
use crate::models::{Convolutions, Perceptron, Pictures, Residual, Vectors};
use crate::subject::Subject;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Case {
    /// Causal transformer, 4 layers, width 256, 16 × 128 tokens
    Transformer256,
    /// Causal transformer, 4 layers, width 512, 16 × 128 tokens
    Transformer512,
    /// Causal transformer, 4 layers, width 512, 64 × 16 tokens
    Short512,
    /// Causal transformer, 2 layers, width 256, vocabulary of 50 000, 8 × 64 tokens
    Vocabulary,
    /// The same, whose head is its embedding
    Tied,
    /// Perceptron 784-512-512-10, batch of 256
    Mlp,
    /// Perceptron 784-32-32-10, batch of 16
    Tiny,
    /// Convolutions of 3 × 3, 3-32-64-64 channels, on 64 pictures of 32 × 32
    Convolutions,
    /// Two residual blocks with group norms, 32 and 64 channels, on 32 pictures of 32 × 32
    Residual,
    /// Three convolutions with batch norms on 64 pictures of 28 × 28
    Digits,
    /// Transformer, 4 layers, width 256, that classifies 16 padded texts of 64 tokens
    Texts,
    /// LSTM of 64 numbers on 64 series of 32 steps
    Series,
}

/// What a case consists of: all that is needed to make it elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Shape {
    Transformer {
        layers: usize,
        width: usize,
        heads: usize,
        vocabulary: usize,
        tied: bool,
        samples: usize,
        length: usize,
    },
    Perceptron {
        width: usize,
        samples: usize,
    },
    Convolutions {
        channels: [usize; 3],
        side: usize,
        samples: usize,
    },
    Residual {
        channels: [usize; 2],
        groups: usize,
        side: usize,
        samples: usize,
    },
    Digits {
        samples: usize,
    },
    Texts {
        width: usize,
        samples: usize,
        length: usize,
    },
    Series {
        width: usize,
        samples: usize,
        length: usize,
    },
}

/// Sees a case's model and batch.
pub(crate) trait Visitor {
    fn visit<M: Subject>(&mut self, at: (Case, Shape), model: &M, batch: &M::Batch) -> Outcome;
}

impl Case {
    /// The shape, or a small one.
    pub(crate) fn shape(self, quick: bool) -> Shape {
        let transformer = |layers, width, vocabulary: usize, [samples, length]: [usize; 2]| {
            let (layers, width, samples, length) = match quick {
                true => (layers, 32, 4, 8),
                false => (layers, width, samples, length),
            };
            Shape::Transformer {
                layers,
                width,
                heads: 8,
                vocabulary: if quick {
                    vocabulary.min(2000)
                } else {
                    vocabulary
                },
                tied: self == Self::Tied,
                samples,
                length,
            }
        };
        match (self, quick) {
            (Self::Transformer256, _) => transformer(4, 256, 512, [16, 128]),
            (Self::Transformer512, _) => transformer(4, 512, 512, [16, 128]),
            (Self::Short512, _) => transformer(4, 512, 512, [64, 16]),
            (Self::Vocabulary | Self::Tied, _) => transformer(2, 256, 50_000, [8, 64]),
            (Self::Mlp, false) => Shape::Perceptron {
                width: 512,
                samples: 256,
            },
            (Self::Tiny, _) | (Self::Mlp, true) => Shape::Perceptron {
                width: 32,
                samples: 16,
            },
            (Self::Convolutions, false) => Shape::Convolutions {
                channels: [32, 64, 64],
                side: 32,
                samples: 64,
            },
            (Self::Convolutions, true) => Shape::Convolutions {
                channels: [4, 8, 8],
                side: 8,
                samples: 4,
            },
            (Self::Residual, false) => Shape::Residual {
                channels: [32, 64],
                groups: 8,
                side: 32,
                samples: 32,
            },
            (Self::Residual, true) => Shape::Residual {
                channels: [4, 8],
                groups: 2,
                side: 8,
                samples: 4,
            },
            (Self::Digits, _) => Shape::Digits {
                samples: if quick { 4 } else { 64 },
            },
            (Self::Texts, false) => Shape::Texts {
                width: 256,
                samples: 16,
                length: 64,
            },
            (Self::Texts, true) => Shape::Texts {
                width: 32,
                samples: 4,
                length: 8,
            },
            (Self::Series, false) => Shape::Series {
                width: 64,
                samples: 64,
                length: 32,
            },
            (Self::Series, true) => Shape::Series {
                width: 32,
                samples: 4,
                length: 8,
            },
        }
    }

    /// Make the model and the batch, and show them.
    pub(crate) fn visit(self, quick: bool, device: &Device, visitor: &mut impl Visitor) -> Outcome {
        let shape = self.shape(quick);
        let at = (self, shape);
        match shape {
            Shape::Transformer {
                layers,
                width,
                heads,
                vocabulary,
                tied,
                samples,
                length,
            } => {
                let model = CausalTransformerConfig::new(vocabulary, length)
                    .with_d_model(width)
                    .with_d_ff(4 * width)
                    .with_heads(heads)
                    .with_layers(layers)
                    .with_tied(tied)
                    .init(device);
                let batch = sequences(samples, length, vocabulary, device);
                visitor.visit(at, &model, &batch)
            }
            Shape::Perceptron { width, samples } => {
                let model = Perceptron::init(width, device);
                visitor.visit(at, &model, &Vectors::random(samples, device))
            }
            Shape::Convolutions {
                channels,
                side,
                samples,
            } => {
                let model = Convolutions::init(channels, side, device);
                visitor.visit(at, &model, &Pictures::random(samples, side, device))
            }
            Shape::Residual {
                channels,
                groups,
                side,
                samples,
            } => {
                let model = Residual::init(channels, groups, device);
                visitor.visit(at, &model, &Pictures::random(samples, side, device))
            }
            Shape::Digits { samples } => {
                let model = DigitClassifier::new(device);
                visitor.visit(at, &model, &Digits::random(samples, device))
            }
            Shape::Texts {
                width,
                samples,
                length,
            } => {
                let model = TextClassifier::new(1000, length, width, 4, device);
                visitor.visit(at, &model, &Texts::random(samples, length, 1000, device))
            }
            Shape::Series {
                width,
                samples,
                length,
            } => {
                let model = Forecaster::new(width, device);
                visitor.visit(at, &model, &Series::random(samples, length, device))
            }
        }
    }
}

/// Random tokens, every position predicting the next.
fn sequences(samples: usize, length: usize, vocabulary: usize, device: &Device) -> TaskBatch {
    let token = |k: usize| ((k * k * 31 + 17 * k + k / 5) % vocabulary) as i64;
    let item = |i: usize| Item {
        id: format!("sequence {i}"),
        tokens: (0..length).map(|t| token(i * length + t)).collect(),
        labels: (0..length).map(|t| token(i * length + t + 1)).collect(),
        task: Task::Induction,
    };
    TaskBatcher.batch((0..samples).map(item).collect(), device)
}
