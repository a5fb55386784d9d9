//! Small models of the usual layers, and some that do unusual things.

use burn::module::{Lora, Module, Param, ParamGroup};
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::conv::{Conv1d, Conv1dConfig, Conv2d, Conv2dConfig};
use burn::nn::transformer::{
    TransformerDecoder, TransformerDecoderConfig, TransformerDecoderInput, TransformerEncoder,
    TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{
    Dropout, DropoutConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear,
    LinearConfig, PaddingConfig1d, PaddingConfig2d, RmsNorm, RmsNormConfig,
};
use burn::tensor::module::linear;
use burn::tensor::{Bool, Device, IndexingUpdateOp, Int, Tensor, TensorData};
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::labels::IGNORE;
use fisher_train::losses::SampleLosses;

use crate::models::{Sequences, made_up};

/// Tied embedding, learned positions, post-norm encoder, RMS norm, a bare bias, a recurrence.
#[derive(Module, Debug)]
pub struct Talker {
    embedding: Embedding,
    position: Embedding,
    encoder: TransformerEncoder,
    norm: RmsNorm,
    shift: Param<Tensor<1>>,
    /// Used twice.
    linear: Linear,
    dropout: Dropout,
}

impl Talker {
    /// Width 8, two heads.
    pub fn init(device: &Device) -> Self {
        let model = Self {
            embedding: EmbeddingConfig::new(7, 8).init(device),
            position: EmbeddingConfig::new(12, 8).init(device),
            encoder: TransformerEncoderConfig::new(8, 12, 2, 1)
                .with_dropout(0.2)
                .init(device),
            norm: RmsNormConfig::new(8).init(device),
            shift: Param::from_tensor(Tensor::zeros([8], device)),
            linear: LinearConfig::new(8, 8).init(device),
            dropout: DropoutConfig::new(0.5).init(),
        };
        made_up(model, 0.3)
    }
}

fn positions(tokens: &Tensor<2, Int>) -> Tensor<2, Int> {
    let [_, length] = tokens.dims();
    let positions = Tensor::<1, Int>::arange(0..length as i64, &tokens.device());
    positions.unsqueeze::<2>().expand(tokens.dims())
}

impl SampleLoss for Talker {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let tokens = batch.tokens.clone();
        let [samples, length] = tokens.dims();
        let x = self.position.forward(positions(&tokens)) + self.embedding.forward(tokens);
        let mask = generate_autoregressive_mask(samples, length, &x.device());
        let x = TransformerEncoderInput::new(x).mask_attn(mask);
        let x = self.encoder.forward(x);
        let x = self.norm.forward(x) + self.shift.val().unsqueeze();
        let x = self.linear.forward(self.linear.forward(x).tanh()).tanh();
        let logits = linear(
            self.dropout.forward(x),
            self.embedding.weight.val().transpose(),
            None,
        );
        SampleLosses::cross_entropy(logits, batch.labels.clone())
    }
}

/// Encoder and decoder, pre-norm, with padding.
#[derive(Module, Debug)]
pub struct Translator {
    source: Embedding,
    target: Embedding,
    encoder: TransformerEncoder,
    decoder: TransformerDecoder,
    norm: LayerNorm,
    head: Linear,
}

impl Translator {
    /// Width 8, two heads.
    pub fn init(norm_first: bool, device: &Device) -> Self {
        let model = Self {
            source: EmbeddingConfig::new(7, 8).init(device),
            target: EmbeddingConfig::new(7, 8).init(device),
            encoder: TransformerEncoderConfig::new(8, 12, 2, 1)
                .with_norm_first(norm_first)
                .with_dropout(0.0)
                .init(device),
            decoder: TransformerDecoderConfig::new(8, 12, 2, 1)
                .with_norm_first(norm_first)
                .with_dropout(0.0)
                .init(device),
            norm: LayerNormConfig::new(8).init(device),
            head: LinearConfig::new(8, 7).with_bias(false).init(device),
        };
        made_up(model, 0.9)
    }

    /// Let the encoder's weights stay as they are.
    pub fn freeze_encoder(&mut self) {
        self.encoder = self.encoder.clone().no_grad();
    }
}

