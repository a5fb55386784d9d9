//! The pieces that a capture is made of, each by itself: what `overhead` measures together.
//!
//! Items a second are multiplications and additions of the gradients' products; a squaring and an
//! addition for each element of [`whole`].

use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::{Device, Distribution, Tensor};
use divan::Bencher;
use divan::counter::ItemsCount;
use fisher_core::gradient::{GradientSink, SampleGradient};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};

const WIDTH: usize = 512;
/// Samples, and positions of each.
const SHAPES: [[usize; 2]; 3] = [[256, 1], [64, 16], [16, 128]];

fn main() {
    divan::main();
}

/// Statistics of one matrix, and a batch of factors of its gradients.
struct Piece {
    statistics: Statistics,
    /// Samples taken in so far.
    seen: usize,
    left: Tensor<3>,
    right: Tensor<3>,
}

impl Piece {
    fn new(config: &StatisticsConfig, [samples, positions]: [usize; 2]) -> Self {
        let device = Device::flex();
        device.seed(0);
        let model = LinearConfig::new(WIDTH, WIDTH)
            .with_bias(false)
            .init(&device.clone().autodiff());
        assert_eq!(model.num_params(), WIDTH * WIDTH);
        let factor = || {
            let shape = [samples, positions, WIDTH];
            Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device)
        };
        Self {
            statistics: config.init(&model).expect("a model with parameters"),
            left: factor(),
            right: factor(),
            seen: 0,
        }
    }

    /// Take in these gradients of samples that were not there before.
    fn push(&mut self, gradient: SampleGradient) {
        let [samples, positions, _] = self.left.dims();
        let new = self.seen..self.seen + samples;
        self.seen = new.end;
        let sample = |i| Sample::new(format!("sample {i}"), positions as u64);
        let samples: Result<Vec<Sample>, _> = new.map(sample).collect();
        let samples = samples.expect("samples with tokens");
        let begun = self.statistics.begin("task", &samples);
        begun.expect("new samples");
        let put = self.statistics.put("weight", gradient);
        put.expect("gradients of the parameter");
        self.statistics.commit().expect("finite squares");
    }

    fn flops(&self) -> ItemsCount {
        let [samples, positions, _] = self.left.dims();
        ItemsCount::new(2 * samples * positions * WIDTH * WIDTH)
    }

    fn product(&mut self) {
        let (left, right) = (self.left.clone(), self.right.clone());
        self.push(SampleGradient::Outer { left, right });
    }
}

fn product(bencher: Bencher, config: &StatisticsConfig, shape: [usize; 2]) {
    let mut piece = Piece::new(config, shape);
    let flops = piece.flops();
    bencher.counter(flops).bench_local(|| piece.product());
}

/// Sums of squares over output channels, from gradients.
#[divan::bench(args = SHAPES)]
fn groups(bencher: Bencher, shape: [usize; 2]) {
    let config = StatisticsConfig::new()
        .with_elementwise(false)
        .with_ghost(false);
    product(bencher, &config, shape);
}

/// The same, by products of positions with positions where those are cheaper.
#[divan::bench(args = SHAPES)]
fn ghost(bencher: Bencher, shape: [usize; 2]) {
    let config = StatisticsConfig::new().with_elementwise(false);
    product(bencher, &config, shape);
}

/// Means of all elements.
#[divan::bench(args = SHAPES)]
fn mean(bencher: Bencher, shape: [usize; 2]) {
    let config = StatisticsConfig::new()
        .with_variance(false)
        .with_grouped(false);
    product(bencher, &config, shape);
}

/// Means and variances of all elements.
#[divan::bench(args = SHAPES)]
fn mean_and_variance(bencher: Bencher, shape: [usize; 2]) {
    let config = StatisticsConfig::new().with_grouped(false);
    product(bencher, &config, shape);
}

/// The product alone, as Burn does it for the gradient of a batch: what the others are to be
/// compared with.
#[divan::bench(args = SHAPES)]
fn gradient_of_the_batch(bencher: Bencher, shape: [usize; 2]) {
    let piece = Piece::new(&StatisticsConfig::new().with_elementwise(false), shape);
    let length = shape[0] * shape[1];
    let flat = |tensor: &Tensor<3>| tensor.clone().reshape([length, WIDTH]);
    let (left, right) = (flat(&piece.left).transpose(), flat(&piece.right));
    bencher
        .counter(piece.flops())
        .bench_local(|| left.clone().matmul(right.clone()));
}

/// Means and variances of 16 gradients that are there as they are.
#[divan::bench]
fn whole(bencher: Bencher) {
    let mut piece = Piece::new(&StatisticsConfig::new().with_grouped(false), [16, 1]);
    let shape = [16, WIDTH * WIDTH];
    let device = Device::flex();
    let gradients = Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let items = ItemsCount::new(2 * shape[0] * shape[1]);
    bencher.counter(items).bench_local(|| {
        piece.push(SampleGradient::full(gradients.clone()));
    });
}
