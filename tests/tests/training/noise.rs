//! The gradient noise scale: against its definition, against two batch sizes, and its error.

use std::f64::consts::TAU;

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch, GradientSink};
use fisher_core::model::Catalogue;
use fisher_core::sample::Sample;
use fisher_tests::backend::Backend;
use fisher_tests::models::{Sequences, Small};
use fisher_tests::subjects::Talker;
use fisher_tests::tolerance::{DEFINITION, assert_close};
use fisher_train::batch::{SampleBatch, SampleLoss};
use fisher_train::capture::{CaptureConfig, Engine, PerSample};
use fisher_train::monitor::{
    GradientMoments, HookConfig, HookSource, NoiseEstimate, NoiseScale, NoiseScaleConfig,
    SampleWeight, Schedule,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

/// `tr Σ`, `|G|²` and signal over noise, as they are defined.
fn by_definition(gradients: &[Vec<f64>]) -> [f64; 3] {
    let n = gradients.len() as f64;
    let mean: Vec<f64> = (0..gradients[0].len())
        .map(|k| gradients.iter().map(|g| g[k]).sum::<f64>() / n)
        .collect();
    let deviation = |g: &Vec<f64>| {
        g.iter()
            .zip(&mean)
            .map(|(g, m)| (g - m).powi(2))
            .sum::<f64>()
    };
    let trace = gradients.iter().map(deviation).sum::<f64>() / (n - 1.0);
    let squared = mean.iter().map(|m| m * m).sum::<f64>() - trace / n;
    [trace, squared, squared / trace]
}

fn without(gradients: &[Vec<f64>], block: usize, blocks: usize) -> Vec<Vec<f64>> {
    let rest = gradients
        .iter()
        .enumerate()
        .filter(|(i, _)| i % blocks != block);
    rest.map(|(_, g)| g.clone()).collect()
}

fn jackknife(gradients: &[Vec<f64>], blocks: usize) -> [f64; 3] {
    let left: Vec<[f64; 3]> = (0..blocks)
        .map(|block| by_definition(&without(gradients, block, blocks)))
        .collect();
    let k = blocks as f64;
    [0, 1, 2].map(|at| {
        let mean = left.iter().map(|x| x[at]).sum::<f64>() / k;
        let squares: f64 = left.iter().map(|x| (x[at] - mean).powi(2)).sum();
        ((k - 1.0) / k * squares).sqrt()
    })
}

fn values(noise: &NoiseScale) -> ([f64; 3], [f64; 3]) {
    let signal = noise.signal.expect("noise");
    let all = [noise.covariance_trace, noise.squared_gradient, signal];
    (
        all.map(|e| e.value),
        all.map(|e| e.standard_error.expect("an error")),
    )
}

/// One by one, by the loop.
fn gradients<M: SampleLoss>(model: &M, batch: &M::Batch, weight: SampleWeight) -> Vec<Vec<f64>>
where
    M::Batch: Clone,
{
    let catalogue = Catalogue::of(model).expect("a catalogue");
    let paths = catalogue.parameters().iter().map(|p| p.path());
    let per_sample = PerSample::new(model, paths).expect("a model");
    let gradient = |i: usize| {
        let sample = per_sample.gradient(batch, i).expect("a gradient").gradients;
        let tokens = sample.samples()[0].tokens() as f64;
        let factor = match weight {
            SampleWeight::TokenSum => 1.0,
            SampleWeight::TokenMean => 1.0 / tokens,
        };
        let elements = sample.iter().flat_map(|(_, g)| {
            let data = g.to_full().to_data();
            data.iter::<f64>().map(|x| factor * x).collect::<Vec<_>>()
        });
        elements.collect()
    };
    (0..batch.len()).map(gradient).collect()
}

fn check<M: SampleLoss<Batch = Sequences>>(
    model: &M,
    batches: Vec<Sequences>,
    all: &Sequences,
    engine: Engine,
    weight: SampleWeight,
) {
    let config = HookConfig::new(Schedule::new().with_at_end(true))
        .with_capture(CaptureConfig::new().with_engine(engine))
        .with_noise(Some(
            NoiseScaleConfig::new().with_weight(weight).with_blocks(5),
        ));
    let source = HookSource::Probes(vec![("task".into(), batches)]);
    let hook = config.init(model, source).expect("a hook");
    hook.finish(model).expect("a capture");
    let history = hook.history();
    let reading = &history.readings()[0];
    assert_eq!(reading.noise, reading.tasks["task"].noise);
    let (found, errors) = values(&reading.noise.expect("a noise scale"));
    compare(&found, &errors, &gradients(model, all, weight));
}

fn compare(found: &[f64], errors: &[f64], gradients: &[Vec<f64>]) {
    assert_close("noise", found, &by_definition(gradients), DEFINITION, 0.0);
    assert_close(
        "error",
        errors,
        &jackknife(gradients, 5),
        10.0 * DEFINITION,
        0.0,
    );
}

#[rstest]
fn it_is_as_defined(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(SampleWeight::TokenSum, SampleWeight::TokenMean)] weight: SampleWeight,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let all = Sequences::made_up(12, 5, &device);
    let small = Small::init(&device);
    check(&small, all.batches(5), &all, Engine::Loop, weight);
    let talker = Talker::init(&device);
    check(&talker, all.batches(5), &all, Engine::Trace, weight);
}

