//! Small models written as Burn users write them, a layer or two each.

use burn::module::{Lora, Module, Param, ParamGroup, Reparameterization, Reparameterizer};
use burn::nn::activation::{PRelu, PReluConfig, SwiGlu, SwiGluConfig};
use burn::nn::attention::{
    CrossAttention, CrossAttentionConfig, MhaInput, MultiHeadAttention, MultiHeadAttentionConfig,
    generate_autoregressive_mask,
};
use burn::nn::conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Conv3d, Conv3dConfig, ConvTranspose1d,
    ConvTranspose1dConfig, ConvTranspose2d, ConvTranspose2dConfig, ConvTranspose3d,
    ConvTranspose3dConfig,
};
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig, MaxPool2d, MaxPool2dConfig};
use burn::nn::transformer::{
    TransformerDecoder, TransformerDecoderConfig, TransformerDecoderInput, TransformerEncoder,
    TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{
    BatchNorm, BatchNormConfig, BiLstm, BiLstmConfig, Embedding, EmbeddingConfig, GroupNorm,
    GroupNormConfig, Gru, GruConfig, InstanceNorm, InstanceNormConfig, LayerNorm, LayerNormConfig,
    Linear, LinearConfig, Lstm, LstmConfig, PaddingConfig1d, PaddingConfig2d, PaddingConfig3d,
    RmsNorm, RmsNormConfig, RotaryEncoding, RotaryEncodingConfig,
};
use burn::tensor::activation::{gelu, relu, softmax};
use burn::tensor::{Bool, Device, Tensor};
use fisher_examples::usual::Texts;
use fisher_train::batch::SampleLoss;
use fisher_train::losses::SampleLosses;

use fisher_tests::models::made_up;
use fisher_tests::subjects::Pictures;

/// A sequence model between a table and a head; losses of positions and of the mean over them.
#[derive(Module, Debug)]
pub(crate) struct Around<L> {
    table: Embedding,
    layer: L,
    head: Linear,
}

/// What stands between a table and a head, `[samples, positions, 8]` to the same.
pub(crate) trait Layer: Module + burn::module::ModuleDisplay {
    /// The layer's output; `padding` is true where there is none.
    fn pass(&self, x: Tensor<3>, padding: Tensor<2, Bool>) -> Tensor<3>;
}

impl<L: Layer> Around<L> {
    /// Of seven tokens and four classes, with parameters made up.
    pub(crate) fn init(layer: L, device: &Device) -> Self {
        let model = Self {
            table: EmbeddingConfig::new(7, 8).init(device),
            layer,
            head: LinearConfig::new(8, 4).init(device),
        };
        made_up(model, 0.4)
    }
}

impl<L: Layer> SampleLoss for Around<L> {
    type Batch = Texts;

    fn sample_losses(&self, batch: &Texts) -> SampleLosses {
        let x = self.table.forward(batch.tokens.clone());
        let x = self.layer.pass(x, batch.padding.clone());
        let [samples, _, width] = x.dims();
        let x = x.mean_dim(1).reshape([samples, width]);
        SampleLosses::classification(self.head.forward(x), batch.labels.clone())
    }
}

/// Norms and a nonlinearity with parameters.
#[derive(Module, Debug)]
pub(crate) struct Norms {
    layer: LayerNorm,
    rms: RmsNorm,
    group: GroupNorm,
    instance: InstanceNorm,
    batch: BatchNorm,
    prelu: PRelu,
}

impl Norms {
    /// Of eight channels.
    pub(crate) fn init(device: &Device) -> Self {
        Self {
            layer: LayerNormConfig::new(8).init(device),
            rms: RmsNormConfig::new(8).init(device),
            group: GroupNormConfig::new(2, 8).init(device),
            instance: InstanceNormConfig::new(8).init(device),
            batch: BatchNormConfig::new(8).init(device),
            prelu: PReluConfig::new().with_num_parameters(8).init(device),
        }
    }
}

impl Layer for Norms {
    fn pass(&self, x: Tensor<3>, _: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.rms.forward(self.layer.forward(x));
        let x = x.swap_dims(1, 2);
        let x = self.group.forward(x.clone()) + self.batch.forward(x);
        let x = self.instance.forward(x.tanh());
        self.prelu.forward(x).swap_dims(1, 2)
    }
}

/// Attention in every form.
#[derive(Module, Debug)]
pub(crate) struct Attentions {
    own: MultiHeadAttention,
    cross: CrossAttention,
    fused: Linear,
    rotary: RotaryEncoding,
}

impl Attentions {
    /// Of width eight.
    pub(crate) fn init(device: &Device) -> Self {
        Self {
            own: MultiHeadAttentionConfig::new(8, 2)
                .with_dropout(0.1)
                .init(device),
            cross: CrossAttentionConfig::new(8, 8, 4, 2, 2).init(device),
            fused: LinearConfig::new(8, 24).init(device),
            rotary: RotaryEncodingConfig::new(16, 8).init(device),
        }
    }
}

impl Layer for Attentions {
    fn pass(&self, x: Tensor<3>, padding: Tensor<2, Bool>) -> Tensor<3> {
        let [samples, length, _] = x.dims();
        let causal = generate_autoregressive_mask(samples, length, &x.device());
        let input = MhaInput::self_attn(x.clone())
            .mask_pad(padding)
            .mask_attn(causal);
        let x = x + self.own.forward(input).context;
        let x = x.clone() + self.cross.forward(x.clone(), x, None);
        // Queries, keys and values in one, turned by their positions.
        let all = self.fused.forward(x.clone());
        let [q, k, v] = [0, 1, 2].map(|i| all.clone().narrow(2, 8 * i, 8));
        let turn = |t: Tensor<3>| self.rotary.forward(t.unsqueeze_dim::<4>(1)).squeeze_dim(1);
        let (q, k): (Tensor<3>, Tensor<3>) = (turn(q), turn(k));
        x + softmax(q.matmul(k.transpose()), 2).matmul(v)
    }
}

/// Transformer encoder and decoder.
#[derive(Module, Debug)]
pub(crate) struct Transformers {
    encoder: TransformerEncoder,
    decoder: TransformerDecoder,
}

impl Transformers {
    /// One layer each; `norm_first` puts norms before.
    pub(crate) fn init(norm_first: bool, device: &Device) -> Self {
        Self {
            encoder: TransformerEncoderConfig::new(8, 12, 2, 1)
                .with_norm_first(norm_first)
                .init(device),
            decoder: TransformerDecoderConfig::new(8, 12, 2, 1)
                .with_norm_first(norm_first)
                .init(device),
        }
    }
}

impl Layer for Transformers {
    fn pass(&self, x: Tensor<3>, padding: Tensor<2, Bool>) -> Tensor<3> {
        let input = TransformerEncoderInput::new(x.clone()).mask_pad(padding.clone());
        let memory = self.encoder.forward(input);
        let input = TransformerDecoderInput::new(x, memory).memory_mask_pad(padding);
        self.decoder.forward(input)
    }
}

/// A decoder that sees one position after another, with what it kept of those before.
#[derive(Module, Debug)]
pub(crate) struct Cached {
    encoder: TransformerEncoder,
}

impl Cached {
    /// One layer.
    pub(crate) fn init(device: &Device) -> Self {
        Self {
            encoder: TransformerEncoderConfig::new(8, 12, 2, 1).init(device),
        }
    }
}

impl Layer for Cached {
    fn pass(&self, x: Tensor<3>, _: Tensor<2, Bool>) -> Tensor<3> {
        let mut cache = self.encoder.new_autoregressive_cache();
        let [samples, length, _] = x.dims();
        let mut output = x.clone();
        for position in 1..=length {
            let seen = x.clone().narrow(1, 0, position);
            let mask = generate_autoregressive_mask(samples, position, &x.device());
            let input = TransformerEncoderInput::new(seen).mask_attn(mask);
            output = self
                .encoder
                .forward_autoregressive_inference(input, &mut cache);
        }
        output
    }
}

/// Recurrent layers and a gated one.
#[derive(Module, Debug)]
pub(crate) struct Recurrences {
    gru: Gru,
    lstm: Lstm,
    both: BiLstm,
    gated: SwiGlu,
}

impl Recurrences {
    /// Of width eight.
    pub(crate) fn init(device: &Device) -> Self {
        Self {
            gru: GruConfig::new(8, 8, true).init(device),
            lstm: LstmConfig::new(8, 8, true).init(device),
            both: BiLstmConfig::new(8, 4, true).init(device),
            gated: SwiGluConfig::new(8, 8).with_bias(true).init(device),
        }
    }
}

impl Layer for Recurrences {
    fn pass(&self, x: Tensor<3>, _: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.gru.forward(x, None);
        let x = self.lstm.forward(x, None).0;
        let x = self.both.forward(x, None).0;
        self.gated.forward(x)
    }
}

/// Bare parameters in every role.
#[derive(Module, Debug)]
pub(crate) struct Bare {
    /// `[8]`, added and multiplied.
    shift: Param<Tensor<1>>,
    scale: Param<Tensor<1>>,
    /// `[1, positions, 1]`
    of_position: Param<Tensor<3>>,
    /// `[1, 1, 1]`
    single: Param<Tensor<3>>,
    /// `[positions, positions]`, from the left.
    mixer: Param<Tensor<2>>,
    /// `[2, 8, 4]`: a matrix for each half.
    experts: Param<Tensor<3>>,
    /// `[8, 8]`, used as it is and transposed.
    tied: Param<Tensor<2>>,
    /// `[16, 8]`, of which rows are sliced.
    positions: Param<Tensor<2>>,
    /// `[8]`, looked up by a product with a constant.
    gate: Param<Tensor<1>>,
}

impl Bare {
    /// For sequences of `length`.
    pub(crate) fn init(length: usize, device: &Device) -> Self {
        fn of<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
            Param::from_tensor(Tensor::zeros(shape, device))
        }
        Self {
            shift: of([8], device),
            scale: of([8], device),
            of_position: of([1, length, 1], device),
            single: of([1, 1, 1], device),
            mixer: of([length, length], device),
            experts: of([2, 8, 4], device),
            tied: of([8, 8], device),
            positions: of([16, 8], device),
            gate: of([8], device),
        }
    }
}

