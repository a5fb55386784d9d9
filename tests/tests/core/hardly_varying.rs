//! Variances of contributions that hardly differ between samples, by every way, against float64.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use fisher_core::gradient::{GradientSink, SampleGradient};
use fisher_core::moments::{SampleMoments, Welford};
use fisher_core::sample::Sample;
use fisher_core::squares::Way;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{assert_close, rounded_variance};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

const SAMPLES: usize = 48;

/// Numbers `[samples, length]` that differ between samples by `cv` of themselves.
fn alike(cv: f64, length: usize, random: &mut StdRng) -> Vec<f32> {
    let common: Vec<f64> = (0..length)
        .map(|_| random.random_range(0.5f64..2.0))
        .collect();
    let of_sample = |random: &mut StdRng| -> Vec<f32> {
        let vary = |x: &f64| (x * (1.0 + cv * random.random_range(-1.0f64..1.0))) as f32;
        common.iter().map(vary).collect()
    };
    (0..SAMPLES).flat_map(|_| of_sample(random)).collect()
}

fn variance(samples: &[Vec<f64>]) -> Vec<f64> {
    let n = samples.len() as f64;
    let of_element = |at: usize| {
        let mean = samples.iter().map(|s| s[at]).sum::<f64>() / n;
        let squares = samples.iter().map(|s| (s[at] - mean).powi(2));
        squares.sum::<f64>() / (n - 1.0)
    };
    (0..samples[0].len()).map(of_element).collect()
}

fn samples(range: std::ops::Range<usize>) -> Vec<Sample> {
    let sample = |i| Sample::new(format!("{i}"), 1).expect("tokens");
    range.map(sample).collect()
}

fn read(welford: &Welford) -> SampleMoments {
    welford.read().expect("values")
}

fn check(name: &str, found: SampleMoments, expected: &[f64], cv: f64) {
    let found = found.variance.expect("a variance");
    assert_close(name, &found, expected, rounded_variance(cv), 0.0);
}

fn statistics<M: Module>(model: &M, compensated: bool) -> Statistics {
    StatisticsConfig::new()
        .with_compensated(compensated)
        .init(model)
        .expect("statistics")
}

/// A batch; the way to the squares of its gradients.
fn push(
    statistics: &mut Statistics,
    range: std::ops::Range<usize>,
    gradient: SampleGradient,
) -> Way {
    let begun = statistics.begin("task", &samples(range));
    begun.expect("new samples");
    let put = statistics.put("weight", gradient);
    put.expect("gradients of the parameter");
    let ways = statistics.finish().expect("finite squares");
    assert_eq!(ways.len(), 1);
    ways[0].1
}

#[rstest]
fn of_products(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(true, false)] compensated: bool,
    #[values(1, 2)] positions: usize,
    #[values(1e-2, 1e-3, 1e-4, 1e-5, 1e-6)] cv: f64,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let (rows, columns) = (3, 4);
    let mut random = StdRng::seed_from_u64(3);
    let left = alike(cv, positions * rows, &mut random);
    let right = alike(cv, positions * columns, &mut random);
    let of_sample = |sample: usize| -> Vec<f64> {
        let mut gradient = vec![0.0f64; rows * columns];
        for at in sample * positions..(sample + 1) * positions {
            for (element, gradient) in gradient.iter_mut().enumerate() {
                let (row, column) = (element / columns, element % columns);
                let [left, right] = [left[at * rows + row], right[at * columns + column]];
                *gradient += f64::from(left) * f64::from(right);
            }
        }
        gradient.iter().map(|g| g * g).collect()
    };
    let expected: Vec<Vec<f64>> = (0..SAMPLES).map(of_sample).collect();
    let model = LinearConfig::new(rows, columns).with_bias(false);
    let mut statistics = statistics(&model.init(&device.clone().autodiff()), compensated);
    let tensor = |values: &[f32], side| {
        let data = TensorData::new(values.to_vec(), [SAMPLES, positions, side]);
        Tensor::<3>::from_data(data, &device)
    };
    let (left, right) = (tensor(&left, rows), tensor(&right, columns));
    // In batches, whose means differ as little.
    for start in (0..SAMPLES).step_by(16) {
        let cut = |t: &Tensor<3>| t.clone().narrow(0, start, 16);
        let (left, right) = (cut(&left), cut(&right));
        let product = SampleGradient::Outer { left, right };
        let way = push(&mut statistics, start..start + 16, product);
        assert_ne!(way, Way::Squares);
    }
    let task = statistics.task("task").expect("the task");
    let weight = task.parameter("weight").expect("the weight");
    let name = format!("{backend:?} {positions} {cv:e}");
    let elements = weight.elementwise().expect("elements");
    check(&name, read(elements), &variance(&expected), cv);
    let channels: Vec<Vec<f64>> = expected
        .iter()
        .map(|sample| {
            let of = |column| (0..rows).map(move |row| sample[row * columns + column]);
            let mean = |column| of(column).sum::<f64>() / rows as f64;
            (0..columns).map(mean).collect()
        })
        .collect();
    let channels = variance(&channels);
    check(
        &name,
        weight.groups()[0].1.read().expect("values"),
        &channels,
        cv,
    );
    let trace: Vec<Vec<f64>> = expected.iter().map(|s| vec![s.iter().sum()]).collect();
    check(&name, task.layers(), &variance(&trace), cv);
}

