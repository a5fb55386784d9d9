//! Three models as Burn users write them: a convolutional classifier of digits, a transformer that
//! classifies texts, a recurrent network that predicts the next number of a series.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{
    BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Embedding, EmbeddingConfig, Gelu, Linear,
    LinearConfig, Lstm, LstmConfig, PaddingConfig2d,
};
use burn::tensor::{Bool, Device, Distribution, Int, Tensor, TensorData};
use fisher_train::losses::SampleLosses;
use fisher_train::sample_loss;

/// Gray pictures of 28 × 28 and what they show.
#[derive(Debug, Clone)]
pub struct Digits {
    /// `[samples, 28, 28]`
    pub images: Tensor<3>,
    /// `[samples]`
    pub targets: Tensor<1, Int>,
    /// One each.
    pub ids: Vec<String>,
}

impl Digits {
    /// Noise that shows ten classes in turn.
    pub fn random(samples: usize, device: &Device) -> Self {
        Self {
            images: Tensor::random([samples, 28, 28], Distribution::Default, device),
            targets: classes(samples, 10, device),
            ids: ids(samples),
        }
    }
}

/// A convolution, a batch norm and a nonlinearity.
#[derive(Module, Debug)]
pub struct ConvBlock {
    conv: Conv2d,
    norm: BatchNorm,
    activation: Gelu,
}

impl ConvBlock {
    fn new(channels: [usize; 2], device: &Device) -> Self {
        Self {
            conv: Conv2dConfig::new(channels, [3, 3])
                .with_padding(PaddingConfig2d::Valid)
                .init(device),
            norm: BatchNormConfig::new(channels[1]).init(device),
            activation: Gelu::new(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.norm.forward(self.conv.forward(x));
        self.activation.forward(x)
    }
}

/// Three convolutions and two matrices.
#[derive(Module, Debug)]
pub struct DigitClassifier {
    blocks: Vec<ConvBlock>,
    dropout: Dropout,
    hidden: Linear,
    output: Linear,
}

impl DigitClassifier {
    /// Of ten classes.
    pub fn new(device: &Device) -> Self {
        let channels = [[1, 8], [8, 16], [16, 24]];
        Self {
            blocks: channels.map(|c| ConvBlock::new(c, device)).to_vec(),
            dropout: DropoutConfig::new(0.3).init(),
            hidden: LinearConfig::new(24 * 22 * 22, 32)
                .with_bias(false)
                .init(device),
            output: LinearConfig::new(32, 10).with_bias(false).init(device),
        }
    }

    /// `[samples, 28, 28]` to `[samples, 10]`.
    pub fn forward(&self, images: Tensor<3>) -> Tensor<2> {
        let x = images.unsqueeze_dim::<4>(1);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x));
        let x = self.dropout.forward(x.flatten::<2>(1, 3));
        self.output
            .forward(Gelu::new().forward(self.hidden.forward(x)))
    }
}

sample_loss!(DigitClassifier, Digits { images, targets; ids }, |model, batch| {
    SampleLosses::classification(model.forward(batch.images.clone()), batch.targets.clone())
});

/// Tokens, where they are padding, and a class each.
#[derive(Debug, Clone)]
pub struct Texts {
    /// `[samples, positions]`
    pub tokens: Tensor<2, Int>,
    /// `[samples, positions]`: true where there is none.
    pub padding: Tensor<2, Bool>,
    /// `[samples]`
    pub labels: Tensor<1, Int>,
    /// One each.
    pub ids: Vec<String>,
}

impl Texts {
    /// Of `length` tokens of `vocabulary` or a few less, and four classes.
    pub fn random(samples: usize, length: usize, vocabulary: usize, device: &Device) -> Self {
        let token = |k: usize| ((k * k * 31 + 17 * k + k / 5) % vocabulary) as i64;
        let tokens: Vec<i64> = (0..samples * length).map(token).collect();
        let padded = |k: usize| k % length + (k / length) % 4 >= length;
        let padded: Vec<bool> = (0..samples * length).map(padded).collect();
        let shape = [samples, length];
        Self {
            tokens: Tensor::from_data(TensorData::new(tokens, shape), device),
            padding: Tensor::from_data(TensorData::new(padded, shape), device),
            labels: classes(samples, 4, device),
            ids: ids(samples),
        }
    }
}

