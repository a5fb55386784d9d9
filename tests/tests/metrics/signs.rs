//! The sign of a cell's mean score: golden numbers, and what must not be taken for a conflict.

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::{AttentionConfig, Block, HeadLayout};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::damping::Ridge;
use fisher_metrics::interference::{
    InterferenceConfig, InterferenceReport, Pool, Significance, Variant, Verdict,
};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

use crate::stored;

/// Two heads of a layer this wide.
const WIDTH: usize = 4;
/// Q, K, V and O.
const ELEMENTS: usize = 4 * WIDTH * WIDTH;
const BLOCKS: [Block; 4] = [Block::Q, Block::K, Block::V, Block::O];

type Task = Vec<(Sample, Vec<f64>)>;

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

fn config(variant: Variant, pool: Pool) -> InterferenceConfig {
    let config = InterferenceConfig::new().with_variant(variant);
    config.with_pool(pool).with_progress(false)
}

fn run(config: &InterferenceConfig, store: &GradientStore, tasks: [&str; 2]) -> InterferenceReport {
    let interference = config.init().expect("settings");
    interference.forward(store, tasks).expect("a report")
}

fn tests(report: &InterferenceReport) -> Vec<Significance> {
    let tests = report.slices.iter().filter_map(|s| s.significance);
    tests.collect()
}

fn verdicts(report: &InterferenceReport, of: Verdict) -> usize {
    let verdicts = tests(report).into_iter().map(|t| t.verdict);
    verdicts.filter(|verdict| *verdict == of).count()
}

/// A store of tasks `a` and `b`.
fn store(tasks: &[Task; 2]) -> GradientStore {
    let matrix = |name: &str| {
        let path = format!("attention.{name}.weight");
        Parameter::new(path, [WIDTH, WIDTH], Role::Matrix, Orientation::InputOutput)
    };
    let catalogue = ["query", "key", "value", "output"].map(matrix).to_vec();
    let catalogue = Catalogue::new(catalogue).expect("parameters");
    let heads = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("a layout");
    let store = GradientStoreConfig::new(1 << 24).init_for(&catalogue, "made".into());
    let mut store = store.expect("a store").with_heads(heads);
    for (name, task) in ["a", "b"].into_iter().zip(tasks) {
        let samples: Vec<Sample> = task.iter().map(|(sample, _)| sample.clone()).collect();
        let mut batch = GradientBatch::new(samples);
        for (p, parameter) in catalogue.parameters().iter().enumerate() {
            let n = WIDTH * WIDTH;
            let rows = task.iter().flat_map(|(_, g)| &g[p * n..(p + 1) * n]);
            let rows: Vec<f32> = rows.map(|g| *g as f32).collect();
            let data = TensorData::new(rows, [task.len(), n]);
            let tensor = Tensor::<2>::from_data(data, &flex());
            batch.insert(parameter.path(), Gradient::token_sum(tensor));
        }
        store.push(name, &batch).expect("gradients");
    }
    store.with_device(&flex())
}

/// Draws from a distribution of mean 0.
#[derive(Debug, Clone, Copy)]
enum Noise {
    Normal,
    /// Student's with three degrees of freedom.
    Heavy,
    /// Exponential less one.
    Skewed,
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let [u, v]: [f64; 2] = [rng.random(), rng.random()];
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

impl Noise {
    fn draw(self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Self::Normal => normal(rng),
            Self::Heavy => {
                let chi: f64 = (0..3).map(|_| normal(rng).powi(2)).sum();
                normal(rng) / (chi / 3.0).sqrt()
            }
            Self::Skewed => -(1.0 - rng.random::<f64>()).ln() - 1.0,
        }
    }
}

/// Samples `T μ + √T noise`, as gradients of losses of `tokens` tokens are.
fn task(
    rng: &mut ChaCha8Rng,
    count: usize,
    tokens: u64,
    noise: Noise,
    mean: impl Fn(usize) -> f64,
) -> Task {
    let t = tokens as f64;
    let sample = |i: usize| {
        let values = (0..ELEMENTS).map(|e| t * mean(e) + t.sqrt() * noise.draw(rng));
        let values = values.collect();
        (Sample::new(format!("{i}"), tokens).expect("tokens"), values)
    };
    (0..count).map(sample).collect()
}

