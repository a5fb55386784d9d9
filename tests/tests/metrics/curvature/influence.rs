//! Influence against dense inverses, and against models trained without a sample.

use burn::module::ParamGroup;
use burn::tensor::Tensor;
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};
use fisher_core::factors::FactorsConfig;
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::Error;
use fisher_metrics::curvature::influence::{
    InfluenceConfig, InfluenceReport, Influential, Inverse, linear_datamodeling_score,
};
use fisher_metrics::curvature::kronecker::Kronecker;
use fisher_metrics::damping::Damping;
use fisher_tests::tolerance::assert_close;
use rstest::rstest;

use crate::made::{Noise, flex};

/// Parameters and their shapes.
const PARAMETERS: [(&str, [usize; 2]); 2] = [("a", [3, 2]), ("b", [2, 2])];
const TRAIN: &str = "train";
const QUERIES: &str = "queries";

/// What holds gradients of both tasks.
struct Held {
    store: GradientStore,
    statistics: Statistics,
    kronecker: Kronecker,
}

fn catalogue(parameters: &[(&str, [usize; 2])]) -> Catalogue {
    let of = |(path, shape): &(&str, [usize; 2])| {
        Parameter::new(*path, *shape, Role::Matrix, Orientation::InputOutput)
    };
    Catalogue::new(parameters.iter().map(of).collect()).expect("parameters")
}

/// Of gradients by task, sample and parameter, and tokens.
fn held(
    parameters: &[(&str, [usize; 2])],
    gradients: &[(&str, Vec<Vec<Vec<f32>>>)],
    tokens: fn(usize) -> u64,
) -> Held {
    let catalogue = catalogue(parameters);
    let store = GradientStoreConfig::new(1 << 26).init_for(&catalogue, "m".into());
    let mut store = store.expect("a store").with_device(&flex());
    let config = StatisticsConfig::new();
    let statistics = config.init_for(&catalogue, &HeadLayout::none(), "m".into(), &flex());
    let mut statistics: Statistics = statistics.expect("statistics");
    let factors = FactorsConfig::new().init_for(&catalogue, "m".into());
    let mut factors = factors.expect("factors");
    let batch = |task: &str, samples: &[Vec<Vec<f32>>]| {
        let sample = |i: usize| Sample::new(format!("{task}-{i}"), tokens(i)).expect("tokens");
        let mut batch = GradientBatch::new((0..samples.len()).map(sample).collect());
        for (k, (path, _)) in parameters.iter().enumerate() {
            let rows: Vec<Tensor<2>> = samples
                .iter()
                .map(|of| Tensor::<1>::from_floats(&*of[k], &flex()).unsqueeze())
                .collect();
            batch.insert(*path, SampleGradient::full(Tensor::cat(rows, 0)));
        }
        batch
    };
    for (task, samples) in gradients {
        let mut sink = (&mut statistics, (&mut store, &mut factors));
        sink.push_batch(task, batch(task, samples))
            .expect("a batch");
    }
    let (task, samples) = &gradients[0];
    let kfac = Kronecker::of(&factors, task).expect("samples");
    let mut corrections = kfac.corrections(&flex()).expect("statistics");
    corrections
        .push_batch(task, batch(task, samples))
        .expect("a batch");
    Held {
        kronecker: kfac.corrected(&corrections).expect("the same samples"),
        store,
        statistics,
    }
}

impl Held {
    fn influence(&self, damping: Damping, inverse: &str) -> InfluenceReport {
        let config = InfluenceConfig::new()
            .with_damping(damping)
            .with_progress(false);
        let inverse = match inverse {
            "exact" => Inverse::Exact,
            "ekfac" => Inverse::Kronecker(&self.kronecker),
            "diagonal" => Inverse::Diagonal(&self.statistics, TRAIN),
            _ => Inverse::Identity,
        };
        let influence = config.init().expect("settings");
        let report = influence.forward((&self.store, TRAIN), (&self.store, QUERIES), inverse);
        report.expect("scores")
    }
}