impl Layer for Bare {
    fn pass(&self, x: Tensor<3>, padding: Tensor<2, Bool>) -> Tensor<3> {
        let [samples, length, width] = x.dims();
        let x = x * self.scale.val().unsqueeze() + self.shift.val().unsqueeze();
        let x = x * self.of_position.val() + self.single.val();
        let places = self.positions.val().narrow(0, 0, length);
        let x = x + places.unsqueeze::<3>();
        let mixed = self.mixer.val().unsqueeze::<3>().matmul(x.clone());
        let x = (x + mixed).tanh();
        // Halves of the width by experts of their own, written by hand.
        let halves = x.clone().reshape([samples * length, 1, width]);
        let halves = halves.repeat_dim(1, 2).swap_dims(0, 1);
        let out = halves.matmul(self.experts.val());
        let out = out.swap_dims(0, 1).reshape([samples, length, width]);
        let x = x + out;
        let tied = self.tied.val();
        let there = x.clone().matmul(tied.clone().unsqueeze());
        let x = there.tanh().matmul(tied.transpose().unsqueeze());
        let gate = self.gate.val().tanh().unsqueeze::<3>();
        let x = x.clone() * gate + x;
        let padding = padding
            .unsqueeze_dim::<3>(2)
            .expand([samples, length, width]);
        x.mask_fill(padding, 0.0)
    }
}

