//! Gradients that are products of factors, by every way, against float64.

use burn::module::{Module, ParamGroup};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::gradient::{GradientSink, SampleGradient};
use fisher_core::grouping::Scheme;
use fisher_core::moments::{SampleMoments, Welford};
use fisher_core::sample::Sample;
use fisher_core::squares::Way;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{HARDLY_VARYING, PRODUCTS, assert_close};
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::capture::{Engine, NonFinite};
use fisher_train::collect::CollectorConfig;
use fisher_train::losses::SampleLosses;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

/// What the factors are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// Squares of gradients of 1e-52.
    Small,
    /// Squares of gradients of 1e44.
    Large,
    /// The first sample's gradients are 1e4 times the others'.
    Outlier,
    /// Samples differ by a hundredth.
    Alike,
    /// Inputs and outputs that no sample has.
    Dead,
    /// Positions that cancel but for a thousandth.
    Cancelling,
}

struct Factors {
    /// Samples, positions, rows, columns.
    shape: [usize; 4],
    left: Vec<f32>,
    right: Vec<f32>,
}

impl Factors {
    fn new(kind: Kind, shape: [usize; 4]) -> Self {
        let [samples, positions, rows, columns] = shape;
        let mut random = StdRng::seed_from_u64(7);
        let mut draw = || random.random_range(-1.0f32..1.0);
        let common: Vec<f32> = (0..rows + positions * columns).map(|_| draw()).collect();
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for sample in 0..samples {
            for position in 0..positions {
                let dead = |at: usize| kind == Kind::Dead && at.is_multiple_of(3);
                left.extend((0..rows).map(|row| match kind {
                    Kind::Small => 1e-13 * draw(),
                    Kind::Large => 1e11 * draw(),
                    Kind::Outlier if sample == 0 => 1e4 * draw(),
                    Kind::Alike => common[row] * (1.0 + 0.01 * draw()),
                    Kind::Cancelling => common[row] + 1e-3 * draw(),
                    _ if dead(row) => 0.0,
                    _ => draw(),
                }));
                right.extend((0..columns).map(|column| match kind {
                    Kind::Small => 1e-13 * draw(),
                    Kind::Large => 1e11 * draw(),
                    Kind::Alike => common[rows + position * columns + column],
                    // Pairs of positions are opposite.
                    Kind::Cancelling => {
                        let sign = if position.is_multiple_of(2) {
                            1.0
                        } else {
                            -1.0
                        };
                        sign * common[rows + position / 2 * columns + column]
                    }
                    _ if dead(column + 1) => 0.0,
                    _ => draw(),
                }));
            }
        }
        Self { shape, left, right }
    }

    /// `C_i`, `[samples, rows × columns]`, per token.
    fn contributions(&self) -> Vec<Vec<f64>> {
        let [samples, positions, rows, columns] = self.shape;
        let of_sample = |sample: usize| {
            let mut gradient = vec![0.0f64; rows * columns];
            for at in sample * positions..(sample + 1) * positions {
                for row in 0..rows {
                    let left = f64::from(self.left[at * rows + row]);
                    for column in 0..columns {
                        let right = f64::from(self.right[at * columns + column]);
                        gradient[row * columns + column] += left * right;
                    }
                }
            }
            let square = |g: f64| g * g / positions as f64;
            gradient.into_iter().map(square).collect()
        };
        (0..samples).map(of_sample).collect()
    }

    fn tensors(&self, device: &Device, dtype: DType) -> [Tensor<3>; 2] {
        let [samples, positions, rows, columns] = self.shape;
        let tensor = |values: &[f32], side| {
            let data = TensorData::new(values.to_vec(), [samples, positions, side]);
            Tensor::<3>::from_data(data, device).cast(dtype)
        };
        [tensor(&self.left, rows), tensor(&self.right, columns)]
    }

    fn statistics(&self, config: &StatisticsConfig, device: &Device) -> Statistics {
        let [_, _, rows, columns] = self.shape;
        let linear = LinearConfig::new(rows, columns).with_bias(false);
        let model: Linear = linear.init(&device.clone().autodiff());
        config.init(&model).expect("statistics")
    }