fn table(device: &Device) -> Embedding {
    EmbeddingConfig::new(5, 3).init(&device.clone().autodiff())
}

/// Every sample looks the same rows up, one of them twice, but for one row that half of them leave
/// out and one that nobody asks for.
#[rstest]
fn of_lookups(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(true, false)] compensated: bool,
    #[values(1e-2, 1e-3, 1e-4, 1e-5, 1e-6)] cv: f64,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let (positions, width) = (4, 3);
    let mut random = StdRng::seed_from_u64(5);
    let delta = alike(cv, positions * width, &mut random);
    let ids = |sample: usize| [2, 0, 2, if sample.is_multiple_of(2) { 3 } else { 0 }];
    let of_sample = |sample: usize| -> Vec<f64> {
        let mut gradient = vec![0.0f64; 5 * width];
        for (position, row) in ids(sample).into_iter().enumerate() {
            for column in 0..width {
                let at = (sample * positions + position) * width + column;
                gradient[row * width + column] += f64::from(delta[at]);
            }
        }
        gradient.iter().map(|g| g * g).collect()
    };
    let expected: Vec<Vec<f64>> = (0..SAMPLES).map(of_sample).collect();
    let mut statistics = statistics(&table(&device), compensated);
    for start in (0..SAMPLES).step_by(16) {
        let range = start..start + 16;
        let of_batch = range.clone().flat_map(ids).map(|id| id as i64);
        let of_batch = TensorData::new(of_batch.collect::<Vec<i64>>(), [16, positions]);
        let part = delta[start * positions * width..][..16 * positions * width].to_vec();
        let part = TensorData::new(part, [16, positions, width]);
        let rows = SampleGradient::Rows {
            ids: Tensor::from_data(of_batch, &device),
            delta: Tensor::from_data(part, &device),
            table: 5,
        };
        assert_eq!(push(&mut statistics, range, rows), Way::Lookup);
    }
    let task = statistics.task("task").expect("the task");
    let weight = task.parameter("weight").expect("the weight");
    let name = format!("{backend:?} {cv:e}");
    let elements = weight.elementwise().expect("elements");
    check(&name, read(elements), &variance(&expected), cv);
    let mean = |row: &[f64]| row.iter().sum::<f64>() / row.len() as f64;
    let rows = expected.iter().map(|s| s.chunks(width).map(mean).collect());
    let rows = variance(&rows.collect::<Vec<_>>());
    check(&name, read(&weight.groups()[0].1), &rows, cv);
}

/// Half-precision factors have too few digits for their sums.
#[test]
fn half_precision_is_summed_in_float32() {
    let device = Device::flex();
    let positions = 3000;
    let rows = SampleGradient::Rows {
        ids: Tensor::<2, Int>::zeros([2, positions], &device),
        delta: Tensor::<3>::ones([2, positions, 3], &device).cast(DType::F16),
        table: 5,
    };
    let mut statistics = statistics(&table(&device), false);
    push(&mut statistics, 0..2, rows);
    let task = statistics.task("task").expect("the task");
    let elements = task.parameter("weight").expect("the weight").elementwise();
    let mean = elements.expect("elements").read().expect("values").mean;
    // Float16 stops counting at 2048.
    assert_eq!(mean.expect("a mean")[0], 9e6);
}
