//! A table that is the matrix of a product, too: the same numbers as its gradients written out, in several bands of rows.

use burn::module::ParamGroup;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::grouping::{HeadLayout, Scheme};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::moments::SampleMoments;
use fisher_core::sample::Sample;
use fisher_core::squares::{SquaredNorms, Way, squared_norms};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{PRODUCTS, assert_close};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

/// More rows than two bands have, the second of which nobody looks up.
const TABLE: usize = 5000;
const WIDTH: usize = 3;
const SAMPLES: usize = 4;

fn draw<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut random = StdRng::seed_from_u64(seed);
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|_| random.random_range(-1.0..1.0)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Of `positions` products and as many lookups less one, some of them of one row, some in the last band.
fn gradient(positions: usize, seed: u64, device: &Device) -> SampleGradient {
    let product = SampleGradient::Outer {
        left: draw([SAMPLES, positions, TABLE], seed, device),
        right: draw([SAMPLES, positions, WIDTH], seed + 1, device),
    };
    let looked_up = positions - 1;
    let ids = (0..SAMPLES * looked_up).map(|at| match at % 3 {
        0 => (at * 1733 % 2048) as i64,
        1 => 17,
        _ => (TABLE - 1 - at % 2) as i64,
    });
    let ids = TensorData::new(ids.collect::<Vec<i64>>(), [SAMPLES, looked_up]);
    let lookup = SampleGradient::Rows {
        ids: Tensor::<2, Int>::from_data(ids, device),
        delta: draw([SAMPLES, looked_up, WIDTH], seed + 2, device),
        table: TABLE,
    };
    let sum = SampleGradient::sum([lookup, product]).expect("two uses");
    assert!(matches!(sum, SampleGradient::Tied(_)));
    sum
}

fn samples(first: usize) -> Vec<Sample> {
    let sample = |i: usize| Sample::new(format!("{i}"), 1 + i as u64 % 3).expect("tokens");
    (first..first + SAMPLES).map(sample).collect()
}

fn statistics(config: &StatisticsConfig, device: &Device) -> Statistics {
    let table = Parameter::new(
        "w",
        [TABLE, WIDTH],
        Role::Embedding,
        Orientation::InputOutput,
    );
    let catalogue = Catalogue::new(vec![table]).expect("a parameter");
    let statistics = config.init_for(&catalogue, &HeadLayout::none(), "m".into(), device);
    statistics.expect("statistics")
}

/// Two batches of other lengths, and the ways they took.
fn pushed(
    config: &StatisticsConfig,
    device: &Device,
    form: fn(SampleGradient) -> SampleGradient,
) -> (Statistics, Vec<Way>) {
    let mut statistics = statistics(config, device);
    let ways = [(0, 3), (SAMPLES, 6)].map(|(first, positions)| {
        let begun = statistics.begin("t", &samples(first));
        begun.expect("new samples");
        let of_batch = form(gradient(positions, first as u64, device));
        statistics.put("w", of_batch).expect("of this shape");
        statistics.finish().expect("a batch")[0].1
    });
    (statistics, ways.into())
}

fn assert_same(what: &str, found: &SampleMoments, expected: &SampleMoments) {
    let of = |moments: &SampleMoments| [moments.mean.clone(), moments.variance.clone()];
    for (found, expected) in of(found).into_iter().zip(of(expected)) {
        assert_eq!(found.is_some(), expected.is_some(), "{what}");
        let [found, expected] = [found, expected].map(Option::unwrap_or_default);
        assert_close(what, &found, &expected, PRODUCTS, 1.0);
    }
}

#[rstest]
#[case::all(StatisticsConfig::new(), vec![Scheme::Row])]
#[case::means(StatisticsConfig::new().with_variance(false), vec![Scheme::Tensor])]
#[case::groups(StatisticsConfig::new().with_elementwise(false), vec![Scheme::Row])]
#[case::scattered(StatisticsConfig::new(), vec![Scheme::Buckets { size: 1000 }])]
#[case::scattered_alone(
    StatisticsConfig::new().with_elementwise(false),
    vec![Scheme::Buckets { size: 1000 }]
)]
#[case::compensated(StatisticsConfig::new().with_compensated(true), vec![Scheme::Row])]
fn a_tied_table_has_the_squares_of_its_gradients(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[case] config: StatisticsConfig,
    #[case] schemes: Vec<Scheme>,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let schemes = schemes
        .into_iter()
        .map(|scheme| (ParamGroup::all(), scheme));
    let config = config.with_schemes(schemes.collect());
    let (found, ways) = pushed(&config, &device, |tied| tied);
    assert_eq!(ways, [Way::Bands; 2]);
    let flex = Backend::Flex.device().expect("a CPU");
    let whole = |tied: SampleGradient| SampleGradient::full(tied.to_full());
    let (expected, _) = pushed(&config, &flex, whole);
    let [found, expected] = [&found, &expected].map(|of| of.task("t").expect("the task"));
    let [ours, theirs] = [found, expected].map(|of| of.parameter("w").expect("the table"));
    if let Some(elements) = ours.elementwise() {
        let theirs = theirs.elementwise().expect("elements");
        let [ours, theirs] = [elements, theirs].map(|of| of.read().expect("moments"));
        assert_same("elements", &ours, &theirs);
    }
    for ((grouping, ours), (_, theirs)) in ours.groups().iter().zip(theirs.groups()) {
        let [ours, theirs] = [ours, theirs].map(|of| of.read().expect("moments"));
        assert_same(grouping.label(), &ours, &theirs);
    }
    assert_same("layers", &found.layers(), &expected.layers());
}