    fn samples(&self) -> Vec<Sample> {
        let [samples, positions, ..] = self.shape;
        let sample = |i| Sample::new(format!("{i}"), positions as u64).expect("tokens");
        (0..samples).map(sample).collect()
    }

    /// In batches of `batch` samples; the ways they took.
    fn count(
        &self,
        statistics: &mut Statistics,
        [left, right]: [Tensor<3>; 2],
        batch: usize,
    ) -> Vec<Way> {
        let mut ways = Vec::new();
        for (at, samples) in self.samples().chunks(batch).enumerate() {
            let part = |t: &Tensor<3>| t.clone().narrow(0, at * batch, samples.len());
            let (left, right) = (part(&left), part(&right));
            statistics.begin("task", samples).expect("new samples");
            let put = statistics.put("weight", SampleGradient::Outer { left, right });
            put.expect("factors of the parameter");
            let way = statistics.finish().expect("finite squares");
            ways.extend(way.into_iter().map(|(_, way)| way));
        }
        ways
    }
}

/// Mean and variance over samples.
fn moments(samples: &[Vec<f64>]) -> [Vec<f64>; 2] {
    let n = samples.len() as f64;
    let over = |f: &dyn Fn(usize) -> f64| (0..samples[0].len()).map(f).collect::<Vec<f64>>();
    let mean = over(&|at| samples.iter().map(|s| s[at]).sum::<f64>() / n);
    let squares = |at: usize| samples.iter().map(move |s| (s[at], at));
    let variance = over(&|at| {
        let squares = squares(at).map(|(x, at)| (x - mean[at]).powi(2));
        squares.sum::<f64>() / (n - 1.0)
    });
    [mean, variance]
}

fn check(name: &str, found: &Welford, expected: &[Vec<f64>], kind: Kind) {
    check_moments(name, found.read().expect("values"), expected, kind);
}

fn check_moments(name: &str, found: SampleMoments, expected: &[Vec<f64>], kind: Kind) {
    let [mean, variance] = moments(expected);
    let name = |what| format!("{name} {kind:?}: {what}");
    assert_close(
        &name("mean"),
        &found.mean.expect("a mean"),
        &mean,
        PRODUCTS,
        1e-2,
    );
    if expected.len() > 1
        && let Some(found) = found.variance
    {
        let tolerance = match kind {
            Kind::Alike | Kind::Cancelling => HARDLY_VARYING,
            _ => PRODUCTS,
        };
        assert_close(&name("variance"), &found, &variance, tolerance, 1e-2);
    }
}

/// Elements, or groups alone, from the ways that were taken.
fn agree(kind: Kind, shape: [usize; 4], device: &Device, dtype: DType, ghost: bool) -> Vec<Way> {
    let [.., rows, columns] = shape;
    let factors = Factors::new(kind, shape);
    let expected = factors.contributions();
    let sides = |by_row: bool| -> Vec<Vec<f64>> {
        let (groups, others) = if by_row {
            (rows, columns)
        } else {
            (columns, rows)
        };
        let at = |group, other| {
            if by_row {
                group * columns + other
            } else {
                other * columns + group
            }
        };
        let mean = |sample: &Vec<f64>, group| {
            (0..others)
                .map(|other| sample[at(group, other)])
                .sum::<f64>()
                / others as f64
        };
        let of_sample = |sample| (0..groups).map(|group| mean(sample, group)).collect();
        expected.iter().map(of_sample).collect()
    };
    let tensors = || factors.tensors(device, dtype);
    let mut ways = Vec::new();
    for scheme in [Scheme::OutputChannel, Scheme::InputChannel, Scheme::Tensor] {
        let by_row = scheme == Scheme::InputChannel;
        let config = StatisticsConfig::new()
            .with_elementwise(!ghost)
            .with_schemes(vec![(ParamGroup::all(), scheme.clone())]);
        // All at once, and in batches that are joined.
        for batch in [shape[0], 7] {
            let mut statistics = factors.statistics(&config, device);
            ways.extend(factors.count(&mut statistics, tensors(), batch));
            let task = statistics.task("task").expect("the task");
            let parameter = task.parameter("weight").expect("the parameter");
            if let Some(elements) = parameter.elementwise() {
                check("elements", elements, &expected, kind);
            }
            let (_, groups) = &parameter.groups()[0];
            match scheme {
                Scheme::Tensor => {
                    let whole = |s: &Vec<f64>| vec![s.iter().sum::<f64>() / s.len() as f64];
                    let whole: Vec<_> = expected.iter().map(whole).collect();
                    check("tensor", groups, &whole, kind);
                }
                _ => check("side", groups, &sides(by_row), kind),
            }
        }
    }
    ways
}