fn scaled(task: &Task, factor: f64) -> Task {
    let scale = |g: &Vec<f64>| g.iter().map(|g| factor * g).collect();
    let samples = task.iter().map(|(sample, g)| (sample.clone(), scale(g)));
    samples.collect()
}

#[rstest]
fn golden_signs_agree(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Variant::Signed, Variant::Full)] variant: Variant,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &device);
        let name = serde_json::to_value(variant).expect("JSON");
        let expected = golden.topic("interference")[name.as_str().expect("a name")].clone();
        let report = run(&config(variant, Pool::A), &store, TASKS);
        // Shared key/value slices are tested once.
        let cells = expected.as_object().expect("cells");
        assert_eq!(report.slices.len(), cells.len());
        for slice in &report.slices {
            let unit = slice.heads[0] / slice.heads.len();
            let key = format!("{}.{}.{unit}", slice.block, slice.layer);
            let number = |what: &str| expected[&*key][what].as_f64().expect("a number");
            let found = slice.significance.expect("a test");
            let test = found.test;
            assert_eq!(test.degrees as f64, number("degrees"));
            let end = |i: usize| expected[&*key]["interval"][i].as_f64().expect("a number");
            for (what, found, expected, floor) in [
                ("mean", test.mean, number("mean"), number("standard_error")),
                ("error", test.standard_error, number("standard_error"), 0.0),
                ("t", test.t, number("t"), 1.0),
                ("skewness", test.skewness, number("skewness"), 1.0),
                ("p_low", test.p_low, number("p_low"), 0.1),
                ("p_high", test.p_high, number("p_high"), 0.1),
                ("p", found.p, number("p"), 0.1),
                ("q", found.q, number("q"), 0.1),
                ("level", test.level, number("level"), 0.0),
                ("lower", test.interval[0], end(0), number("standard_error")),
                ("upper", test.interval[1], end(1), number("standard_error")),
            ] {
                let off = (found - expected).abs();
                // Signs cancel in means, and errors of scores come to p by the size of t.
                let bound = 20.0 * GOLDEN * expected.abs().max(floor);
                assert!(off <= bound, "{case} {key} {what}: {found} and {expected}");
            }
            let verdict = serde_json::to_value(found.verdict).expect("JSON");
            assert_eq!(verdict, expected[&*key]["verdict"]);
            // Maps show what was tested.
            let shown = report.map(slice.block)[slice.layer][slice.heads[0]];
            assert_eq!(shown, test.mean);
        }
    }
}

/// Tasks that agree never conflict, whatever their losses weigh and however long their samples are.
#[rstest]
fn longer_samples_and_larger_losses_are_no_conflict(
    #[values(Variant::Signed, Variant::Full)] variant: Variant,
    #[values(Pool::A, Pool::B, Pool::Pooled)] pool: Pool,
    #[values(1, 2, 3)] seed: u64,
    #[values((12, 20, 1.0), (12, 12, 2.0), (20, 5, 30.0))] unequal: (u64, u64, f64),
    #[values(Noise::Normal, Noise::Heavy)] noise: Noise,
) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let (first, second, loss) = unequal;
    let mean = |e: usize| 0.3 * (e as f64).sin();
    let a = task(rng, 16, first, noise, mean);
    let b = task(rng, 16, second, noise, mean);
    let report = run(
        &config(variant, pool),
        &store(&[a, scaled(&b, loss)]),
        ["a", "b"],
    );
    assert_eq!(verdicts(&report, Verdict::Conflict), 0, "{report}");
    if let (Variant::Signed, Noise::Normal) = (variant, noise) {
        assert!(verdicts(&report, Verdict::Synergy) >= 4, "{report}");
    }
}

