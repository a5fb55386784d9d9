//! Squares of products by every device's kernel, against float64.

use burn::module::{Module, Param, ParamGroup};
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{GradientSink, SampleGradient};
use fisher_core::grouping::Scheme;
use fisher_core::sample::Sample;
use fisher_core::squares::Way;
use fisher_core::statistics::{ParameterStatistics, Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{PRODUCTS, assert_close};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

/// Samples, positions, rows and columns: of a cube's units and not, of few rows, columns, one position or
/// sample, of several cubes, and large ones.
const SHAPES: [[usize; 4]; 9] = [
    [5, 7, 13, 9],
    [1, 1, 5, 3],
    [1, 4, 8, 8],
    [3, 1, 130, 67],
    [6, 16, 64, 128],
    [4, 5, 2, 300],
    [4, 5, 300, 2],
    [33, 3, 70, 140],
    [6, 1, 300, 260],
];
const BATCHES: usize = 2;

#[derive(Module, Debug)]
struct Layer {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Layer {
    fn new([rows, columns]: [usize; 2], device: &Device) -> Self {
        let device = device.clone().autodiff();
        Self {
            weight: Param::from_tensor(Tensor::zeros([rows, columns], &device)),
            bias: Param::from_tensor(Tensor::zeros([columns], &device)),
        }
    }
}

/// Contributions of all elements, sample after sample.
#[derive(Default)]
struct Exact {
    weight: Vec<Vec<f64>>,
    bias: Vec<Vec<f64>>,
}

/// Mean and M2.
fn moments(samples: &[Vec<f64>]) -> [Vec<f64>; 2] {
    let n = samples.len() as f64;
    let of = |at: usize| samples.iter().map(move |sample| sample[at]);
    let mean = |at: usize| of(at).sum::<f64>() / n;
    let m2 = |at: usize| of(at).map(|x| (x - mean(at)).powi(2)).sum();
    let elements = 0..samples[0].len();
    [
        elements.clone().map(mean).collect(),
        elements.map(m2).collect(),
    ]
}

fn random(length: usize, scale: f32, random: &mut StdRng) -> Vec<f32> {
    let value = |_| scale * random.random_range(-1.0f32..1.0);
    (0..length).map(value).collect()
}

/// A batch of products, and of sums of their right sides as those of a bias.
fn push(
    statistics: &mut Statistics,
    batch: usize,
    [samples, positions, rows, columns]: [usize; 4],
    scale: f32,
    device: &Device,
    exact: &mut Exact,
) -> Vec<(String, Way)> {
    let mut seed = StdRng::seed_from_u64(batch as u64);
    let left = random(samples * positions * rows, scale, &mut seed);
    let right = random(samples * positions * columns, 1.0, &mut seed);
    let tokens = |i: usize| 1 + (i % 3) as u64;
    let mut biases = Vec::new();
    for i in 0..samples {
        let at = |t: usize, side: usize, k: usize| (i * positions + t) * side + k;
        let square = |g: f64| g * g / tokens(i) as f64;
        let of_weight = |r: usize, c: usize| -> f64 {
            let terms = (0..positions)
                .map(|t| f64::from(left[at(t, rows, r)]) * f64::from(right[at(t, columns, c)]));
            square(terms.sum())
        };
        let elements = (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c)));
        let elements = elements.map(|(r, c)| of_weight(r, c));
        exact.weight.push(elements.collect());
        let bias = |c: usize| {
            (0..positions)
                .map(|t| right[at(t, columns, c)])
                .sum::<f32>()
                * scale
        };
        let bias: Vec<f32> = (0..columns).map(bias).collect();
        exact
            .bias
            .push(bias.iter().map(|&g| square(g.into())).collect());
        biases.extend(bias);
    }
    let ids = (0..samples).map(|i| Sample::new(format!("{batch} {i}"), tokens(i)));
    let ids: Result<Vec<Sample>, _> = ids.collect();
    let begun = statistics.begin("task", &ids.expect("samples with tokens"));
    begun.expect("new samples");
    let tensor = |values, side| {
        Tensor::<3>::from_data(TensorData::new(values, [samples, positions, side]), device)
    };
    let (left, right) = (tensor(left, rows), tensor(right, columns));
    let put = statistics.put("weight", SampleGradient::Outer { left, right });
    put.expect("gradients of the weight");
    let bias = Tensor::<2>::from_data(TensorData::new(biases, [samples, columns]), device);
    let put = statistics.put("bias", SampleGradient::full(bias));
    put.expect("gradients of the bias");
    statistics.finish().expect("finite squares")
}

fn check(name: &str, found: &ParameterStatistics, exact: &[Vec<f64>], variance: bool) {
    let [mean, m2] = moments(exact);
    if let Some(found) = found.elementwise() {
        let values = found.read_mean().expect("values").expect("samples");
        assert_close(name, &values, &mean, PRODUCTS, 1e-2);
        if variance {
            let values = found.read_m2().expect("values").expect("a variance");
            assert_close(&format!("{name}, M2"), &values, &m2, PRODUCTS, 1e-2);
        }
    }
}