fn drawn(samples: usize, seed: u64) -> Vec<Vec<Vec<f32>>> {
    let mut noise = Noise::new(seed);
    let mut of_sample = || {
        let shapes = PARAMETERS.iter().map(|(_, [rows, columns])| rows * columns);
        shapes.map(|elements| noise.normals(elements)).collect()
    };
    (0..samples).map(|_| of_sample()).collect()
}

fn flat(of: &[Vec<f32>]) -> Vec<f64> {
    of.iter().flatten().map(|&x| f64::from(x)).collect()
}

/// More and fewer samples than elements, and λ from a little to a lot.
#[rstest]
fn scores_are_those_of_dense_inverses(
    #[values(4, 40)] samples: usize,
    #[values(1e-6, 0.1, 1e4)] lambda: f64,
    #[values("exact", "ekfac", "diagonal", "identity")] inverse: &str,
) {
    let tokens = |i: usize| 1 + i as u64 % 3;
    let (train, queries) = (drawn(samples, 1), drawn(3, 2));
    let gradients = [(TRAIN, train.clone()), (QUERIES, queries.clone())];
    let held = held(&PARAMETERS, &gradients, tokens);
    let report = held.influence(Damping::Absolute(lambda), inverse);
    let elements = flat(&train[0]).len();
    let mut matrix = Mat::<f64>::zeros(elements, elements);
    match inverse {
        "exact" | "diagonal" => {
            for (i, of) in train.iter().enumerate() {
                let g = flat(of);
                let weight = 1.0 / (samples as f64 * tokens(i) as f64);
                matrix += Mat::from_fn(elements, elements, |r, c| {
                    let counts = inverse == "exact" || r == c;
                    if counts { weight * g[r] * g[c] } else { 0.0 }
                });
            }
        }
        "ekfac" => {
            let mut first = 0;
            for (path, [rows, columns]) in PARAMETERS {
                let side = rows * columns;
                for k in 0..side {
                    let one: Vec<f64> = (0..side).map(|i| f64::from(u8::from(i == k))).collect();
                    let column = held
                        .kronecker
                        .apply(path, &one, |s| s)
                        .expect("of its size");
                    (0..side).for_each(|i| matrix[(first + i, first + k)] = column[i]);
                }
                first += side;
            }
        }
        _ => {}
    }
    let added = if inverse == "identity" { 1.0 } else { lambda };
    (0..elements).for_each(|i| matrix[(i, i)] += added);
    let factor = matrix.llt(Side::Lower).expect("positive");
    let mut expected = Vec::new();
    for query in &queries {
        let g = flat(query);
        let solved = factor.solve(Mat::from_fn(elements, 1, |i, _| g[i]));
        for of in &train {
            expected.push(
                flat(of)
                    .iter()
                    .enumerate()
                    .map(|(i, x)| x * solved[(i, 0)])
                    .sum(),
            );
        }
    }
    // Float32 rounds what statistics and factors are of, and a small λ multiplies that.
    let tolerance = match inverse {
        "exact" | "identity" => 1e-8,
        _ => 1e-3,
    };
    let largest = expected
        .iter()
        .fold(0.0, |most: f64, x: &f64| most.max(x.abs()));
    let [found, expected] = [&report.scores, &expected]
        .map(|scores| scores.iter().map(|x| x / largest).collect::<Vec<f64>>());
    for (found, expected) in found.iter().zip(&expected) {
        assert!(
            (found - expected).abs() < tolerance,
            "{found} for {expected}"
        );
    }
    assert_eq!(report.inverse, inverse);
    assert_eq!(report.of_query(1).len(), samples);
}