/// To the last digit of what float32 keeps: nothing but scale is different.
#[rstest]
fn the_test_does_not_know_a_losses_scale(
    #[values(Variant::Signed, Variant::Full)] variant: Variant,
    #[values(Pool::A, Pool::B)] pool: Pool,
    #[values(2.0, 1e-3)] factor: f64,
    #[values(0, 1)] which: usize,
) {
    let rng = &mut ChaCha8Rng::seed_from_u64(5);
    let mean = |e: usize| 0.2 * (e as f64).sin();
    let mut tasks = [
        task(rng, 12, 7, Noise::Normal, mean),
        task(rng, 9, 4, Noise::Heavy, mean),
    ];
    let relative = Ridge::new().with_epsilon(1e-30).with_ridge(1e-30);
    let config = config(variant, pool).with_ridge(relative);
    let once = tests(&run(&config, &store(&tasks), ["a", "b"]));
    tasks[which] = scaled(&tasks[which], factor);
    let other = tests(&run(&config, &store(&tasks), ["a", "b"]));
    for (x, y) in once.iter().zip(&other) {
        let of = |s: &Significance| [s.test.t, s.p, s.q];
        assert_close("t, p and q", &of(x), &of(y), 1e-4, 1.0);
        assert_eq!(x.verdict, y.verdict);
    }
    assert_eq!(once.len(), 8);
}

/// One head of Q pulls apart, all others together or each its own way.
#[rstest]
#[case(Noise::Normal)]
#[case(Noise::Heavy)]
#[case(Noise::Skewed)]
fn a_planted_conflict_is_found_where_it_is(#[case] noise: Noise, #[values(1, 2)] seed: u64) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    // Columns 0 and 1 of Q are its head 0.
    let planted = |e: usize| e < WIDTH * WIDTH && e % WIDTH < 2;
    let mean = |sign: f64| move |e: usize| if planted(e) { sign } else { 0.0 };
    let a = task(rng, 24, 3, noise, mean(1.0));
    let b = task(rng, 20, 5, noise, mean(-1.0));
    for variant in [Variant::Signed, Variant::Full] {
        let report = run(
            &config(variant, Pool::Pooled),
            &store(&[a.clone(), b.clone()]),
            ["a", "b"],
        );
        for block in BLOCKS {
            for head in 0..2 {
                let slice = report.slice(block, 0, head).expect("a slice");
                let found = slice.significance.expect("a test");
                let expected = match (block, head) {
                    (Block::Q, 0) => Verdict::Conflict,
                    _ => Verdict::Unresolved,
                };
                assert_eq!(found.verdict, expected, "{report}");
                let [low, high] = found.test.interval;
                assert_eq!(low > 0.0 || high < 0.0, found.resolved());
            }
        }
        let map = &report.picture().maps[0];
        assert_eq!(map.marked, [[true, false]]);
        let text = report.to_string();
        assert!(
            text.contains("below 0 (conflict) in 1, above 0 (synergy) in 0"),
            "{text}"
        );
    }
}

/// Tasks that have nothing to do with each other: any cell at all is resolved in hardly more than 5 %
/// of runs, of which 60 are too few to see more than the worst. Of Î taken as given skewed samples made
/// a quarter of them.
#[rstest]
fn orthogonal_tasks_are_not_resolved(
    #[values(Noise::Normal, Noise::Heavy, Noise::Skewed)] noise: Noise,
    #[values((16, 16), (8, 24))] counts: (usize, usize),
    #[values(0.0, 1.0)] size: f64,
) {
    let mut wrong = 0;
    for seed in 0..60 {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let even = |of: usize| move |e: usize| if e % 2 == of { size } else { 0.0 };
        let a = task(rng, counts.0, 12, noise, even(0));
        let b = task(rng, counts.1, 20, noise, even(1));
        let report = run(
            &config(Variant::Signed, Pool::A),
            &store(&[a, scaled(&b, 2.0)]),
            ["a", "b"],
        );
        wrong += usize::from(verdicts(&report, Verdict::Unresolved) < 8);
    }
    // More than 8 of 60 would come about once in a thousand times at 5 %.
    assert!(wrong <= 8, "{wrong} of 60");
}