impl SampleLoss for Translator {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let tokens = batch.tokens.clone();
        let [samples, length] = tokens.dims();
        // The last two positions of every other sequence are padding.
        let odd = |row: usize| batch.ids[row].ends_with(['1', '3', '5', '7', '9']);
        let pad = |row: usize| move |at: usize| odd(row) && at + 2 >= length;
        let pad: Vec<bool> = (0..samples)
            .flat_map(|row| (0..length).map(pad(row)))
            .collect();
        let device = tokens.device();
        let pad = Tensor::<2, Bool>::from_data(TensorData::new(pad, [samples, length]), &device);
        let source = TransformerEncoderInput::new(self.source.forward(tokens.clone()));
        let memory = self.encoder.forward(source.mask_pad(pad.clone()));
        let mask = generate_autoregressive_mask(samples, length, &device);
        let target = TransformerDecoderInput::new(self.target.forward(tokens), memory)
            .memory_mask_pad(pad)
            .target_mask_attn(mask);
        let logits = self
            .head
            .forward(self.norm.forward(self.decoder.forward(target)));
        SampleLosses::cross_entropy(logits, batch.labels.clone())
    }
}

/// Pictures with classes.
#[derive(Debug, Clone)]
pub struct Pictures {
    /// `[samples, 2, 6, 6]`
    pub pixels: Tensor<4>,
    /// `[samples]`
    pub labels: Tensor<1, Int>,
    /// Ids.
    pub ids: Vec<String>,
}

impl Pictures {
    /// `count` made-up pictures.
    pub fn made_up(count: usize, device: &Device) -> Self {
        let pixel = |k: usize| (0.7 * (k * k % 211) as f32).sin();
        let pixels: Vec<f32> = (0..count * 72).map(pixel).collect();
        let labels: Vec<i64> = (0..count as i64).map(|i| i * i % 3).collect();
        Self {
            pixels: Tensor::from_data(TensorData::new(pixels, [count, 2, 6, 6]), device),
            labels: Tensor::from_data(TensorData::new(labels, [count]), device),
            ids: (0..count).map(|i| format!("picture {i}")).collect(),
        }
    }

    /// Batches of `size`.
    pub fn batches(&self, size: usize) -> Vec<Self> {
        let starts = (0..self.ids.len()).step_by(size);
        let batch = |start: usize| {
            let length = size.min(self.ids.len() - start);
            Self {
                pixels: self.pixels.clone().narrow(0, start, length),
                labels: self.labels.clone().narrow(0, start, length),
                ids: self.ids[start..start + length].to_vec(),
            }
        };
        starts.map(batch).collect()
    }
}

impl SampleBatch for Pictures {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(self.ids[index].clone())
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self {
            pixels: mapper.tensor(&self.pixels),
            labels: mapper.tensor(&self.labels),
            ids: mapper.list(&self.ids),
        }
    }
}

/// Convolutions with stride, padding and dilation, and a perceptron.
#[derive(Module, Debug)]
pub struct Seer {
    plane: Conv2d,
    line: Conv1d,
    hidden: Linear,
    head: Linear,
    /// What no trace follows, where this is not empty.
    odd: Option<Linear>,
}

impl Seer {
    /// A model of three classes; `odd` adds a layer that no trace follows.
    pub fn init(odd: bool, device: &Device) -> Self {
        let model = Self {
            plane: Conv2dConfig::new([2, 3], [3, 2])
                .with_stride([2, 1])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device),
            line: Conv1dConfig::new(3, 4, 3)
                .with_dilation(2)
                .with_padding(PaddingConfig1d::Explicit(1, 1))
                .init(device),
            hidden: LinearConfig::new(4 * 19, 10).init(device),
            head: LinearConfig::new(10, 3).init(device),
            odd: odd.then(|| LinearConfig::new(10, 10).init(device)),
        };
        made_up(model, 0.1)
    }
}

impl SampleLoss for Seer {
    type Batch = Pictures;

    fn sample_losses(&self, batch: &Pictures) -> SampleLosses {
        let samples = batch.ids.len();
        let x = self.plane.forward(batch.pixels.clone()).tanh();
        let x = self.line.forward(x.reshape([samples as i32, 3, -1])).tanh();
        let x = x.reshape([samples as i32, -1]);
        let x = self.hidden.forward(x).tanh();
        let x = match &self.odd {
            // Each sample by its place in the batch.
            Some(layer) => {
                let places = Tensor::<1, Int>::arange(0..samples as i64, &x.device());
                layer.forward(x.clone()).tanh().select(0, places) + x
            }
            None => x,
        };
        SampleLosses::classification(self.head.forward(x), batch.labels.clone())
    }
}

/// A table and a matrix of several tiles each.
#[derive(Module, Debug)]
pub struct Wide {
    embedding: Embedding,
    linear: Linear,
    head: Linear,
}