/// Weights of a logistic regression, `σ(x · θ)` for the label 1, that minimize the mean loss plus `μ/2 |θ|²` over samples.
fn trained(inputs: &[Vec<f64>], labels: &[f64], left_out: Option<usize>, mu: f64) -> Vec<f64> {
    let width = inputs[0].len();
    let n = inputs.len() as f64;
    let mut theta = vec![0.0; width];
    for _ in 0..50 {
        let mut gradient: Vec<f64> = theta.iter().map(|t| mu * n * t).collect();
        let mut hessian = Mat::from_fn(width, width, |i, j| if i == j { mu * n } else { 0.0 });
        for (i, (x, y)) in inputs.iter().zip(labels).enumerate() {
            if Some(i) == left_out {
                continue;
            }
            let p = probability(x, &theta);
            gradient
                .iter_mut()
                .zip(x)
                .for_each(|(g, x)| *g += (p - y) * x);
            hessian += Mat::from_fn(width, width, |i, j| p * (1.0 - p) * x[i] * x[j]);
        }
        let right = Mat::from_fn(width, 1, |i, _| gradient[i]);
        let step = hessian.llt(Side::Lower).expect("convex").solve(&right);
        theta
            .iter_mut()
            .enumerate()
            .for_each(|(i, t)| *t -= step[(i, 0)]);
    }
    theta
}

fn probability(x: &[f64], theta: &[f64]) -> f64 {
    let score: f64 = x.iter().zip(theta).map(|(x, t)| x * t).sum();
    1.0 / (1.0 + (-score).exp())
}

fn loss(x: &[f64], y: f64, theta: &[f64]) -> f64 {
    let p = probability(x, theta);
    -(y * p.ln() + (1.0 - y) * (1.0 - p).ln())
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let product = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).sum::<f64>();
    let ab = product(&|i| (a[i] - ma) * (b[i] - mb));
    let [aa, bb] = [(a, ma), (b, mb)].map(|(x, m)| product(&|i| (x[i] - m).powi(2)));
    ab / (aa * bb).sqrt()
}

/// A logistic regression is trained again without each of 200 samples: how far the loss of 40 others moves is what influence says.
#[rstest]
fn influence_is_what_leaving_a_sample_out_does(#[values(1, 2, 3)] seed: u64) {
    const N: usize = 200;
    const TESTS: usize = 40;
    const WIDTH: usize = 8;
    let mu = 1e-2;
    let mut noise = Noise::new(seed);
    // Features share a direction, and are of unequal size.
    let inputs: Vec<Vec<f64>> = (0..N + TESTS)
        .map(|_| {
            let shared = f64::from(noise.normal());
            (0..WIDTH)
                .map(|k| (f64::from(noise.normal()) + shared) / (1.0 + k as f64).sqrt())
                .collect()
        })
        .collect();
    let truth: Vec<f64> = (0..WIDTH)
        .map(|k| if k % 2 == 0 { 1.0 } else { -0.7 })
        .collect();
    let labels: Vec<f64> = inputs
        .iter()
        .map(|x| {
            f64::from(u8::from(
                f64::from(noise.uniform()) < probability(x, &truth),
            ))
        })
        .collect();
    let (train, tests) = inputs.split_at(N);
    let (of_train, of_tests) = labels.split_at(N);
    let theta = trained(train, of_train, None, mu);
    let gradient = |(x, y): (&Vec<f64>, &f64)| {
        let error = probability(x, &theta) - y;
        vec![x.iter().map(|x| (error * x) as f32).collect::<Vec<f32>>()]
    };
    let of_task =
        |inputs: &[Vec<f64>], labels: &[f64]| inputs.iter().zip(labels).map(gradient).collect();
    let gradients = [
        (TRAIN, of_task(train, of_train)),
        (QUERIES, of_task(tests, of_tests)),
    ];
    let held = held(&[("theta", [WIDTH, 1])], &gradients, |_| 1);
    let mut measured = vec![Vec::new(); TESTS];
    for i in 0..N {
        let without = trained(train, of_train, Some(i), mu);
        for (j, (x, &y)) in tests.iter().zip(of_tests).enumerate() {
            measured[j].push(loss(x, y, &without) - loss(x, y, &theta));
        }
    }
    let measured = measured.concat();
    let of = |inverse: &str| {
        let scores = held.influence(Damping::Absolute(mu), inverse).scores;
        pearson(&scores, &measured)
    };
    let [exact, ekfac, diagonal, none] = ["exact", "ekfac", "diagonal", "identity"].map(of);
    println!("exact {exact:.3}, ekfac {ekfac:.3}, diagonal {diagonal:.3}, products {none:.3}");
    assert!(exact > 0.95, "{exact}");
    // Of a vector EKFAC is the whole Fisher.
    assert!((exact - ekfac).abs() < 1e-3, "{exact} and {ekfac}");
    assert!(
        exact > diagonal && exact > none,
        "{exact}, {diagonal}, {none}"
    );
    // And the size: a sample of n moves the loss by τ/n.
    let scores = held.influence(Damping::Absolute(mu), "exact").scores;
    let size = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let ratio = size(&scores) / N as f64 / size(&measured);
    assert!((0.7..1.4).contains(&ratio), "{ratio}");
}

