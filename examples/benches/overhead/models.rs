//! Models of Burn's layers that only benches have: a perceptron and two for pictures.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig, MaxPool2d, MaxPool2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Distribution, Int, Tensor, activation};
use fisher_train::losses::SampleLosses;
use fisher_train::sample_loss;

/// Classes of all of them.
pub(crate) const CLASSES: usize = 10;

fn labels(samples: usize, device: &Device) -> Tensor<1, Int> {
    let labels: Vec<i64> = (0..samples).map(|i| (i % CLASSES) as i64).collect();
    Tensor::from_ints(labels.as_slice(), device)
}

fn ids(samples: usize) -> Vec<String> {
    (0..samples).map(|i| format!("picture {i}")).collect()
}

/// Pictures as vectors.
#[derive(Debug, Clone)]
pub(crate) struct Vectors {
    /// `[samples, 784]`
    pixels: Tensor<2>,
    labels: Tensor<1, Int>,
    pub(crate) ids: Vec<String>,
}

impl Vectors {
    pub(crate) fn random(samples: usize, device: &Device) -> Self {
        Self {
            pixels: Tensor::random([samples, 784], Distribution::Uniform(0.0, 1.0), device),
            labels: labels(samples, device),
            ids: ids(samples),
        }
    }
}

/// Two hidden layers.
#[derive(Module, Debug)]
pub(crate) struct Perceptron {
    first: Linear,
    second: Linear,
    third: Linear,
}

impl Perceptron {
    pub(crate) fn init(width: usize, device: &Device) -> Self {
        Self {
            first: LinearConfig::new(784, width).init(device),
            second: LinearConfig::new(width, width).init(device),
            third: LinearConfig::new(width, CLASSES).init(device),
        }
    }
}

sample_loss!(Perceptron, Vectors { pixels, labels; ids }, |model, batch| {
    let x = activation::relu(model.first.forward(batch.pixels.clone()));
    let x = activation::relu(model.second.forward(x));
    SampleLosses::classification(model.third.forward(x), batch.labels.clone())
});

/// Pictures in colors.
#[derive(Debug, Clone)]
pub(crate) struct Pictures {
    /// `[samples, 3, side, side]`
    pixels: Tensor<4>,
    labels: Tensor<1, Int>,
    pub(crate) ids: Vec<String>,
}

impl Pictures {
    pub(crate) fn random(samples: usize, side: usize, device: &Device) -> Self {
        let noise = Distribution::Normal(0.0, 1.0);
        Self {
            pixels: Tensor::random([samples, 3, side, side], noise, device),
            labels: labels(samples, device),
            ids: ids(samples),
        }
    }
}

/// Of 3 × 3, as wide and high as what comes in.
fn convolution(channels: [usize; 2], stride: usize, bias: bool, device: &Device) -> Conv2d {
    Conv2dConfig::new(channels, [3, 3])
        .with_stride([stride; 2])
        .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
        .with_bias(bias)
        .init(device)
}

/// Three convolutions, two of them pooled, and a linear head.
#[derive(Module, Debug)]
pub(crate) struct Convolutions {
    first: Conv2d,
    second: Conv2d,
    third: Conv2d,
    pool: MaxPool2d,
    head: Linear,
}

impl Convolutions {
    /// For pictures of `side` × `side`.
    pub(crate) fn init(channels: [usize; 3], side: usize, device: &Device) -> Self {
        let [a, b, c] = channels;
        let area = (side / 4) * (side / 4);
        Self {
            first: convolution([3, a], 1, true, device),
            second: convolution([a, b], 1, true, device),
            third: convolution([b, c], 1, true, device),
            pool: MaxPool2dConfig::new([2, 2]).init(),
            head: LinearConfig::new(c * area, CLASSES).init(device),
        }
    }
}

sample_loss!(Convolutions, Pictures { pixels, labels; ids }, |model, batch| {
    let x = activation::relu(model.first.forward(batch.pixels.clone()));
    let x = activation::relu(model.second.forward(model.pool.forward(x)));
    let x = activation::relu(model.third.forward(model.pool.forward(x)));
    let logits = model.head.forward(x.flatten::<2>(1, 3));
    SampleLosses::classification(logits, batch.labels.clone())
});

/// A convolution without bias, and a group norm.
#[derive(Module, Debug)]
struct Normed {
    convolution: Conv2d,
    norm: GroupNorm,
}

impl Normed {
    fn new(convolution: Conv2d, channels: usize, groups: usize, device: &Device) -> Self {
        Self {
            convolution,
            norm: GroupNormConfig::new(groups, channels).init(device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.norm.forward(self.convolution.forward(x))
    }
}

/// A residual network with group norms: a stem, two blocks of two convolutions, the second of
/// them at half the width and height and with a convolution of 1 × 1 around it, and a linear head
/// on the mean over positions.
///
/// He et al. 2016, "Deep residual learning for image recognition"; Wu and He 2018, "Group
/// normalization".
#[derive(Module, Debug)]
pub(crate) struct Residual {
    stem: Normed,
    first: [Normed; 2],
    second: [Normed; 2],
    around: Normed,
    pool: AdaptiveAvgPool2d,
    head: Linear,
}

impl Residual {
    /// With so many channels in the first block and in the second, in groups.
    pub(crate) fn init([a, b]: [usize; 2], groups: usize, device: &Device) -> Self {
        let normed = |from: usize, to: usize, stride: usize| {
            Normed::new(
                convolution([from, to], stride, false, device),
                to,
                groups,
                device,
            )
        };
        let around = Conv2dConfig::new([a, b], [1, 1]).with_stride([2, 2]);
        let around = around.with_bias(false).init(device);
        Self {
            stem: normed(3, a, 1),
            first: [normed(a, a, 1), normed(a, a, 1)],
            second: [normed(a, b, 2), normed(b, b, 1)],
            around: Normed::new(around, b, groups, device),
            pool: AdaptiveAvgPool2dConfig::new([1, 1]).init(),
            head: LinearConfig::new(b, CLASSES).init(device),
        }
    }
}

sample_loss!(Residual, Pictures, |model, batch| {
    let block =
        |[one, two]: &[Normed; 2], x: Tensor<4>| two.forward(activation::relu(one.forward(x)));
    let x = activation::relu(model.stem.forward(batch.pixels.clone()));
    let x = activation::relu(block(&model.first, x.clone()) + x);
    let x = activation::relu(block(&model.second, x.clone()) + model.around.forward(x));
    let logits = model.head.forward(model.pool.forward(x).flatten::<2>(1, 3));
    SampleLosses::classification(logits, batch.labels.clone())
});