/// `W = g · V / |V|` of whole matrices.
#[derive(Module, Debug)]
pub(crate) struct Normalized {
    length: Param<Tensor<1>>,
}

impl Reparameterization for Normalized {
    const NAME: &'static str = "normalized";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let norm = base.clone().square().sum().sqrt();
        let scale = (self.length.val() / norm).unsqueeze::<D>();
        base * scale
    }
}

/// Normalizes matrices of linear layers.
#[derive(Debug)]
pub(crate) struct Normalizer;

impl Reparameterizer for Normalizer {
    type Reparam = Normalized;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Normalized>) {
        if !path.contains("inner") || D != 2 {
            return (param, None);
        }
        let device = param.val().device();
        let length = Param::from_tensor(Tensor::ones([1], &device));
        (param, Some(Normalized { length }))
    }
}

/// Weights that are made of others.
#[derive(Module, Debug)]
pub(crate) struct Made {
    inner: Linear,
    lower: Linear,
    upper: Linear,
}

impl Made {
    /// With low-rank adapters, or with normalized weights.
    pub(crate) fn init(adapters: bool, device: &Device) -> Self {
        let model = Self {
            inner: LinearConfig::new(8, 8).init(device),
            lower: LinearConfig::new(8, 4).init(device),
            upper: LinearConfig::new(4, 8).init(device),
        };
        if adapters {
            let biases = ParamGroup::from_predicate("bias");
            return model.apply_lora(Lora::new(2, 4.0)).unfreeze_group(biases);
        }
        model.apply_reparameterization(Normalizer)
    }
}

impl Layer for Made {
    fn pass(&self, x: Tensor<3>, _: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.inner.forward(x).tanh();
        self.upper.forward(self.lower.forward(x).tanh())
    }
}

/// Convolutions in one, two and three dimensions, grouped, strided, dilated, padded, transposed.
#[derive(Module, Debug)]
pub(crate) struct Convolutions {
    plane: Conv2d,
    grouped: Conv2d,
    same: Conv2d,
    norm: BatchNorm,
    pool: MaxPool2d,
    line: Conv1d,
    depthwise: Conv1d,
    space: Conv3d,
    up_line: ConvTranspose1d,
    up: ConvTranspose2d,
    up_space: ConvTranspose3d,
    average: AdaptiveAvgPool2d,
    head: Linear,
}