/// A transformer that reads a class off its first position.
#[derive(Module, Debug)]
pub struct TextClassifier {
    transformer: TransformerEncoder,
    tokens: Embedding,
    positions: Embedding,
    output: Linear,
}

impl TextClassifier {
    /// With `layers` of `width`, for texts of up to `length` tokens of `vocabulary`.
    pub fn new(
        vocabulary: usize,
        length: usize,
        width: usize,
        layers: usize,
        device: &Device,
    ) -> Self {
        Self {
            transformer: TransformerEncoderConfig::new(width, 4 * width, 8, layers)
                .with_norm_first(true)
                .with_quiet_softmax(true)
                .init(device),
            tokens: EmbeddingConfig::new(vocabulary, width).init(device),
            positions: EmbeddingConfig::new(length, width).init(device),
            output: LinearConfig::new(width, 4).init(device),
        }
    }

    /// `[samples, positions]` to `[samples, 4]`.
    pub fn forward(&self, tokens: Tensor<2, Int>, padding: Tensor<2, Bool>) -> Tensor<2> {
        let [samples, length] = tokens.dims();
        let positions = Tensor::<1, Int>::arange(0..length as i64, &tokens.device());
        let positions = positions.reshape([1, length]).repeat_dim(0, samples);
        let x = (self.positions.forward(positions) + self.tokens.forward(tokens)) / 2;
        let x = TransformerEncoderInput::new(x).mask_pad(padding);
        let x = self.output.forward(self.transformer.forward(x));
        x.narrow(1, 0, 1).reshape([samples, 4])
    }
}

sample_loss!(TextClassifier, Texts { tokens, padding, labels; ids }, |model, batch| {
    let logits = model.forward(batch.tokens.clone(), batch.padding.clone());
    SampleLosses::classification(logits, batch.labels.clone())
});

/// Series of numbers and the next of each.
#[derive(Debug, Clone)]
pub struct Series {
    /// `[samples, steps, 1]`
    pub values: Tensor<3>,
    /// `[samples, 1]`
    pub targets: Tensor<2>,
    /// One each.
    pub ids: Vec<String>,
}

impl Series {
    /// Noise.
    pub fn random(samples: usize, steps: usize, device: &Device) -> Self {
        let noise = Distribution::Normal(0.0, 1.0);
        Self {
            values: Tensor::random([samples, steps, 1], noise, device),
            targets: Tensor::random([samples, 1], noise, device),
            ids: ids(samples),
        }
    }
}

/// A recurrent network whose last state says what comes next.
#[derive(Module, Debug)]
pub struct Forecaster {
    lstm: Lstm,
    dropout: Dropout,
    output: Linear,
}

impl Forecaster {
    /// With a state of `width` numbers.
    pub fn new(width: usize, device: &Device) -> Self {
        Self {
            lstm: LstmConfig::new(1, width, true).init(device),
            dropout: DropoutConfig::new(0.2).init(),
            output: LinearConfig::new(width, 1).init(device),
        }
    }

    /// `[samples, steps, 1]` to `[samples, 1]`.
    pub fn forward(&self, values: Tensor<3>) -> Tensor<2> {
        let (_, last) = self.lstm.forward(values, None);
        self.output.forward(self.dropout.forward(last.hidden))
    }
}

sample_loss!(Forecaster, Series { values, targets; ids }, |model, batch| {
    let off = model.forward(batch.values.clone()) - batch.targets.clone();
    let samples = batch.ids.len();
    SampleLosses::token_sum(off.square().reshape([samples]), vec![1; samples])
});

fn classes(samples: usize, count: usize, device: &Device) -> Tensor<1, Int> {
    let classes: Vec<i64> = (0..samples).map(|i| (i % count) as i64).collect();
    Tensor::from_ints(classes.as_slice(), device)
}

fn ids(samples: usize) -> Vec<String> {
    (0..samples).map(|i| format!("sample {i}")).collect()
}
