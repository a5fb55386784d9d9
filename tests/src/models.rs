//! Small models with the traits that collection asks for.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Embedding, EmbeddingConfig, LayerNorm,
    LayerNormConfig, Linear, LinearConfig,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::labels::IGNORE;
use fisher_train::losses::SampleLosses;
use fisher_train::sample_loss;

/// Token sequences with aligned labels.
#[derive(Debug, Clone)]
pub struct Sequences {
    /// `[samples, positions]`
    pub tokens: Tensor<2, Int>,
    /// `[samples, positions]`
    pub labels: Tensor<2, Int>,
    /// Ids.
    pub ids: Vec<String>,
}

impl Sequences {
    /// `count` made-up sequences of `length` over 7 tokens; sample i has `length - i % 3` active
    /// tokens.
    pub fn made_up(count: usize, length: usize, device: &Device) -> Self {
        let token = |k: usize| ((k * k * 31 + 17 * k + k / 5) % 7) as i64;
        let tokens: Vec<i64> = (0..count * length).map(token).collect();
        let label = |k: usize| {
            if k % length < (k / length) % 3 {
                IGNORE
            } else {
                token(k + 3)
            }
        };
        let labels: Vec<i64> = (0..count * length).map(label).collect();
        let tensor = |v| Tensor::from_data(TensorData::new(v, [count, length]), device);
        Self {
            tokens: tensor(tokens),
            labels: tensor(labels),
            ids: (0..count).map(|i| format!("sample/{i}")).collect(),
        }
    }

    /// Samples `range`, as a batch.
    #[must_use]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        let cut = |t: &Tensor<2, Int>| t.clone().narrow(0, range.start, range.len());
        Self {
            tokens: cut(&self.tokens),
            labels: cut(&self.labels),
            ids: self.ids[range.clone()].to_vec(),
        }
    }

    /// Batches of `size`.
    pub fn batches(&self, size: usize) -> Vec<Self> {
        let count = self.ids.len();
        (0..count)
            .step_by(size)
            .map(|start| self.slice(start..count.min(start + size)))
            .collect()
    }
}

impl SampleBatch for Sequences {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(self.ids[index].clone())
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self {
            tokens: mapper.tensor(&self.tokens),
            labels: mapper.tensor(&self.labels),
            ids: mapper.list(&self.ids),
        }
    }
}

/// A small model with all that makes per-sample gradients hard: dropout, a batch norm, attention,
/// an embedding that is also the output head.
#[derive(Module, Debug)]
pub struct Small {
    /// Also the output head.
    pub embedding: Embedding,
    /// The second use of the embedding's weight.
    pub head: Param<Tensor<2>>,
    /// Two heads.
    pub attention: MultiHeadAttention,
    norm: LayerNorm,
    batch_norm: BatchNorm,
    dropout: Dropout,
    linear: Linear,
}

impl Small {
    /// A model with made-up weights, the same on every device.
    pub fn init(device: &Device) -> Self {
        Self::init_with(device, 1.0)
    }

    /// A model with other made-up weights.
    pub fn init_with(device: &Device, phase: f32) -> Self {
        let width = 8;
        let embedding = EmbeddingConfig::new(7, width).init(device);
        let mut model = Self {
            head: embedding.weight.clone(),
            embedding,
            attention: MultiHeadAttentionConfig::new(width, 2)
                .with_dropout(0.3)
                .init(device),
            norm: LayerNormConfig::new(width).init(device),
            batch_norm: BatchNormConfig::new(width).init(device),
            dropout: DropoutConfig::new(0.5).init(),
            linear: LinearConfig::new(width, width).init(device),
        }
        .map(&mut MadeUp { phase });
        model.tie();
        model
    }

    /// Tie the head to the embedding, anew after an optimizer step: Burn's step only one of them.
    pub fn tie(&mut self) {
        self.head = self.embedding.weight.clone();
    }
}

/// `model` with made-up weights in place of its random ones, the same on every device.
pub fn made_up<M: Module>(model: M, phase: f32) -> M {
    model.map(&mut MadeUp { phase })
}

/// Replaces random weights: a seed is the whole process', and tests run in parallel.
struct MadeUp {
    phase: f32,
}

impl ModuleMapper for MadeUp {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() {
            return param;
        }
        self.phase += 0.77;
        let phase = self.phase;
        param.map(|tensor| {
            let shape = tensor.shape();
            let center = if D == 1 { 0.8 } else { 0.0 };
            let value = |k: usize| center + 0.6 * (phase + 1.37 * (k * k % 101) as f32).sin();
            let values: Vec<f32> = (0..shape.num_elements()).map(value).collect();
            Tensor::from_data(TensorData::new(values, shape), &tensor.device()).require_grad()
        })
    }
}

impl SampleLoss for Small {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let x = self.embedding.forward(batch.tokens.clone());
        let attended = self
            .attention
            .forward(MhaInput::self_attn(x.clone()))
            .context;
        let x = self.norm.forward(x + attended);
        let x = self.batch_norm.forward(x.swap_dims(1, 2)).swap_dims(1, 2);
        let x = self.dropout.forward(self.linear.forward(x).tanh());
        let logits = x.matmul(self.head.val().transpose().unsqueeze());
        SampleLosses::cross_entropy(logits, batch.labels.clone())
    }
}

/// Points and what is to come of them. No sample has an id.
#[derive(Debug, Clone)]
pub struct Unnamed {
    /// `[samples, 3]`
    pub x: Tensor<2>,
    /// `[samples, 2]`
    pub y: Tensor<2>,
}

impl Unnamed {
    /// `count` made-up points.
    pub fn made_up(count: usize, device: &Device) -> Self {
        let value = |k: usize| (0.7 * (k * k % 211) as f32).sin();
        let values = |size: usize| -> Vec<f32> { (0..count * size).map(value).collect() };
        Self {
            x: Tensor::from_data(TensorData::new(values(3), [count, 3]), device),
            y: Tensor::from_data(TensorData::new(values(2), [count, 2]), device),
        }
    }

    /// Batches of `size` of the first `count`.
    pub fn batches(&self, count: usize, size: usize) -> Vec<Self> {
        let starts = (0..count).step_by(size);
        let batch = |start: usize| {
            let length = size.min(count - start);
            Self {
                x: self.x.clone().narrow(0, start, length),
                y: self.y.clone().narrow(0, start, length),
            }
        };
        starts.map(batch).collect()
    }
}

/// A line through [`Unnamed`] points.
#[derive(Module, Debug)]
pub struct Line {
    linear: Linear,
}

impl Line {
    /// With made-up weights.
    pub fn init(device: &Device) -> Self {
        let linear = LinearConfig::new(3, 2).init(device);
        made_up(Self { linear }, 0.5)
    }
}

sample_loss!(Line, Unnamed { x, y }, |model, batch| {
    let off = model.linear.forward(batch.x.clone()) - batch.y.clone();
    let samples = off.dims()[0];
    let losses = off.square().sum_dim(1).reshape([samples]);
    SampleLosses::token_sum(losses, vec![1; samples])
});
