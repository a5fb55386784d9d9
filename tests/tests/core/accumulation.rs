//! A million samples, and the laws of splitting, merging and ordering.

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::moments::{IntervalMethod, Welford};
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{ACCUMULATION, REORDERED, assert_close};
use proptest::prelude::*;
use rstest::rstest;

/// Four elements with what accumulation has trouble with: a mean far above the deviation, six
/// orders of magnitude between samples, a first sample a million times the others, and values near
/// the smallest normal float32.
const ELEMENTS: usize = 4;

fn of_device(device: &Device) -> Welford {
    Welford::new(ELEMENTS, device)
}

fn compensated(device: &Device) -> Welford {
    Welford::compensated(ELEMENTS, device)
}

fn sample(k: u64) -> [f32; ELEMENTS] {
    // A splitmix step: well mixed, the same on every machine.
    let mut z = k.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let uniform = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
    [
        1000.0 + uniform,
        10f32.powf(6.0 * uniform - 6.0),
        if k == 0 { 1e6 } else { uniform },
        1e-30 * (1.0 + uniform),
    ]
}

fn tensor(samples: &[[f32; ELEMENTS]], device: &Device) -> Tensor<2> {
    let data = TensorData::new(samples.concat(), [samples.len(), ELEMENTS]);
    Tensor::from_data(data, device)
}

/// Mean and variance in two passes of float64.
fn two_pass(samples: impl Iterator<Item = [f32; ELEMENTS]> + Clone) -> [Vec<f64>; 2] {
    let n = samples.clone().count() as f64;
    let mut mean = vec![0.0; ELEMENTS];
    for x in samples.clone() {
        mean.iter_mut().zip(x).for_each(|(m, x)| *m += f64::from(x));
    }
    mean.iter_mut().for_each(|m| *m /= n);
    let mut variance = vec![0.0; ELEMENTS];
    for x in samples {
        let pairs = variance.iter_mut().zip(&mean).zip(x);
        pairs.for_each(|((v, m), x)| *v += (f64::from(x) - m).powi(2));
    }
    variance.iter_mut().for_each(|v| *v /= n - 1.0);
    [mean, variance]
}

fn assert_moments(welford: &Welford, [mean, variance]: &[Vec<f64>; 2], relative: f64) {
    let read = welford.read().expect("values");
    assert_close("mean", &read.mean.expect("a mean"), mean, relative, 0.0);
    // The variance of a float32 near 1e-60 is below what float32 holds.
    let held = |v: &[f64]| v[..3].to_vec();
    let found = held(&read.variance.expect("a variance"));
    assert_close("variance", &found, &held(variance), relative, 0.0);
}

#[rstest]
fn a_million_samples(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(of_device, compensated)] empty: fn(&Device) -> Welford,
) {
    const SAMPLES: u64 = 1_000_000;
    let Some(device) = backend.device() else {
        return;
    };
    let expected = two_pass((0..SAMPLES).map(sample));
    // Two sizes, so that the error is seen not to grow with the number of updates.
    for batch in [500, 5000] {
        let mut welford = empty(&device);
        for start in (0..SAMPLES).step_by(batch) {
            let samples: Vec<_> = (start..start + batch as u64).map(sample).collect();
            welford.push_batch(tensor(&samples, &device));
        }
        assert_eq!(welford.count(), SAMPLES);
        assert_moments(&welford, &expected, ACCUMULATION);
    }
}

#[rstest]
fn two_hundred_thousand_samples_one_by_one(
    #[values(of_device, compensated)] empty: fn(&Device) -> Welford,
) {
    let device = Backend::Flex.device().expect("a CPU");
    let samples = (0..200_000).map(sample);
    let mut welford = empty(&device);
    for x in samples.clone() {
        welford.push(Tensor::from_floats(x, &device));
    }
    assert_moments(&welford, &two_pass(samples), ACCUMULATION);
}

/// Close to the end of float32's range.
#[rstest]
fn a_first_mean_is_of_any_size(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(of_device, compensated)] empty: fn(&Device) -> Welford,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let mut welford = empty(&device);
    let large = [1e35f32, 3e38, 1.0, 0.0];
    welford.push_batch(tensor(&[large], &device));
    let mean = welford.read_mean().expect("values").expect("a sample");
    assert_eq!(mean, large.map(f64::from));
}