impl Wide {
    /// Width 300 and 500.
    pub fn init(device: &Device) -> Self {
        let model = Self {
            embedding: EmbeddingConfig::new(7, 300).init(device),
            linear: LinearConfig::new(300, 500).init(device),
            head: LinearConfig::new(500, 7).init(device),
        };
        made_up(model, 0.2)
    }
}

impl SampleLoss for Wide {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let x = self.embedding.forward(batch.tokens.clone());
        let x = self.linear.forward(x).mul_scalar(0.1).tanh();
        let logits = self.head.forward(x).mul_scalar(0.1);
        SampleLosses::cross_entropy(logits, batch.labels.clone())
    }
}

/// A model that must not be: every sample's loss is that of the whole batch in part.
#[derive(Module, Debug)]
pub struct Mixing {
    talker: Talker,
}

impl Mixing {
    /// A [`Talker`] that mixes.
    pub fn init(device: &Device) -> Self {
        Self {
            talker: Talker::init(device),
        }
    }
}

impl SampleLoss for Mixing {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let losses = self.talker.sample_losses(batch);
        losses.map(|losses| losses.clone() * losses.mean())
    }
}

/// What [`Odd`] does that a model must not, or that taps cannot follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// Nothing.
    None,
    /// Low-rank adapters, with a bias that trains beside them.
    Adapters,
    /// Samples and positions as one axis, without the positions that do not count.
    Packed,
    /// The few weights of `small` see the mean over the batch.
    MixesLittle,
    /// Active tokens that depend on the batch.
    CountsBatch,
    /// `small` is not used.
    Unreached,
}

/// A perceptron on tokens with many outputs, in several ways.
#[derive(Module, Debug)]
pub struct Odd {
    embedding: Embedding,
    head: Linear,
    small: Linear,
    #[module(skip)]
    oddity: Oddity,
}

impl Odd {
    /// Of `symbols` outputs.
    pub fn init(oddity: Oddity, symbols: usize, device: &Device) -> Self {
        let model = Self {
            embedding: EmbeddingConfig::new(7, 8).init(device),
            head: LinearConfig::new(8, symbols).init(device),
            small: LinearConfig::new(8, 1).with_bias(false).init(device),
            oddity,
        };
        let model = made_up(model, 0.3);
        match oddity {
            Oddity::Adapters => {
                let vectors = ParamGroup::from_predicate("bias");
                made_up(
                    model.apply_lora(Lora::new(2, 4.0)).unfreeze_group(vectors),
                    0.7,
                )
            }
            _ => model,
        }
    }
}

impl SampleLoss for Odd {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let x = self.embedding.forward(batch.tokens.clone()).tanh();
        let logits = match self.oddity {
            Oddity::Packed => {
                let [samples, length, width] = x.dims();
                let labels: Vec<i64> = batch.labels.to_data().iter().collect();
                let active: Vec<i64> = (0..labels.len() as i64)
                    .filter(|at| labels[*at as usize] != IGNORE)
                    .collect();
                let device = x.device().without_autodiff();
                let active = Tensor::<1, Int>::from_ints(active.as_slice(), &device);
                let flat = x.clone().reshape([samples * length, width]);
                let packed = self.head.forward(flat.select(0, active.clone()));
                let symbols = packed.dims()[1];
                Tensor::<2>::zeros([samples * length, symbols], &device)
                    .select_assign(0, active, packed, IndexingUpdateOp::Add)
                    .reshape([samples, length, symbols])
            }
            _ => self.head.forward(x.clone()),
        };
        let small = match self.oddity {
            Oddity::Unreached => None,
            Oddity::MixesLittle => Some(x.clone().detach().mean_dim(0).expand(x.dims())),
            _ => Some(x),
        };
        // To the first symbol's logit.
        let logits = match small {
            Some(x) => {
                let [samples, length, symbols] = logits.dims();
                let small = self.small.forward(x);
                let of = (&small.device(), small.dtype());
                let none = Tensor::zeros([samples, length, symbols - 1], of);
                logits + Tensor::cat(vec![small, none], 2)
            }
            None => logits,
        };
        let losses = SampleLosses::cross_entropy(logits, batch.labels.clone());
        match self.oddity {
            Oddity::CountsBatch => {
                let samples = batch.ids.len();
                SampleLosses::token_sum(losses.sums().clone(), vec![samples as u64; samples])
            }
            _ => losses,
        }
    }
}
