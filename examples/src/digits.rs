//! Digits that are drawn, and a small convolutional network that reads them.

use std::ops::Range;

use burn::data::dataloader::batcher::Batcher;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::relu};
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use fisher_train::prelude::*;
use rand::{RngExt, rngs::StdRng};

/// Ten digits of 5 × 7 dots.
const FONT: &str = "
.###.  ..#..  .###.  .###.  ...#.  #####  ..##.  #####  .###.  .###.
#...#  .##..  #...#  #...#  ..##.  #....  .#...  ....#  #...#  #...#
#..##  ..#..  ....#  ....#  .#.#.  ####.  #....  ...#.  #...#  #...#
#.#.#  ..#..  ...#.  ..##.  #..#.  ....#  ####.  ..#..  .###.  .####
##..#  ..#..  ..#..  ....#  #####  ....#  #...#  .#...  #...#  ....#
#...#  ..#..  .#...  #...#  ...#.  #...#  #...#  .#...  #...#  ...#.
.###.  .###.  #####  .###.  ...#.  .###.  .###.  .#...  .###.  .##..
";
/// Dots of a side.
pub const SIDE: usize = 8;

/// The dots, row by row, and the class.
pub type Digit = ([f32; SIDE * SIDE], i64);

/// Digits of these classes in turn: shifted by a dot or so, more or less bright, in noise.
pub fn draw(classes: Range<usize>, count: usize, rng: &mut StdRng) -> Vec<Digit> {
    let digit = |class| {
        let (right, down) = (rng.random_range(0..=3), rng.random_range(0..=1));
        let ink = rng.random_range(0.5..1.0);
        let mut dots = [0.0; SIDE * SIDE].map(|_| rng.random_range(-0.3..0.3));
        for (y, line) in FONT.trim().lines().enumerate() {
            let glyph = line.split_whitespace().nth(class).unwrap_or_default();
            for (x, _) in glyph.match_indices('#') {
                dots[(y + down) * SIDE + x + right] += ink;
            }
        }
        (dots, class as i64)
    };
    classes.cycle().take(count).map(digit).collect()
}

/// Pictures and what they show.
#[derive(Clone, Debug)]
pub struct Digits {
    /// `[samples, 1, SIDE, SIDE]`
    pub images: Tensor<4>,
    /// `[samples]`
    pub targets: Tensor<1, Int>,
}

/// Makes [`Digits`] of drawn ones.
#[derive(Clone)]
pub struct DigitBatcher;

impl Batcher<Digit, Digits> for DigitBatcher {
    fn batch(&self, digits: Vec<Digit>, device: &Device) -> Digits {
        let shape = [digits.len(), 1, SIDE, SIDE];
        let (dots, targets): (Vec<_>, Vec<_>) = digits.into_iter().unzip();
        let dots = TensorData::new(dots.concat(), shape);
        Digits {
            images: Tensor::from_data(dots, device),
            targets: Tensor::from_ints(targets.as_slice(), device),
        }
    }
}

/// Two convolutions and two matrices.
#[derive(Module, Debug)]
pub struct Classifier {
    conv1: Conv2d,
    conv2: Conv2d,
    pool: MaxPool2d,
    hidden: Linear,
    output: Linear,
    /// What is not to be forgotten while training.
    #[module(skip)]
    pub ewc: Option<Ewc>,
}

impl Classifier {
    /// Of ten classes.
    pub fn new(device: &Device) -> Self {
        Self {
            conv1: Conv2dConfig::new([1, 8], [3, 3]).init(device),
            conv2: Conv2dConfig::new([8, 16], [3, 3]).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            hidden: LinearConfig::new(16 * 2 * 2, 32).init(device),
            output: LinearConfig::new(32, 10).init(device),
            ewc: None,
        }
    }

    /// Logits, `[samples, 10]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(self.conv1.forward(images));
        let x = self.pool.forward(relu(self.conv2.forward(x)));
        let x = relu(self.hidden.forward(x.flatten(1, 3)));
        self.output.forward(x)
    }
}

// What the gradient of each sample is taken of. All else below is Burn's, or made of these gradients.
sample_loss!(Classifier, Digits { images, targets }, |model, batch| {
    SampleLosses::classification(model.forward(batch.images.clone()), batch.targets.clone())
});

impl TrainStep for Classifier {
    type Input = Digits;
    type Output = ClassificationOutput;

    fn step(&self, batch: Digits) -> TrainOutput<ClassificationOutput> {
        let item = InferenceStep::step(self, batch);
        let mut loss = item.loss.clone();
        if let Some(ewc) = &self.ewc {
            let penalty = ewc.penalty(self).expect("the model that is protected");
            loss = penalty.into_iter().fold(loss, Tensor::add);
        }
        TrainOutput::new(self, loss.backward(), item)
    }
}

impl InferenceStep for Classifier {
    type Input = Digits;
    type Output = ClassificationOutput;

    fn step(&self, batch: Digits) -> ClassificationOutput {
        let logits = self.forward(batch.images);
        let losses = SampleLosses::classification(logits.clone(), batch.targets.clone());
        ClassificationOutput::new(losses.means().mean(), logits, batch.targets)
    }
}