#[test]
fn a_report_orders_samples_and_says_what_it_is() {
    let of = |x: f32| vec![vec![x; 6], vec![0.0; 4]];
    let gradients = [
        (TRAIN, vec![of(1.0), of(-2.0), of(0.0), of(3.0)]),
        (QUERIES, vec![of(1.0)]),
    ];
    let held = held(&PARAMETERS, &gradients, |_| 1);
    let report = held.influence(Damping::Relative(0.1), "identity");
    let ids = |found: Vec<Influential>| found.iter().map(|of| of.id.to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(report.helpful(0, 9)), ["train-3", "train-0"]);
    assert_eq!(ids(report.harmful(0, 9)), ["train-1"]);
    assert_eq!(ids(report.helpful(0, 1)), ["train-3"]);
    assert_close(
        "scores",
        report.of_query(0),
        &[6.0, -12.0, 0.0, 18.0],
        1e-12,
        1.0,
    );
    let text = report.to_string();
    assert!(
        text.contains("not what retraining does") && text.contains("train-1"),
        "{text}"
    );
    let json = serde_json::to_string(&report).expect("JSON");
    let again: InfluenceReport = serde_json::from_str(&json).expect("a report");
    assert_eq!(again, report);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let gradients = [(TRAIN, drawn(3, 1)), (QUERIES, drawn(2, 2))];
    let held = held(&PARAMETERS, &gradients, |_| 1);
    let config = InfluenceConfig::new().with_progress(false);
    assert!(
        config
            .clone()
            .with_damping(Damping::Absolute(0.0))
            .init()
            .is_err()
    );
    let influence = config.init().expect("settings");
    let error = influence
        .forward(
            (&held.store, "none"),
            (&held.store, QUERIES),
            Inverse::Exact,
        )
        .expect_err("no task");
    assert!(error.to_string().contains("none"), "{error}");
    let error = influence
        .forward((&held.store, TRAIN), (&held.store, "none"), Inverse::Exact)
        .expect_err("no task");
    assert!(error.to_string().contains("none"), "{error}");
    let missing = config
        .with_only(Some(ParamGroup::from_path("c")))
        .init()
        .expect("settings");
    assert!(
        missing
            .forward((&held.store, TRAIN), (&held.store, QUERIES), Inverse::Exact)
            .is_err()
    );
    let other = [("a", [3usize, 2])];
    let few = [(TRAIN, vec![vec![vec![1.0f32; 6]]; 2])];
    let other = self::held(&other, &few, |_| 1);
    let error = influence.forward(
        (&held.store, TRAIN),
        (&held.store, QUERIES),
        Inverse::Kronecker(&other.kronecker),
    );
    assert!(
        matches!(&error, Err(Error::Keys { key, .. }) if key == "b"),
        "{error:?}"
    );
}