/// Of every sample, summed over all but one axis.
fn margin(exact: &[Vec<f64>], [rows, columns]: [usize; 2], axis: usize) -> Vec<Vec<f64>> {
    let of_sample = |sample: &Vec<f64>| -> Vec<f64> {
        let cells = |k: usize| -> f64 {
            match axis {
                0 => sample[k * columns..(k + 1) * columns].iter().sum(),
                _ => sample.iter().skip(k).step_by(columns).sum(),
            }
        };
        (0..[rows, columns][axis]).map(cells).collect()
    };
    exact.iter().map(of_sample).collect()
}

#[rstest]
fn elements_and_sums_are_those_of_float64(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(true, false)] compensated: bool,
    #[values(None, Some(false), Some(true))] variance: Option<bool>,
    #[values(Scheme::InputChannel, Scheme::OutputChannel)] scheme: Scheme,
) {
    let Some(device) = backend.device() else {
        return;
    };
    // Squares of squares still are in float32's range.
    for (shape, scale) in SHAPES
        .into_iter()
        .zip([1.0, 1e-8, 1.0, 1e8].into_iter().cycle())
    {
        let [_, _, rows, columns] = shape;
        let model = Layer::new([rows, columns], &device);
        let mut statistics = StatisticsConfig::new()
            .with_elementwise(variance.is_some())
            .with_variance(variance.unwrap_or(true))
            .with_compensated(compensated)
            .with_ghost(false)
            .with_schemes(vec![(ParamGroup::from_path("weight"), scheme.clone())])
            .init(&model)
            .expect("statistics");
        let mut exact = Exact::default();
        for batch in 0..BATCHES {
            push(&mut statistics, batch, shape, scale, &device, &mut exact);
        }
        let task = statistics.task("task").expect("the task");
        let of = |path| task.parameter(path).expect("the parameter");
        let name = format!("{shape:?}");
        let variance = variance == Some(true);
        check(
            &format!("{name} weight"),
            of("weight"),
            &exact.weight,
            variance,
        );
        check(&format!("{name} bias"), of("bias"), &exact.bias, variance);
        for (grouping, found) in of("weight").groups() {
            assert!(grouping.label().ends_with("channel"));
            let axis = usize::from(scheme == Scheme::OutputChannel);
            let across = [rows, columns][1 - axis] as f64;
            let [mean, m2] = moments(&margin(&exact.weight, [rows, columns], axis));
            let mean: Vec<f64> = mean.iter().map(|x| x / across).collect();
            let m2: Vec<f64> = m2.iter().map(|x| x / across / across).collect();
            let values = found.read_mean().expect("values").expect("samples");
            assert_close(&format!("{name} groups"), &values, &mean, PRODUCTS, 1e-2);
            let values = found.read_m2().expect("values").expect("a variance");
            assert_close(&format!("{name} groups, M2"), &values, &m2, PRODUCTS, 1e-2);
        }
        let [layers, _] = moments(&margin(&exact.weight, [1, rows * columns], 0));
        let [of_bias, _] = moments(&margin(&exact.bias, [1, columns], 0));
        let total = task.layers().mean.expect("samples");
        let whole = [layers[0] + of_bias[0]];
        let found = [total.iter().sum::<f64>()];
        assert_close(&format!("{name} layers"), &found, &whole, PRODUCTS, 0.0);
    }
}

/// On a CubeCL device, products and vectors go into their accumulators by one kernel each.
#[cfg(feature = "wgpu")]
#[test]
fn a_parameter_is_one_launch() {
    use std::sync::{Arc, Mutex};

    use cubecl::logging::{LaunchObservation, LaunchObserver};

    #[derive(Default)]
    struct Names(Mutex<Vec<&'static str>>);
    impl LaunchObserver for Names {
        fn launched(&self, kernel: &'static str) {
            self.0.lock().expect("no panic").push(kernel);
        }
    }

    let Some(device) = Backend::Wgpu.device() else {
        return;
    };
    let model = Layer::new([64, 128], &device);
    let mut statistics: Statistics = StatisticsConfig::new()
        .with_grouped(false)
        .init(&model)
        .expect("statistics");
    let mut exact = Exact::default();
    let shape = [4, 3, 64, 128];
    push(&mut statistics, 0, shape, 1.0, &device, &mut exact);
    let names = Arc::new(Names::default());
    let watching = LaunchObservation::new(names.clone());
    let ways = push(&mut statistics, 1, shape, 1.0, &device, &mut exact);
    drop(watching);
    assert!(ways.iter().all(|(_, way)| *way == Way::Kernel), "{ways:?}");
    let names = names.0.lock().expect("no panic");
    let ours = names
        .iter()
        .filter(|name| name.contains("fisher_core"))
        .count();
    assert_eq!(ours, 2, "{names:?}");
}