const SHAPES: [[usize; 4]; 5] = [
    // Many samples of one position: several bursts of squares.
    [150, 1, 13, 70],
    // Several bursts of samples, blocks with edges.
    [40, 5, 13, 70],
    [3, 33, 7, 40],
    [1, 4, 6, 32],
    // A vector of outputs.
    [20, 3, 9, 1],
];

#[rstest]
fn products_agree_with_float64_on_the_host(
    #[values(Backend::Flex, Backend::Ndarray)] backend: Backend,
    #[values(
        Kind::Plain,
        Kind::Small,
        Kind::Large,
        Kind::Outlier,
        Kind::Alike,
        Kind::Dead
    )]
    kind: Kind,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for shape in SHAPES {
        let ways = agree(kind, shape, &device, DType::F32, false);
        assert!(ways.iter().all(|way| *way == Way::Kernel), "{ways:?}");
    }
}

/// On a device of CubeCL; factors that are not float32 come by runs.
#[rstest]
fn products_agree_with_float64_on_a_device(
    #[values(Kind::Plain, Kind::Outlier, Kind::Dead)] kind: Kind,
) {
    let Some(device) = Backend::Wgpu.device() else {
        return;
    };
    for shape in [SHAPES[0], SHAPES[1], [9, 3, 300, 300]] {
        let ways = agree(kind, shape, &device, DType::F32, false);
        let kernel = |way: &Way| matches!(way, Way::Kernel | Way::Squares);
        assert!(ways.iter().all(kernel), "{ways:?}");
    }
}

/// Without a variance, sums over samples of one position are one product of squares where a parameter is
/// large.
#[test]
fn means_come_from_squares() {
    let Some(device) = Backend::Wgpu.device() else {
        return;
    };
    for (shape, way) in [(SHAPES[0], Way::Kernel), ([150, 1, 256, 260], Way::Squares)] {
        let factors = Factors::new(Kind::Plain, shape);
        let expected = factors.contributions();
        let config = StatisticsConfig::new().with_variance(false);
        let mut statistics = factors.statistics(&config, &device);
        let tensors = factors.tensors(&device, DType::F32);
        let ways = factors.count(&mut statistics, tensors, 70);
        assert_eq!(ways, [way; 3]);
        let task = statistics.task("task").expect("the task");
        let elements = task.parameter("weight").expect("one").elementwise();
        check("means", elements.expect("elements"), &expected, Kind::Plain);
    }
}

/// Factors in float64 are not for the kernel.
#[test]
fn factors_may_be_float64() {
    let device = Device::flex();
    for shape in [SHAPES[0], SHAPES[1], [9, 3, 300, 300]] {
        let ways = agree(Kind::Plain, shape, &device, DType::F64, false);
        assert!(!ways.contains(&Way::Kernel), "{ways:?}");
    }
    agree(Kind::Plain, [5, 20, 300, 300], &device, DType::F64, true);
}