#[test]
fn a_datamodeling_score_is_a_rank_correlation_over_subsets() {
    let scores = [1.0, 2.0, -1.0, 0.0, 3.0, 1.0];
    let subsets: Vec<Vec<bool>> = [[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]]
        .iter()
        .map(|subset| subset.iter().map(|x| *x == 1).collect())
        .collect();
    // What scores predict: 3, 1, 0, 2, −1 and 3, 4, 1, 4, 1.
    let rightly = [-3.0, -1.0, 0.0, -2.0, 1.0];
    let wrongly = [3.0, 4.0, 1.0, 4.0, 1.0];
    let found = linear_datamodeling_score(&scores, &subsets, &[rightly, wrongly].concat());
    let found = found.expect("a score");
    let close =
        |found: Option<f64>, expected: f64| found.is_some_and(|x| (x - expected).abs() < 1e-12);
    assert!(close(found.of_queries[0], 1.0) && close(found.of_queries[1], -1.0));
    assert!(close(found.mean, 0.0));
    let constant = [0.0; 5];
    let found = linear_datamodeling_score(&scores, &subsets, &[rightly, constant].concat());
    let found = found.expect("a score");
    assert!(close(found.of_queries[0], 1.0) && found.of_queries[1].is_none());
    assert!(close(found.mean, 1.0));
    assert!(
        found
            .interval
            .is_some_and(|[lower, upper]| lower < 1.0 + 1e-12 && upper > 1.0 - 1e-12)
    );
    assert!(linear_datamodeling_score(&scores, &subsets[..2], &[0.0; 4]).is_err());
    assert!(linear_datamodeling_score(&scores, &subsets, &[0.0; 4]).is_err());
    assert!(linear_datamodeling_score(&scores, &subsets, &[f64::NAN; 10]).is_err());
}

/// Correlations and the jackknife by scipy: `spearmanr` of all subsets and of all but one.
#[test]
fn the_interval_of_a_datamodeling_score_is_a_jackknife_of_subsets() {
    // A sample each, so that scores are what is predicted.
    let subsets: Vec<Vec<bool>> = (0..7).map(|s| (0..7).map(|i| i == s).collect()).collect();
    let scores = [
        [0.3, -1.2, 0.8, 2.0, 0.1, -0.4, 1.1],
        [1.0, 0.2, -0.5, 0.7, -2.0, 0.4, 0.9],
    ];
    let losses = [
        [0.1, 0.9, -0.2, -1.5, -0.3, 0.2, 0.4],
        [-0.8, 0.3, 0.5, -0.1, 0.2, -0.6, -0.9],
    ];
    let found = linear_datamodeling_score(&scores.concat(), &subsets, &losses.concat());
    let found = found.expect("a score");
    let of_queries: Vec<f64> = found.of_queries.iter().flatten().copied().collect();
    assert_close(
        "correlations",
        &of_queries,
        &[0.5357142857142858, 0.8214285714285715],
        1e-12,
        1.0,
    );
    let interval = found.interval.expect("subsets");
    assert_close(
        "interval",
        &interval,
        &[0.07336493899488805, 1.0],
        1e-9,
        1.0,
    );
}

/// The Fisher of `K` alone is damped, however many elements there are: two samples that are almost equal influence each other.
#[test]
fn relative_damping_of_the_whole_fisher_is_by_samples() {
    let mut wide = vec![vec![0.0f32; 4000], vec![0.0; 4000]];
    let direction = |second: f32| {
        let mut of = vec![0.0f32; 4000];
        of[0] = 1.0;
        of[1] = second;
        of
    };
    wide[0] = direction(0.0);
    wide[1] = direction(0.4);
    let samples: Vec<Vec<Vec<f32>>> = wide.into_iter().map(|of| vec![of]).collect();
    let gradients = [(TRAIN, samples.clone()), (QUERIES, samples)];
    let held = held(&[("w", [4, 1000])], &gradients, |_| 1);
    let report = held.influence(Damping::Relative(0.1), "exact");
    let [own, other] = [report.of_query(0)[0], report.of_query(0)[1]];
    assert!(other > 0.4 * own, "{other} beside {own}");
}