/// Four copies of every sample, named as one cluster each, are no more samples than one of each.
#[test]
fn copies_in_clusters_say_nothing_new() {
    let rng = &mut ChaCha8Rng::seed_from_u64(11);
    let mean = |e: usize| 0.2 * (e as f64).cos();
    let tasks = [0, 1].map(|_| task(rng, 8, 3, Noise::Normal, mean));
    let copies = |named: bool| {
        tasks.each_ref().map(|task| -> Task {
            let copy = |(k, (sample, g)): (usize, &(Sample, Vec<f64>))| {
                let copy = Sample::new(format!("{} {k}", sample.id()), 3).expect("tokens");
                let copy = match named {
                    true => copy.with_cluster(sample.id()),
                    false => copy,
                };
                (copy, g.clone())
            };
            (0..4)
                .flat_map(|k| task.iter().map(move |sample| (k, sample)))
                .map(copy)
                .collect()
        })
    };
    let config = config(Variant::Signed, Pool::A);
    let found = |tasks: &[Task; 2]| tests(&run(&config, &store(tasks), ["a", "b"]));
    let once = found(&tasks);
    let (clustered, not) = (found(&copies(true)), found(&copies(false)));
    for ((once, clustered), not) in once.iter().zip(&clustered).zip(&not) {
        let of = |s: &Significance| [s.test.t, s.test.skewness, s.p];
        assert_close("t, skewness and p", &of(clustered), &of(once), 1e-4, 1.0);
        assert!(not.test.standard_error < 0.6 * once.test.standard_error);
    }
}

/// Scores without a sign have none to test, and nothing is marked.
#[rstest]
#[case(Variant::Unsigned)]
#[case(Variant::Symmetric)]
#[case(Variant::Natural)]
fn unsigned_scores_have_no_sign(#[case] variant: Variant) {
    let rng = &mut ChaCha8Rng::seed_from_u64(2);
    let tasks = [0, 1].map(|_| task(rng, 8, 3, Noise::Normal, |_| 1.0));
    let report = run(&config(variant, Pool::B), &store(&tasks), ["a", "b"]);
    assert!(tests(&report).is_empty());
    assert_eq!(report.tested(), None);
    let picture = report.picture();
    assert!(
        picture
            .maps
            .iter()
            .flat_map(|m| m.marked.iter().flatten())
            .all(|m| !m)
    );
    assert!(!picture.note.contains("Framed"));
}

/// One sample, one cluster, or no difference between samples: no test, and a word of it.
#[test]
fn what_cannot_be_tested_is_not() {
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    let many = task(rng, 5, 3, Noise::Normal, |_| 1.0);
    let one = vec![many[0].clone()];
    let cluster: Task = many
        .iter()
        .map(|(sample, g)| (sample.clone().with_cluster("one"), g.clone()))
        .collect();
    let config = config(Variant::Signed, Pool::B);
    for few in [one, cluster] {
        let report = run(&config, &store(&[few, many.clone()]), ["a", "b"]);
        assert!(tests(&report).is_empty());
        let says = |w: &String| w.contains("no sign is tested") && w.contains("a has one");
        assert!(report.warnings.iter().any(says), "{:?}", report.warnings);
    }
    let silent = scaled(&many, 0.0);
    let report = run(&config, &store(&[silent, many.clone()]), ["a", "b"]);
    assert!(tests(&report).is_empty());
    assert!(config.with_alpha(0.0).init().is_err());
}

/// F of 2e-15 under an ε of 1e-12 without λ: ε stands for all of it, and λ is small beside F.
#[test]
fn a_floor_under_all_of_f_is_said() {
    let rng = &mut ChaCha8Rng::seed_from_u64(4);
    let tasks = [0, 1].map(|_| scaled(&task(rng, 8, 1, Noise::Normal, |_| 0.0), 4.5e-8));
    let config = config(Variant::Signed, Pool::A).with_ridge(Ridge::new().with_ridge(0.0));
    let report = run(&config, &store(&tasks), ["a", "b"]);
    let health = report.slices[0].health.expect("samples");
    assert!(health.median < 1e-14 && !health.swamped());
    let says = |w: &String| w.contains("more than 5 % of F is below ε in 8 of 8 cells");
    assert!(report.warnings.iter().any(says), "{:?}", report.warnings);
    // The full variant has no ε, and λ relative to the mean eigenvalue.
    let full = config
        .with_variant(Variant::Full)
        .with_ridge(Ridge::new().with_ridge(1e-30));
    let report = run(&full, &store(&tasks), ["a", "b"]);
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    let slice = &report.slices[0];
    let (mean, health) = (
        slice.mean_eigenvalue.expect("full"),
        slice.health.expect("it"),
    );
    assert_close(
        "λ",
        &[health.ridge_lambda_applied],
        &[1e-6 * mean],
        1e-12,
        0.0,
    );
    // tr F over 8 elements and 8 samples: eight elements of F, of eight eigenvalues.
    assert!(mean > 0.5 * health.median && mean < 5.0 * health.median);
}