/// Gradients of a known mean and covariance.
struct Known {
    mean: Vec<f64>,
    deviations: Vec<f64>,
    /// Noise of a sample times a factor of its own: Student's t with three degrees of freedom.
    heavy: bool,
    rng: StdRng,
}

impl Known {
    fn new(seed: u64) -> Self {
        Self {
            mean: vec![0.3; 20],
            deviations: (0..20).map(|k| 1.0 + f64::from(k) / 10.0).collect(),
            heavy: false,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    fn scale(&self) -> f64 {
        let square = |all: &[f64]| all.iter().map(|x| x * x).sum::<f64>();
        square(&self.deviations) / square(&self.mean)
    }

    fn normal(&mut self) -> f64 {
        let [u, v]: [f64; 2] = [self.rng.random(), self.rng.random()];
        (-2.0 * (1.0 - u).ln()).sqrt() * (TAU * v).cos()
    }

    fn draw(&mut self) -> Vec<f64> {
        let mut normals: Vec<f64> = (0..self.mean.len()).map(|_| self.normal()).collect();
        if self.heavy {
            // χ² with three degrees of freedom is 1/(3 − 2) on average, inverted.
            let chi: f64 = (0..3).map(|_| self.normal().powi(2)).sum();
            normals.iter_mut().for_each(|x| *x /= chi.sqrt());
        }
        let each = self.mean.iter().zip(&self.deviations).zip(normals);
        each.map(|((m, d), x)| m + d * x).collect()
    }

    /// `|ḡ|²` of a batch.
    fn squared_mean(&mut self, size: usize) -> f64 {
        let mut sum = vec![0.0; self.mean.len()];
        for _ in 0..size {
            let gradient = self.draw();
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
        sum.iter().map(|s| (s / size as f64).powi(2)).sum()
    }

    /// The noise scale from `count` samples, in batches of 32.
    fn estimate(&mut self, count: usize) -> NoiseScale {
        let mut moments: GradientMoments = NoiseScaleConfig::new().init().expect("moments");
        for start in (0..count).step_by(32) {
            let sample = |i| Sample::new(format!("{i}"), 1).expect("a sample");
            let samples: Vec<Sample> = (start..count.min(start + 32)).map(sample).collect();
            let rows: Vec<f64> = samples.iter().flat_map(|_| self.draw()).collect();
            let data = TensorData::new(rows, [samples.len(), self.mean.len()]);
            let gradient = Tensor::<2>::from_data(data, &Device::flex());
            let mut batch = GradientBatch::new(samples);
            batch.insert("weight", Gradient::token_sum(gradient));
            moments.push_batch("task", batch).expect("gradients");
        }
        moments.read().expect("sums").expect("samples")
    }
}

/// McCandlish et al. 2018, appendix A.1: from mean gradients of small and of large batches. Gives
/// the scale and its standard error.
fn by_two_batch_sizes(known: &mut Known) -> (f64, f64) {
    let (small, big, rounds) = (4, 64, 400);
    let [b, s] = [big as f64, small as f64];
    let mut of_rounds = Vec::new();
    for _ in 0..rounds {
        let (of_small, of_big) = (known.squared_mean(small), known.squared_mean(big));
        let squared = (b * of_big - s * of_small) / (b - s);
        let trace = (of_small - of_big) / (1.0 / s - 1.0 / b);
        of_rounds.push([trace, squared]);
    }
    let sum = |left: usize| {
        let rest = of_rounds.iter().enumerate().filter(|(i, _)| *i != left);
        rest.fold([0.0, 0.0], |sum, (_, x)| [sum[0] + x[0], sum[1] + x[1]])
    };
    let ratio = |[trace, squared]: [f64; 2]| trace / squared;
    let n = of_rounds.len() as f64;
    let left: Vec<f64> = (0..of_rounds.len()).map(|left| ratio(sum(left))).collect();
    let mean = left.iter().sum::<f64>() / n;
    let squares: f64 = left.iter().map(|x| (x - mean).powi(2)).sum();
    (ratio(sum(usize::MAX)), ((n - 1.0) / n * squares).sqrt())
}

#[test]
fn two_batch_sizes_agree_within_the_error_bars() {
    let mut known = Known::new(1);
    let truth = known.scale();
    let noise = known.estimate(2048);
    let signal = noise.signal.expect("noise");
    let scale = NoiseEstimate {
        value: signal.value.recip(),
        standard_error: signal.standard_error.map(|e| e / signal.value.powi(2)),
    };
    let error = scale.standard_error.expect("an error");
    assert!(
        noise
            .scale
            .is_none_or(|given| (given.value - scale.value).abs() < 1e-9 * truth)
    );
    let (other, other_error) = by_two_batch_sizes(&mut known);
    println!(
        "noise scale {truth:.2}: {:.2} ± {error:.2} from samples, {other:.2} ± {other_error:.2} \
         from batches of 4 and 64",
        scale.value
    );
    assert!((scale.value - truth).abs() < 2.5 * error);
    assert!((other - truth).abs() < 2.5 * other_error);
    assert!((scale.value - other).abs() < 2.5 * error.hypot(other_error));
    assert!(error < 0.2 * truth && other_error < 0.2 * truth);
    let interval = noise.interval.expect("an interval");
    let at_most = interval.at_most.expect("an upper end");
    assert!(interval.at_least < scale.value && scale.value < at_most);
    assert_eq!(
        interval.to_string(),
        format!("{:.0} to {at_most:.0}", interval.at_least)
    );
}

/// 95 % intervals hold the truth, however small the gradient is beside its noise, and with tails that have no fourth moment.
#[rstest]
fn intervals_cover(
    #[values(1.0, 0.1, 0.01)] size: f64,
    #[values(false, true)] heavy: bool,
    #[values(64, 256)] samples: usize,
) {
    let mut known = Known::new(2);
    known.mean.iter_mut().for_each(|mean| *mean *= size);
    known.heavy = heavy;
    let (truth, repeats) = (known.scale(), 200);
    let (mut covered, mut unbounded, mut told) = (0, 0, 0);
    for _ in 0..repeats {
        let noise = known.estimate(samples);
        let interval = noise.interval.expect("an interval");
        let below = interval.at_most.is_none_or(|at_most| truth <= at_most);
        covered += usize::from(below && interval.at_least <= truth);
        unbounded += usize::from(interval.at_most.is_none());
        told += usize::from(noise.scale.is_some());
    }
    println!(
        "{covered} of {repeats} intervals hold {truth:.0}; {unbounded} have no upper end, {told} give ±"
    );
    assert!(covered * 100 >= 90 * repeats, "{covered} of {repeats}");
    // Nothing is said of a gradient that cannot be seen.
    assert!(size > 0.05 || unbounded * 10 >= 8 * repeats && told * 20 <= repeats);
}

#[test]
fn what_cannot_be_known_is_absent() {
    assert!(NoiseScaleConfig::new().with_blocks(1).init().is_err());
    let empty = NoiseScaleConfig::new().init().expect("moments");
    assert!(empty.read().expect("sums").is_none());
    // Without one of two samples there is no variance.
    assert!(Known::new(3).estimate(2).interval.is_none());
    // Two opposite gradients: all is noise.
    let mut moments = NoiseScaleConfig::new().init().expect("moments");
    let samples = ["a", "b"].map(|id| Sample::new(id, 1).expect("a sample"));
    let mut batch = GradientBatch::new(samples.to_vec());
    let rows = Tensor::<2>::from_floats([[1.0, 2.0], [-1.0, -2.0]], &Device::flex());
    batch.insert("weight", Gradient::token_sum(rows));
    moments.push_batch("task", batch).expect("gradients");
    let noise = moments.read().expect("sums").expect("samples");
    assert_eq!(noise.covariance_trace.value, 10.0);
    assert_eq!(noise.squared_gradient.value, -5.0);
    assert_eq!(noise.signal.expect("noise").value, -0.5);
    assert_eq!((noise.interval, noise.scale), (None, None));
}

/// Over the samples of two tasks it is that of all of them, and no task's own.
#[test]
fn tasks_are_pooled() {
    let device = Device::flex().autodiff();
    let all = Sequences::made_up(12, 5, &device);
    let model = Small::init(&device);
    let task = |name: &str, range| (name.to_owned(), all.slice(range).batches(5));
    let source = HookSource::Probes(vec![task("one", 0..5), task("two", 5..12)]);
    let config = HookConfig::new(Schedule::new().with_at_end(true))
        .with_noise(Some(NoiseScaleConfig::new().with_blocks(5)));
    let hook = config.init(&model, source);
    let hook = hook.expect("a hook");
    hook.finish(&model).expect("a capture");
    let history = hook.history();
    let reading = &history.readings()[0];
    let (found, errors) = values(&reading.noise.expect("a noise scale"));
    // Five samples of the one task leave the second task's blocks where they were.
    compare(
        &found,
        &errors,
        &gradients(&model, &all, SampleWeight::TokenSum),
    );
    assert_ne!(reading.noise, reading.tasks["two"].noise);
}

fn moments_of(rows: Vec<f32>, shape: [usize; 2], device: &Device) -> NoiseScale {
    let samples = (0..shape[0]).map(|i| Sample::new(format!("{i}"), 1).expect("a sample"));
    let gradient = Tensor::<2>::from_data(TensorData::new(rows, shape), device);
    let mut batch = GradientBatch::new(samples.collect());
    batch.insert("weight", Gradient::token_sum(gradient));
    let mut moments = NoiseScaleConfig::new().init().expect("moments");
    moments.push_batch("task", batch).expect("gradients");
    moments.read().expect("sums").expect("samples")
}

/// Gradients whose squares float32 does not have, small and large, have the noise scale of others.
#[rstest]
fn gradients_of_any_size_have_a_noise_scale(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1e-26, 1e-32, 1e26)] size: f64,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let rows = |size: f64| {
        let mut rng = StdRng::seed_from_u64(5);
        let row = (0..8 * 6).map(|_| (size * (rng.random::<f64>() - 0.2)) as f32);
        row.collect::<Vec<f32>>()
    };
    let (found, errors) = values(&moments_of(rows(size), [8, 6], &device));
    let (expected, of_expected) = values(&moments_of(rows(1.0), [8, 6], &device));
    let scaled =
        |[trace, squared, signal]: [f64; 3]| [trace / size / size, squared / size / size, signal];
    assert!(
        found[0] > 0.0,
        "a covariance has no negative trace: {found:?}"
    );
    assert_close("noise", &scaled(found), &expected, DEFINITION, 0.0);
    let errors = scaled(errors);
    assert_close("error", &errors, &of_expected, 10.0 * DEFINITION, 0.0);
}

/// Equal gradients are no noise, to the last digit, and nothing is nothing.
#[rstest]
fn equal_gradients_have_no_noise(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for n in [2usize, 3, 7, 23] {
        let row = [0.1f32, -0.7, 1.0 / 3.0];
        let noise = moments_of(row.repeat(n), [n, 3], &device);
        let trace = noise.covariance_trace.value;
        assert!((0.0..1e-5).contains(&trace), "{n} samples: {trace:e}");
        // Nothing, or what rounding leaves beside the gradient.
        let signal = noise.signal.map_or(f64::INFINITY, |signal| signal.value);
        assert!(signal > 1e5, "{n} samples: {signal:e}");
        let nothing = moments_of(vec![0.0; 3 * n], [n, 3], &device);
        assert_eq!(nothing.covariance_trace.value, 0.0);
        assert_eq!((nothing.signal, nothing.scale), (None, None));
    }
}

/// Copies of every sample, a cluster each, have the interval of the samples alone or a wider one.
#[test]
fn copies_in_clusters_do_not_narrow_the_interval() {
    let mut rng = StdRng::seed_from_u64(11);
    let rows: Vec<f32> = (0..64 * 3).map(|_| rng.random::<f32>() + 0.3).collect();
    let read = |copies: usize, clustered: bool| {
        let n = 64 * copies;
        let sample = |i: usize| {
            let sample = Sample::new(format!("{i}"), 1).expect("a sample");
            match clustered {
                true => sample.with_cluster(format!("{}", i / copies)),
                false => sample,
            }
        };
        let copied = rows.chunks(3).flat_map(|row| row.repeat(copies));
        let data = TensorData::new(copied.collect::<Vec<f32>>(), [n, 3]);
        let gradient = Tensor::<2>::from_data(data, &Device::flex());
        let mut batch = GradientBatch::new((0..n).map(sample).collect());
        batch.insert("weight", Gradient::token_sum(gradient));
        let mut moments = NoiseScaleConfig::new().init().expect("moments");
        moments.push_batch("task", batch).expect("gradients");
        let noise = moments.read().expect("sums").expect("samples");
        let error = noise.signal.expect("noise").standard_error;
        error.expect("blocks")
    };
    let (alone, clustered, apart) = (read(1, true), read(4, true), read(4, false));
    assert_eq!(alone, read(1, false));
    assert!(clustered > 0.9 * alone, "{clustered} {alone}");
    // Pieces dealt to different blocks hide what they share.
    assert!(apart < clustered, "{apart} {clustered}");
}

#[test]
fn what_is_not_finite_is_named_and_changes_nothing() {
    let mut moments = NoiseScaleConfig::new().init().expect("moments");
    let batch = |values: [[f32; 2]; 2]| {
        let samples = ["a", "b"].map(|id| Sample::new(id, 1).expect("a sample"));
        let mut batch = GradientBatch::new(samples.to_vec());
        let rows = Tensor::<2>::from_floats(values, &Device::flex());
        batch.insert("weight", Gradient::token_sum(rows));
        batch
    };
    let pushed = moments.push_batch("task", batch([[1.0, 2.0], [3.0, 5.0]]));
    pushed.expect("gradients");
    let before = moments.read().expect("sums");
    for wrong in [f32::NAN, f32::INFINITY] {
        let error = moments.push_batch("task", batch([[1.0, 2.0], [3.0, wrong]]));
        let error = error.expect_err("not finite").to_string();
        assert!(
            error.contains("`b`") && error.contains("`weight`"),
            "{error}"
        );
    }
    assert_eq!(moments.read().expect("sums"), before);
}