/// Weights of samples differ in their tokens: leaving one out of a mean over tokens moves a loss by τ over all tokens.
#[test]
fn influence_counts_tokens() {
    // A sum over tokens of ½ (x · θ − y)² has the Hessian Σ T x xᵀ; F of unit noise per token is its mean per token and sample.
    const N: usize = 400;
    const WIDTH: usize = 3;
    let mut noise = Noise::new(5);
    let tokens = |i: usize| 1 + i as u64 % 7;
    let samples: Vec<(Vec<f64>, Vec<f64>)> = (0..N + 10)
        .map(|i| {
            let x: Vec<f64> = (0..WIDTH).map(|_| f64::from(noise.normal())).collect();
            let y = (0..tokens(i)).map(|_| f64::from(noise.normal())).collect();
            (x, y)
        })
        .collect();
    let (train, tests) = samples.split_at(N);
    let solve = |left_out: Option<usize>| -> Vec<f64> {
        let mut hessian = Mat::<f64>::zeros(WIDTH, WIDTH);
        let mut right = Mat::<f64>::zeros(WIDTH, 1);
        for (i, (x, y)) in train.iter().enumerate() {
            if Some(i) != left_out {
                hessian += Mat::from_fn(WIDTH, WIDTH, |a, b| y.len() as f64 * x[a] * x[b]);
                right += Mat::from_fn(WIDTH, 1, |a, _| x[a] * y.iter().sum::<f64>());
            }
        }
        let theta = hessian.llt(Side::Lower).expect("convex").solve(&right);
        (0..WIDTH).map(|a| theta[(a, 0)]).collect()
    };
    let residuals = |(x, y): &(Vec<f64>, Vec<f64>), theta: &[f64]| -> Vec<f64> {
        let score: f64 = x.iter().zip(theta).map(|(x, t)| x * t).sum();
        y.iter().map(|y| score - y).collect()
    };
    let theta = solve(None);
    let gradient = |of: &(Vec<f64>, Vec<f64>)| {
        let sum: f64 = residuals(of, &theta).iter().sum();
        vec![of.0.iter().map(|x| (x * sum) as f32).collect::<Vec<f32>>()]
    };
    let of_task = |samples: &[(Vec<f64>, Vec<f64>)]| samples.iter().map(gradient).collect();
    let gradients = [(TRAIN, of_task(train)), (QUERIES, of_task(tests))];
    let held = held(&[("theta", [WIDTH, 1])], &gradients, tokens);
    let report = held.influence(Damping::Absolute(1e-9), "exact");
    let loss = |of: &(Vec<f64>, Vec<f64>), theta: &[f64]| -> f64 {
        residuals(of, theta).iter().map(|r| 0.5 * r * r).sum()
    };
    let (mut measured, mut predicted) = (Vec::new(), Vec::new());
    let all: u64 = (0..N).map(tokens).sum();
    for i in 0..N {
        let without = solve(Some(i));
        for (j, test) in tests.iter().enumerate() {
            measured.push(loss(test, &without) - loss(test, &theta));
            predicted.push(report.of_query(j)[i] / all as f64);
        }
    }
    let size = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (ratio, alike) = (
        size(&predicted) / size(&measured),
        pearson(&predicted, &measured),
    );
    println!("size {ratio:.3}, Pearson {alike:.3}");
    assert!(
        (0.8..1.25).contains(&ratio) && alike > 0.95,
        "{ratio} {alike}"
    );
}