#[rstest]
fn undefined_is_none(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    let mut welford = Welford::new(2, &device);
    assert!(welford.mean().is_none() && welford.read().expect("values").mean.is_none());
    welford.push(Tensor::from_floats([3.0, -1.0], &device));
    let read = welford.read().expect("values");
    assert_eq!(read.mean, Some(vec![3.0, -1.0]));
    assert!(read.variance.is_none() && read.standard_error.is_none());
    assert!(welford.variance().is_none() && welford.standard_error().is_none());
    assert!(read.effective.is_none());
    let intervals = read.confidence_intervals(0.95, IntervalMethod::StudentT);
    assert_eq!(intervals.expect("a level"), [None, None]);
    welford.push(Tensor::from_floats([5.0, -1.0], &device));
    let read = welford.read().expect("values");
    // M2 = 2, n = 2: variance 2 / 1, standard error √(2 / 2).
    assert_eq!(read.variance, Some(vec![2.0, 0.0]));
    assert_eq!(read.standard_error, Some(vec![1.0, 0.0]));
    let error = welford.standard_error().expect("two samples");
    assert_eq!(
        error.to_data().iter::<f64>().collect::<Vec<_>>(),
        [1.0, 0.0]
    );
    let intervals = read.confidence_intervals(0.95, IntervalMethod::StudentT);
    let interval = intervals.expect("a level")[0].expect("two samples");
    assert!((interval.upper - (4.0 + 12.706_204_736)).abs() < 1e-6);
    // (3 + 5)² / (3² + 5²)
    let effective = read.effective.expect("two samples");
    assert!((effective[0] - 64.0 / 34.0).abs() < 1e-12);
}

/// Accumulate `samples` in the pieces that `cuts` makes, each in batches of `size`, merged.
/// Float64 and compensated accumulators alternate.
fn in_pieces(samples: &[[f32; ELEMENTS]], cuts: &[usize], size: usize, device: &Device) -> Welford {
    let kinds = [of_device, compensated].into_iter().cycle();
    let mut all = if size.is_multiple_of(2) {
        of_device(device)
    } else {
        compensated(device)
    };
    let mut start = 0;
    for (end, empty) in cuts.iter().copied().chain([samples.len()]).zip(kinds) {
        let mut piece = empty(device);
        for batch in samples[start..end].chunks(size) {
            piece.push_batch(tensor(batch, device));
        }
        all.merge(&piece);
        start = end;
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn split_merge_order_and_batch_size_make_no_difference(
        seed in prop::sample::select(vec![0u64, 0, 17, 4242, 1_000_000]),
        count in 2usize..40,
        mut cuts in prop::collection::vec(0.0f64..1.0, 0..4),
        size in 1usize..9,
        backend in prop::sample::select(vec![Backend::Flex, Backend::Ndarray, Backend::Wgpu]),
    ) {
        let Some(device) = backend.device() else { return Ok(()); };
        let mut samples: Vec<_> = (0..count as u64).map(|k| sample(seed + k)).collect();
        cuts.sort_by(f64::total_cmp);
        let cuts: Vec<usize> = cuts.iter().map(|c| (c * count as f64) as usize).collect();
        let expected = two_pass(samples.clone().into_iter());
        assert_moments(&in_pieces(&samples, &[], count, &device), &expected, REORDERED);
        assert_moments(&in_pieces(&samples, &cuts, size, &device), &expected, REORDERED);
        samples.reverse();
        let reversed = in_pieces(&samples, &cuts, size, &device);
        assert_moments(&reversed, &expected, REORDERED);
        let variance = reversed.read().expect("values").variance.expect("two samples");
        prop_assert!(variance.iter().all(|&v| v >= 0.0));
    }
}

/// A step whose square is out of float64's range, and whose share in M2 is not.
#[test]
fn a_large_step_does_not_overflow_before_m2_does() {
    let device = Device::flex();
    let f64s = (&device, burn::tensor::DType::F64);
    let large = 1.5e154f64;
    let mut merged = Welford::new(1, &device);
    let mut other = merged.clone();
    merged.push(Tensor::<1>::from_data(
        TensorData::new(vec![0.0f64], [1]),
        f64s,
    ));
    other.push(Tensor::<1>::from_data(
        TensorData::new(vec![large], [1]),
        f64s,
    ));
    merged.merge(&other);
    let variance = merged
        .read()
        .expect("values")
        .variance
        .expect("two samples");
    let expected = large * (0.5 * large);
    assert!((variance[0] / expected - 1.0).abs() < 1e-12, "{variance:?}");
}