/// Sums over sides from products of positions with positions, unless these lose too many digits or are
/// not wanted.
#[rstest]
fn ghosts_agree_with_float64(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Kind::Plain, Kind::Small, Kind::Large, Kind::Outlier, Kind::Cancelling)] kind: Kind,
) {
    let Some(device) = backend.device() else {
        return;
    };
    if backend == Backend::Wgpu && matches!(kind, Kind::Small | Kind::Large) {
        return; // squares leave the range of its accumulators
    }
    let shape = [9, 20, 300, 200];
    let ways = agree(kind, shape, &device, DType::F32, true);
    let ghosts = ways.iter().filter(|way| **way == Way::Ghost).count();
    match kind {
        Kind::Cancelling => assert_eq!(ghosts, 0, "{ways:?}"),
        _ => assert_eq!(ghosts, ways.len(), "{ways:?}"),
    }
    let factors = Factors::new(kind, shape);
    let config = StatisticsConfig::new()
        .with_elementwise(false)
        .with_ghost(false);
    let mut statistics = factors.statistics(&config, &device);
    let ways = factors.count(&mut statistics, factors.tensors(&device, DType::F32), 9);
    assert!(!ways.contains(&Way::Ghost), "{ways:?}");
}

/// A channel whose positions cancel, among others whose do not, has all its digits: what the whole
/// sample has does not tell.
#[rstest]
fn a_ghost_is_judged_by_channel(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(true, false)] by_row: bool,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let (samples, positions, side, channel) = (5, 24, 240, 7);
    let mut factors = Factors::new(Kind::Plain, [samples, positions, side, side]);
    let Factors { left, right, .. } = &mut factors;
    let (own, other) = if by_row { (left, right) } else { (right, left) };
    // Positions come in pairs that are the same on the other side and nearly opposite in the channel.
    for at in (0..samples * positions).step_by(2) {
        let pair = other[at * side..(at + 1) * side].to_vec();
        other[(at + 1) * side..(at + 2) * side].copy_from_slice(&pair);
        own[(at + 1) * side + channel] = -1.001 * own[at * side + channel];
    }
    let contributions = factors.contributions();
    let scheme = if by_row {
        Scheme::InputChannel
    } else {
        Scheme::OutputChannel
    };
    let config = StatisticsConfig::new()
        .with_elementwise(false)
        .with_schemes(vec![(ParamGroup::all(), scheme)]);
    let mut statistics = factors.statistics(&config, &device);
    let tensors = factors.tensors(&device, DType::F32);
    let ways = factors.count(&mut statistics, tensors, samples);
    assert_eq!(ways, [Way::Ghost]);
    let task = statistics.task("task").expect("the task");
    let (_, groups) = &task.parameter("weight").expect("the parameter").groups()[0];
    let found = groups.read().expect("values").mean.expect("a mean");
    let mean = |group: usize| {
        let of = contributions.iter().map(|sample| {
            let at = |other| {
                if by_row {
                    group * side + other
                } else {
                    other * side + group
                }
            };
            (0..side).map(|other| sample[at(other)]).sum::<f64>() / side as f64
        });
        of.sum::<f64>() / samples as f64
    };
    let expected: Vec<f64> = (0..side).map(mean).collect();
    let largest = expected.iter().copied().fold(0.0, f64::max);
    assert!(expected[channel] < 1e-5 * largest, "the channel cancels");
    assert_close("channels", &found, &expected, HARDLY_VARYING, 0.0);
}