impl Convolutions {
    /// Of three classes.
    pub(crate) fn init(device: &Device) -> Self {
        let model = Self {
            plane: Conv2dConfig::new([2, 4], [3, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device),
            grouped: Conv2dConfig::new([4, 4], [3, 3])
                .with_groups(2)
                .with_padding(PaddingConfig2d::Same)
                .init(device),
            same: Conv2dConfig::new([4, 4], [3, 3])
                .with_padding(PaddingConfig2d::Same)
                .with_bias(false)
                .init(device),
            norm: BatchNormConfig::new(4).init(device),
            pool: MaxPool2dConfig::new([2, 2]).init(),
            line: Conv1dConfig::new(4, 4, 3)
                .with_dilation(2)
                .with_padding(PaddingConfig1d::Explicit(1, 1))
                .init(device),
            depthwise: Conv1dConfig::new(4, 4, 3).with_groups(4).init(device),
            space: Conv3dConfig::new([2, 2], [1, 2, 2])
                .with_stride([1, 2, 1])
                .with_padding(PaddingConfig3d::Explicit(0, 0, 1))
                .init(device),
            up_line: ConvTranspose1dConfig::new([4, 4], 2)
                .with_stride(2)
                .init(device),
            up: ConvTranspose2dConfig::new([4, 2], [2, 3])
                .with_stride([2, 1])
                .init(device),
            up_space: ConvTranspose3dConfig::new([2, 2], [1, 2, 2]).init(device),
            average: AdaptiveAvgPool2dConfig::new([2, 2]).init(),
            head: LinearConfig::new(4 * 4, 3).init(device),
        };
        made_up(model, 0.5)
    }
}

impl SampleLoss for Convolutions {
    type Batch = Pictures;

    fn sample_losses(&self, batch: &Pictures) -> SampleLosses {
        let x = self.plane.forward(batch.pixels.clone());
        let x = self.norm.forward(self.grouped.forward(relu(x)));
        let x = self.same.forward(gelu(x));
        let [samples, channels, height, width] = x.dims();
        let line = self
            .line
            .forward(self.pool.forward(x.clone()).flatten(2, 3));
        let line = self.up_line.forward(self.depthwise.forward(line).tanh());
        let deep = x.clone().reshape([samples, 2, channels / 2, height, width]);
        let deep = self.up_space.forward(self.space.forward(deep).tanh());
        let up = self.up.forward(x);
        let features = Tensor::cat(
            vec![
                line.mean_dim(2).unsqueeze_dim::<4>(3).repeat_dim(3, 2),
                deep.mean_dim(4)
                    .flatten::<4>(3, 4)
                    .mean_dim(3)
                    .repeat_dim(3, 2)
                    .reshape([samples as i32, -1, 1, 2]),
            ],
            1,
        );
        let features = features.mean_dim(1).repeat_dim(1, 2).repeat_dim(2, 2);
        let x = Tensor::cat(vec![self.average.forward(up), features], 1);
        let x = x.reshape([samples as i32, -1]);
        SampleLosses::classification(self.head.forward(x).mul_scalar(0.3), batch.labels.clone())
    }
}

/// Convolutions of many channels at few places, of each frame of a picture.
#[derive(Module, Debug)]
pub(crate) struct Late {
    first: Linear,
    plane: Conv2d,
    line: Conv1d,
    head: Linear,
    frames: usize,
}

impl Late {
    /// Of three classes; every sample is cut into `frames`.
    pub(crate) fn init(frames: usize, device: &Device) -> Self {
        let model = Self {
            first: LinearConfig::new(72, 2 * 16 * 5 * 4).init(device),
            plane: Conv2dConfig::new([16, 24], [3, 2])
                .with_stride([2, 1])
                .with_dilation([1, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 0, 0, 1))
                .init(device),
            line: Conv1dConfig::new(24, 20, 3)
                .with_stride(2)
                .with_padding(PaddingConfig1d::Explicit(2, 1))
                .init(device),
            head: LinearConfig::new(20, 3).init(device),
            frames,
        };
        made_up(model, 0.2)
    }
}

impl SampleLoss for Late {
    type Batch = Pictures;

    fn sample_losses(&self, batch: &Pictures) -> SampleLosses {
        let [samples, ..] = batch.pixels.dims();
        let x = batch.pixels.clone().reshape([samples, 72]);
        let x = self.first.forward(x).mul_scalar(0.1).tanh();
        let x = x.narrow(1, 0, self.frames * 16 * 20);
        let x = x.reshape([samples * self.frames, 16, 5, 4]);
        let x = self.plane.forward(x).mul_scalar(0.1).tanh();
        let x = self
            .line
            .forward(x.flatten::<3>(2, 3))
            .mul_scalar(0.1)
            .tanh();
        let x = x.mean_dim(2).reshape([samples, self.frames, 20]);
        let x = x.mean_dim(1).reshape([samples, 20]);
        SampleLosses::classification(self.head.forward(x), batch.labels.clone())
    }
}
