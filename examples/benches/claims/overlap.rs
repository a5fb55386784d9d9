//! Masks: what independent ones have in common, and what a task has in common with itself.

use std::fmt::Write;

use burn::tensor::{DType, Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::pruning::{
    Advice, Masks, OverlapConfig, OverlapReport, Pruning, PruningConfig, Scores, Suggestion,
};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

const TENSORS: usize = 4;
const ELEMENTS: usize = 250;

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let [u, v]: [f64; 2] = [rng.random(), rng.random()];
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

fn path(tensor: usize) -> String {
    format!("layers.{tensor}.w")
}

/// Statistics and gradients of samples, each a list of all elements' gradients.
fn collected(task: &str, samples: &[Vec<f64>]) -> (Statistics, GradientStore) {
    let parameter = |t| {
        Parameter::new(
            path(t),
            [1, ELEMENTS],
            Role::Matrix,
            Orientation::InputOutput,
        )
    };
    let catalogue = Catalogue::new((0..TENSORS).map(parameter).collect()).expect("parameters");
    let device = Device::flex();
    let statistics =
        StatisticsConfig::new().init_for(&catalogue, &HeadLayout::none(), "m".into(), &device);
    let mut statistics: Statistics = statistics.expect("statistics");
    let store = GradientStoreConfig::new(1 << 28).init_for(&catalogue, "m".into());
    let mut store = store.expect("a store");
    let names = (0..samples.len()).map(|i| Sample::new(format!("{i}"), 1).expect("a token"));
    let mut batch = GradientBatch::new(names.collect());
    for t in 0..TENSORS {
        let rows = samples
            .iter()
            .flat_map(|g| &g[t * ELEMENTS..(t + 1) * ELEMENTS]);
        let data = TensorData::new(
            rows.copied().collect::<Vec<f64>>(),
            [samples.len(), ELEMENTS],
        );
        let tensor = Tensor::<2>::from_data(data, (&device, DType::F64));
        batch.insert(path(t), Gradient::token_sum(tensor));
    }
    store.push(task, &batch).expect("gradients");
    statistics.push(task, batch).expect("gradients");
    (statistics, store)
}

fn pruning(sparsity: f64) -> Pruning {
    let config = PruningConfig::new(sparsity).with_protected_roles(Vec::new());
    config.init().expect("a share")
}

fn masks(pruning: &Pruning, scores: &Scores) -> Masks {
    pruning.forward(scores).expect("masks")
}

fn spread(values: &[f64]) -> String {
    if values.is_empty() {
        return "–".into();
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let m2: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    format!("{mean:.3} ± {:.3}", (m2 / (n - 1.0).max(1.0)).sqrt())
}

pub(crate) fn tables(runs: usize) -> Vec<String> {
    vec![independent(runs), ceilings(runs)]
}

/// Scores that are independent within each tensor, tensors being of one scale or of four.
fn independent(runs: usize) -> String {
    let mut text = String::from(
        "**Masks that are independent within each of four tensors** of 250: mean ± standard deviation\n\n\
         | scales of the tensors | sparsity | Jaccard | κ pooled | κ stratified |\n|---|--:|--:|--:|--:|",
    );
    for (name, ratio) in [
        ("equal", 1.0f64),
        ("1, 2, 4, 8", 2.0),
        ("1, 10, 100, 1000", 10.0),
    ] {
        for sparsity in [0.05, 0.1, 0.3, 0.5, 0.7, 0.9] {
            let [mut jaccard, mut pooled, mut stratified] = [const { Vec::new() }; 3];
            for seed in 0..runs {
                let rng = &mut ChaCha8Rng::seed_from_u64(seed as u64);
                let pruning = pruning(sparsity);
                let [a, b] = ["a", "b"].map(|task| {
                    let scale = |e: usize| ratio.powi((e / ELEMENTS) as i32);
                    let roots =
                        (0..TENSORS * ELEMENTS).map(|e| (scale(e) * rng.random::<f64>()).sqrt());
                    let (statistics, _) = collected(task, &[roots.collect()]);
                    let scores = Scores::elementwise(&statistics, task).expect("scores");
                    masks(&pruning, &scores)
                });
                let overlap = OverlapConfig::new().init().expect("settings");
                let all = overlap.forward(&a, &b).expect("one model").all;
                jaccard.extend(all.jaccard);
                pooled.extend(all.kappa);
                stratified.extend(all.stratified);
            }
            let [jaccard, pooled, stratified] = [jaccard, pooled, stratified].map(|x| spread(&x));
            let _ = write!(
                text,
                "\n| {name} | {sparsity} | {jaccard} | {pooled} | {stratified} |"
            );
        }
    }
    text
}

/// Tasks whose true F (log-normal over elements) are correlated, seen through few samples.
fn ceilings(runs: usize) -> String {
    let mut text = String::from(
        "**Tasks whose true log F are correlated by ρ** (standard deviation 1), g ~ N(0, F); three \
         sparsities (0.5, 0.7, 0.9), ten splits: means over runs at 0.5, and what is suggested (share of \
         runs)\n\n| ρ | samples | κ of all | κ of halves | across halves | relative | arithmetic | weighted | \
         surgery | cannot be said |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    );
    for rho in [0.0, 0.5, 1.0] {
        for n in [4, 16, 64] {
            let [mut all, mut within, mut across, mut relative] = [const { Vec::new() }; 4];
            let mut advised = [0usize; 4];
            let runs = (runs / 4).max(1);
            for seed in 0..runs {
                let rng = &mut ChaCha8Rng::seed_from_u64(1000 + seed as u64);
                let reports = both(rng, rho, n);
                let report = &reports[0];
                let ceiling = report.ceiling.as_ref().expect("halves");
                all.extend(report.all.stratified);
                within.extend(ceiling.within.into_iter().flatten());
                across.extend(ceiling.across);
                relative.extend(ceiling.relative);
                let advice = Suggestion::of(&reports).expect("reports").advice;
                advised[match advice {
                    Some(Advice::Arithmetic) => 0,
                    Some(Advice::WeightedArithmetic) => 1,
                    Some(Advice::Surgery) => 2,
                    None => 3,
                }] += 1;
            }
            let _ = write!(text, "\n| {rho} | {n} |");
            for values in [all, within, across, relative] {
                let _ = write!(text, " {} |", spread(&values));
            }
            for count in advised {
                let _ = write!(text, " {:.2} |", count as f64 / runs as f64);
            }
        }
    }
    text
}

fn both(rng: &mut ChaCha8Rng, rho: f64, n: usize) -> Vec<OverlapReport> {
    let elements = TENSORS * ELEMENTS;
    let first: Vec<f64> = (0..elements).map(|_| normal(rng)).collect();
    let second: Vec<f64> = first
        .iter()
        .map(|x| rho * x + (1.0 - rho * rho).sqrt() * normal(rng))
        .collect();
    let tasks = [("a", first), ("b", second)].map(|(task, log)| {
        let sample = |_| log.iter().map(|x| (0.5 * x).exp() * normal(rng)).collect();
        let samples: Vec<Vec<f64>> = (0..n).map(sample).collect();
        let (statistics, store) = collected(task, &samples);
        let scores = Scores::elementwise(&statistics, task).expect("scores");
        let halves = scores.halves(&store, task, 10, 3).expect("halves");
        (scores, halves)
    });
    let overlap = OverlapConfig::new().init().expect("settings");
    let at = |sparsity| {
        let pruning = pruning(sparsity);
        let [a, b] = tasks.each_ref().map(|(scores, halves)| {
            let halves = halves
                .iter()
                .map(|pair| pair.each_ref().map(|half| masks(&pruning, half)));
            (masks(&pruning, scores), halves.collect::<Vec<_>>())
        });
        overlap
            .forward_with_halves([&a.0, &b.0], [&a.1, &b.1])
            .expect("one model")
    };
    [0.5, 0.7, 0.9].map(at).into()
}