#[rstest]
fn norms_and_sums_are_those_of_the_gradients(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1.0, 1e-20, 1e15)] size: f32,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let SampleGradient::Tied(mut tied) = gradient(5, 3, &device) else {
        unreachable!("a sum of both")
    };
    tied.right = tied.right.clone() * size;
    tied.delta = tied.delta.clone() * size;
    let gradient = SampleGradient::Tied(tied);
    let full = gradient.to_full().try_to_vec_as::<f32>().expect("values");
    let full: Vec<&[f32]> = full.chunks(TABLE * WIDTH).collect();
    let norm = |row: &&[f32]| {
        row.iter()
            .map(|&x| f64::from(x) * f64::from(x))
            .sum::<f64>()
    };
    let expected: Vec<f64> = full
        .iter()
        .map(|row| norm(row).sqrt() / f64::from(size))
        .collect();
    let SquaredNorms { squares, scales } = squared_norms(&gradient);
    let read = |tensor: Tensor<1>| fisher_core::read(tensor).expect("values");
    let [a, b] = scales.map(read);
    let found = read(squares).into_iter().zip(a.iter().zip(&b));
    let found: Vec<f64> = found
        .map(|(x, (a, b))| x.sqrt() * a * b / f64::from(size))
        .collect();
    assert_close("norms", &found, &expected, PRODUCTS, 1.0);

    let weights = [0.5, -1.0, 2.0];
    let chosen = [3, 0, 2];
    let sum = gradient.add_to(None, &chosen, &weights);
    let found: Vec<f64> = read(sum).into_iter().map(|x| x / f64::from(size)).collect();
    let at = |e: usize| {
        let terms = chosen
            .iter()
            .zip(weights)
            .map(|(&i, w)| w * f64::from(full[i][e]));
        terms.sum::<f64>() / f64::from(size)
    };
    let expected: Vec<f64> = (0..TABLE * WIDTH).map(at).collect();
    assert_close("a weighted sum", &found, &expected, PRODUCTS, 1.0);

    // One sample, and some.
    let one = gradient
        .sample(2)
        .to_full()
        .try_to_vec_as::<f32>()
        .expect("values");
    assert_eq!(one, full[2]);
    let some = gradient.select(&[3, 1]).to_full().try_to_vec_as::<f32>();
    assert_eq!(some.expect("values"), [full[3], full[1]].concat());
}

#[test]
fn what_does_not_fit_a_tied_table_is_refused() {
    let device = Backend::Flex.device().expect("a CPU");
    let put = |tied: SampleGradient| {
        let mut statistics = statistics(&StatisticsConfig::new(), &device);
        let mut batch = GradientBatch::new(samples(0));
        batch.insert("w", tied);
        statistics.push_batch("t", batch)
    };
    let SampleGradient::Tied(tied) = gradient(3, 1, &device) else {
        unreachable!("a sum of both")
    };
    let mut outside = tied.clone();
    outside.ids = outside.ids.clone() + TABLE as i64;
    let mut narrow = tied.clone();
    narrow.delta = narrow.delta.clone().narrow(2, 0, WIDTH - 1);
    for wrong in [outside, narrow] {
        let error = put(SampleGradient::Tied(wrong)).expect_err("not of this shape");
        assert!(
            matches!(&error, Error::Shape { parameter, .. } if parameter == "w"),
            "{error}"
        );
    }
    let mut infinite = tied.clone();
    infinite.delta = infinite.delta.clone() * f32::INFINITY;
    let error = put(SampleGradient::Tied(infinite)).expect_err("not finite");
    assert!(
        matches!(&error, Error::NonFinite { parameter, .. } if parameter == "w"),
        "{error}"
    );
    assert!(put(SampleGradient::Tied(tied)).is_ok());
}