/// Groups that are no slices of an axis, in several tiles, against float64.
#[rstest]
fn scattered_groups_agree_with_float64(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(true, false)] elementwise: bool,
    #[values(1, 3)] positions: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let shape = [40, positions, 310, 350];
    let elements = shape[2] * shape[3];
    let factors = Factors::new(Kind::Plain, shape);
    let contributions = factors.contributions();
    let ids: Vec<u32> = (0..elements as u32).map(|e| e * 7 % 13).collect();
    for (scheme, group) in [
        (
            Scheme::Buckets { size: 1000 },
            (0..elements).map(|e| e / 1000).collect::<Vec<_>>(),
        ),
        (
            Scheme::Buckets { size: 70_000 },
            (0..elements).map(|e| e / 70_000).collect(),
        ),
        (
            Scheme::Custom { ids: ids.clone() },
            ids.iter().map(|&id| id as usize).collect(),
        ),
    ] {
        let groups = group.iter().max().expect("elements") + 1;
        let mean = |sample: &Vec<f64>| {
            let (mut sums, mut sizes) = (vec![0.0; groups], vec![0.0; groups]);
            for (value, &group) in sample.iter().zip(&group) {
                sums[group] += value;
                sizes[group] += 1.0;
            }
            let means = sums.iter().zip(&sizes).map(|(sum, size)| sum / size);
            means.collect::<Vec<f64>>()
        };
        let expected: Vec<Vec<f64>> = contributions.iter().map(mean).collect();
        let config = StatisticsConfig::new()
            .with_elementwise(elementwise)
            .with_schemes(vec![(ParamGroup::all(), scheme)]);
        let mut statistics = factors.statistics(&config, &device);
        let tensors = factors.tensors(&device, DType::F32);
        factors.count(&mut statistics, tensors, 25);
        let task = statistics.task("task").expect("the task");
        let parameter = task.parameter("weight").expect("the parameter");
        check("groups", &parameter.groups()[0].1, &expected, Kind::Plain);
        if let Some(elements) = parameter.elementwise() {
            check("elements", elements, &contributions, Kind::Plain);
        }
        let trace = |s: &Vec<f64>| vec![s.iter().sum::<f64>()];
        let traces: Vec<_> = contributions.iter().map(trace).collect();
        check_moments("layer", task.layers(), &traces, Kind::Plain);
    }
}

/// The same factors give the same bits, whatever the number of threads.
#[test]
fn threads_change_nothing() {
    let factors = Factors::new(Kind::Plain, [20, 5, 130, 70]);
    let device = Device::flex();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(|| {
            let mut statistics = factors.statistics(&StatisticsConfig::new(), &device);
            let tensors = factors.tensors(&device, DType::F32);
            factors.count(&mut statistics, tensors, 20);
            let task = statistics.task("task").expect("the task");
            let parameter = task.parameter("weight").expect("the parameter");
            let elements = parameter.elementwise().expect("elements");
            [elements, &parameter.groups()[0].1].map(|w| w.read().expect("values"))
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn factors_of_other_shapes_are_refused() {
    let factors = Factors::new(Kind::Plain, [4, 3, 6, 6]);
    let device = Device::flex();
    let [left, right] = factors.tensors(&device, DType::F32);
    let tests = [
        (left.clone().narrow(2, 0, 5), right.clone()),
        (left.clone(), right.clone().narrow(1, 0, 2)),
        (left.clone().narrow(0, 0, 3), right.clone().narrow(0, 0, 3)),
    ];
    for (left, right) in tests {
        let mut statistics = factors.statistics(&StatisticsConfig::new(), &device);
        let begun = statistics.begin("task", &factors.samples());
        begun.expect("new samples");
        let refused = statistics.put("weight", SampleGradient::Outer { left, right });
        assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    }
}

/// A batch that did not end well is not passed off as a whole one: that a product is not finite is found
/// when its elements are in.
#[rstest]
fn half_a_batch_is_not_saved(
    #[values((Backend::Flex, f32::NAN), (Backend::Wgpu, 3e38))] (backend, value): (Backend, f32),
) {
    let Some(device) = backend.device() else {
        return;
    };
    let mut factors = Factors::new(Kind::Plain, [4, 3, 6, 6]);
    // At the first position of the third sample; finite factors leave float32's range as a product.
    factors.left[40] = value;
    factors.right[36..42].fill(10.0);
    let mut statistics = factors.statistics(&StatisticsConfig::new(), &device);
    let begun = statistics.begin("task", &factors.samples());
    begun.expect("new samples");
    let [left, right] = factors.tensors(&device, DType::F32);
    let put = statistics.put("weight", SampleGradient::Outer { left, right });
    put.expect("a product");
    match statistics.commit() {
        Err(Error::NonFinite { sample, .. }) => assert_eq!(sample, "2"),
        other => panic!("{other:?}"),
    }
    let folder = tempfile::tempdir().expect("a folder");
    let saved = statistics.save(folder.path().join("statistics.safetensors"));
    assert!(matches!(saved, Err(Error::HalfBatch)), "{saved:?}");
    let mut fresh = factors.statistics(&StatisticsConfig::new(), &device);
    let merged = fresh.merge(statistics.clone());
    assert!(matches!(merged, Err(Error::HalfBatch)), "{merged:?}");
    let again = statistics.begin("task", &[]);
    assert!(matches!(again, Err(Error::HalfBatch)), "{again:?}");
}

/// What was put of a batch counts when it is committed, and is forgotten where it is not.
#[test]
fn a_batch_that_is_not_committed_leaves_nothing() {
    let factors = Factors::new(Kind::Plain, [4, 3, 6, 6]);
    let device = Device::flex();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("statistics.safetensors");
    let bytes = |statistics: &Statistics| {
        statistics.save(&path).expect("whole statistics");
        std::fs::read(&path).expect("a file")
    };
    let mut statistics = factors.statistics(&StatisticsConfig::new(), &device);
    let mut straight = statistics.clone();
    let empty = bytes(&statistics);
    let none = statistics.commit();
    assert!(matches!(none, Err(Error::NoBatch)), "{none:?}");

    let samples = factors.samples();
    let [left, right] = factors.tensors(&device, DType::F32);
    statistics.begin("task", &samples).expect("new samples");
    let put = statistics.put("weight", SampleGradient::Outer { left, right });
    put.expect("a product");
    assert_eq!(bytes(&statistics), empty);
    statistics.begin("task", &samples).expect("new as before");
    let missing = statistics.commit();
    let named =
        matches!(&missing, Err(Error::MissingParameter { parameter }) if parameter == "weight");
    assert!(named, "{missing:?}");
    assert_eq!(bytes(&statistics), empty);

    for statistics in [&mut statistics, &mut straight] {
        factors.count(statistics, factors.tensors(&device, DType::F32), 4);
    }
    assert_eq!(bytes(&statistics), bytes(&straight));
}

/// An infinite input behind which everything saturates: loss and output gradients are finite.
#[derive(Module, Debug)]
struct Saturating {
    first: Linear,
    second: Linear,
}

#[derive(Clone)]
struct Numbers(Tensor<2>);

impl SampleBatch for Numbers {
    fn len(&self) -> usize {
        self.0.dims()[0]
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self(mapper.tensor(&self.0))
    }
}

impl SampleLoss for Saturating {
    type Batch = Numbers;

    fn sample_losses(&self, batch: &Numbers) -> SampleLosses {
        let x = self.first.forward(batch.0.clone()).tanh();
        let y = self.second.forward(x).square();
        let samples = y.dims()[0];
        SampleLosses::token_sum(y.reshape([samples]), vec![1; samples])
    }
}

#[rstest]
fn an_infinite_input_is_one_samples_fault(
    #[values(Engine::Loop, Engine::Trace)] engine: Engine,
    #[values(true, false)] elementwise: bool,
) {
    let device = Device::flex().autodiff();
    let model = Saturating {
        first: LinearConfig::new(1, 4).init(&device),
        second: LinearConfig::new(4, 1).init(&device),
    };
    let numbers = [[0.5], [-0.3], [f32::INFINITY], [0.1]];
    let batch = Numbers(Tensor::from_data(numbers, &device));
    let config = StatisticsConfig::new().with_elementwise(elementwise);
    let collect = |non_finite| {
        let mut statistics = config.init(&model).expect("some");
        let collector = CollectorConfig::new()
            .with_engine(engine)
            .with_non_finite(non_finite)
            .init()
            .expect("a collector");
        let collected = collector.collect_batches(&model, "task", [batch.clone()], &mut statistics);
        (collected, statistics)
    };
    let (refused, _) = collect(NonFinite::Error);
    let refused = refused.expect_err("a NaN").to_string();
    assert!(refused.contains("`2`"), "{refused}");
    let (collected, statistics) = collect(NonFinite::Skip);
    let collected = collected.expect("the others");
    assert_eq!((collected.samples, collected.skipped), (3, 1));
    let folder = tempfile::tempdir().expect("a folder");
    let saved = statistics.save(folder.path().join("statistics.safetensors"));
    saved.expect("whole statistics");
}
