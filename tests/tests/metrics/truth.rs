//! The truth table: known answers, clusters, coverage on simulated data; scores of gates as masks.

use fisher_core::gates::{GateKind, GateQuantity, GateSet, GatesConfig};
use fisher_core::sample::SampleRecord;
use fisher_core::statistics::StatisticsConfig;
use fisher_metrics::Error;
use fisher_metrics::candidates::{brain_damage_of, fisher_of, gates_of, magnitude_of};
use fisher_metrics::pruning::{PruningConfig, ScoreKind, Scores, spearman};
use fisher_metrics::truth::{Measured, TruthReport, TruthTableConfig};
use fisher_metrics::weights::Weights;
use fisher_tests::backend::Backend;
use fisher_tests::golden::Golden;
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

fn normal(rng: &mut StdRng) -> f64 {
    let uniform: f64 = rng.random_range(f64::EPSILON..1.0);
    (-2.0 * uniform.ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

fn records(count: usize, of_cluster: usize) -> Vec<SampleRecord> {
    let record = |i: usize| SampleRecord {
        id: i.to_string(),
        tokens: 1,
        skipped: None,
        step: None,
        cluster: (of_cluster > 1).then(|| (i / of_cluster).to_string()),
    };
    (0..count).map(record).collect()
}

fn measured(gates: usize, of_cluster: usize, rows: Vec<f64>) -> Measured {
    let names = (0..gates).map(|g| format!("head {g}")).collect();
    let samples = records(rows.len() / gates, of_cluster);
    Measured::new("t", "heads", names, samples, rows).expect("rows")
}

fn table(measured: &Measured, scores: &[(&str, &[f64])], draws: usize) -> TruthReport {
    let config = TruthTableConfig::new().with_draws(draws);
    let table = config.init().expect("an operator");
    table.forward(measured, scores).expect("a report")
}

/// `mean + noise` for each sample and gate, some of it common to all gates.
fn noisy(means: &[f64], samples: usize, noise: f64, rng: &mut StdRng) -> Vec<f64> {
    let rows = (0..samples).flat_map(|_| {
        let common = normal(rng);
        let row = means.iter().map(|mean| {
            // Heavy tails.
            let wild = if rng.random_bool(0.1) { 3.0 } else { 0.7 };
            mean + noise * (0.5 * common + wild * normal(rng)) * (mean.abs() + 0.2).sqrt()
        });
        row.collect::<Vec<f64>>()
    });
    rows.collect()
}

#[test]
fn known_scores_have_known_correlations() {
    let means: Vec<f64> = (0..9).map(|g| f64::from(g * g % 11)).collect();
    let rng = &mut StdRng::seed_from_u64(0);
    let measured = measured(9, 1, noisy(&means, 200, 0.3, rng));
    let truth = measured.increases();
    let against: Vec<f64> = truth.iter().map(|x| -x.powi(3)).collect();
    let unrelated: Vec<f64> = (0..9).map(|g| f64::from((g * 4 + 1) % 9)).collect();
    let scores: [(&str, &[f64]); 4] = [
        ("itself", &truth),
        ("opposite", &against),
        ("constant", &[1.0; 9]),
        ("unrelated", &unrelated),
    ];
    let report = table(&measured, &scores, 500);
    let rho = |at: usize| report.scores[at].spearman;
    assert!((rho(0).expect("ranks") - 1.0).abs() < 1e-12);
    assert!((rho(1).expect("ranks") + 1.0).abs() < 1e-12);
    assert_eq!((rho(2), report.scores[2].interval), (None, None));
    assert_eq!(rho(3), spearman(&unrelated, &truth));
    let of = |higher: &str, lower: &str| {
        let mut all = report.differences.iter();
        all.find(|d| d.higher == higher && d.lower == lower)
    };
    assert!(of("itself", "opposite").expect("a pair").resolved);
    assert!(of("itself", "unrelated").expect("a pair").resolved);
    assert_eq!(report.differences.len(), 3);
    let sentences = report.sentences();
    assert_eq!(sentences.len(), 4 + 3);
    assert!(sentences[2].contains("constant"), "{}", sentences[2]);
    assert!(report.halves.expect("clusters") > 0.8);
    let json = serde_json::to_string(&report).expect("JSON");
    let read: TruthReport = serde_json::from_str(&json).expect("a report");
    assert_eq!(read.sentences(), sentences);
    println!("{report}");
}

#[test]
fn copies_in_clusters_change_nothing_and_one_cluster_has_no_interval() {
    let means = [0.0, 0.2, 0.3, 0.5, 0.9];
    let rng = &mut StdRng::seed_from_u64(1);
    let rows = noisy(&means, 30, 1.0, rng);
    let copies: Vec<f64> = rows.chunks(5).flat_map(|row| row.repeat(4)).collect();
    let scores: [(&str, &[f64]); 2] = [("a", &means), ("b", &[0.3, 0.1, 0.0, 0.9, 0.5])];
    let alone = table(&measured(5, 1, rows.clone()), &scores, 300);
    let copied = table(&measured(5, 4, copies), &scores, 300);
    assert_eq!((alone.clusters, copied.clusters), (30, 30));
    for (a, c) in alone.scores.iter().zip(&copied.scores) {
        assert_eq!(a.spearman, c.spearman);
        let (a, c) = (a.interval.expect("draws"), c.interval.expect("draws"));
        assert!((a.lower - c.lower).abs() < 1e-9 && (a.upper - c.upper).abs() < 1e-9);
    }
    let one = table(&measured(5, 30, rows), &scores, 300);
    assert_eq!(one.clusters, 1);
    assert!(one.scores.iter().all(|row| row.interval.is_none()));
    assert!(one.differences.iter().all(|pair| !pair.resolved));
}

#[test]
fn what_cannot_be_ranked_is_refused() {
    let good = measured(3, 1, vec![0.1; 12]);
    let table = TruthTableConfig::new().init().expect("an operator");
    let error = table
        .forward(&good, &[("short", &[1.0, 2.0])])
        .expect_err("short");
    assert!(matches!(error, Error::Sizes { .. }), "{error}");
    let error = table
        .forward(&good, &[("nan", &[1.0, 2.0, f64::NAN])])
        .expect_err("NaN");
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    assert!(table.forward(&good, &[]).is_err());
    let names = vec!["one".to_owned()];
    assert!(Measured::new("t", "heads", names, records(2, 1), vec![0.0; 2]).is_err());
    assert!(TruthTableConfig::new().with_draws(3).init().is_err());
}

/// Intervals hold the correlation with the true means as often as is said, and equal scores are hardly told apart.
#[rstest]
#[case(8, 64, 1.0, 0.3, 0.93)]
#[case(8, 64, 4.0, 1.5, 0.86)]
#[case(24, 128, 1.0, 1.5, 0.90)]
#[case(24, 128, 4.0, 0.3, 0.84)]
fn intervals_cover(
    #[case] gates: usize,
    #[case] samples: usize,
    #[case] noise: f64,
    #[case] error: f64,
    #[case] at_least: f64,
) {
    const RUNS: usize = 120;
    let rng = &mut StdRng::seed_from_u64(7);
    let (mut covered, mut of_difference, mut false_calls) = (0, 0, 0);
    for _ in 0..RUNS {
        let means: Vec<f64> = (0..gates).map(|_| normal(rng).exp() - 1.0).collect();
        let mut score = |error: f64| -> Vec<f64> {
            means
                .iter()
                .map(|mean| mean + 2.0 * error * normal(rng))
                .collect()
        };
        let (a, b) = (score(error), score(2.0 * error));
        let rows = noisy(&means, samples, noise, rng);
        let report = table(&measured(gates, 1, rows), &[("a", &a), ("b", &b)], 200);
        let [of_a, of_b] = [&a, &b].map(|score| spearman(score, &means).expect("ranks"));
        let interval = report.scores[0].interval.expect("draws");
        covered += usize::from(interval.lower <= of_a + 1e-9 && of_a - 1e-9 <= interval.upper);
        let pair = &report.differences[0];
        let truth = if pair.higher == "a" {
            of_a - of_b
        } else {
            of_b - of_a
        };
        let interval = pair.interval.expect("draws");
        of_difference +=
            usize::from(interval.lower <= truth + 1e-9 && truth - 1e-9 <= interval.upper);
        false_calls += usize::from(pair.resolved && truth <= 0.0);
    }
    let share = |count: usize| count as f64 / RUNS as f64;
    println!(
        "{gates} gates, {samples} samples, noise {noise}, score error {error}: {:.2} covered, differences {:.2}, \
         wrongly resolved {:.2}",
        share(covered),
        share(of_difference),
        share(false_calls)
    );
    assert!(share(covered) >= at_least);
    assert!(share(of_difference) >= at_least);
    assert!(share(false_calls) <= 0.05);
}

#[test]
fn sums_over_gates_are_those_of_elements() {
    let device = Backend::Flex.device().expect("a CPU");
    let golden = Golden::load("gpt2-fused");
    let mut statistics = golden.statistics(&StatisticsConfig::new(), &device);
    let mut gates = golden.gates(&GatesConfig::new(), &device);
    let count = golden.samples("alpha").len();
    let batch = golden.batch("alpha", 0..count, &device);
    let sink = &mut (&mut statistics, &mut gates);
    fisher_core::gradient::GradientSink::push_batch(sink, "alpha", batch).expect("gradients");
    let statistics: fisher_core::statistics::Statistics = statistics;
    let scores = gates.into_scores();
    let weights = Weights::from(golden.weights());
    let heads: Vec<GateSet> = scores
        .sets()
        .iter()
        .filter(|s| s.kind() == GateKind::Head)
        .cloned()
        .collect();
    let fisher = fisher_of(&statistics, "alpha", &heads).expect("elements");
    let damage = brain_damage_of(&statistics, "alpha", &weights, &heads).expect("elements");
    let magnitude = magnitude_of(&weights, &heads).expect("weights");
    let mut at = 0;
    for set in &heads {
        let path = &set.parts()[0].path;
        let f = golden.values(&format!("alpha/mean/{path}"));
        let all = golden.weights();
        let theta = &all[path];
        for gate in 0..set.gates() {
            let inside = set.parts()[0].grouping.ranges(gate).into_iter().flatten();
            let inside: Vec<usize> = inside.collect();
            let sum = |of: &dyn Fn(usize) -> f64| inside.iter().map(|&e| of(e)).sum::<f64>();
            let expected = [
                sum(&|e| f[e]),
                sum(&|e| 0.5 * f[e] * theta[e] * theta[e]),
                sum(&|e| theta[e].abs()),
            ];
            let found = [fisher[at], damage[at], magnitude[at]];
            for (found, expected) in found.into_iter().zip(expected) {
                assert_close("sum", &[found], &[expected], GOLDEN, 0.0);
            }
            at += 1;
        }
    }

    // As masks: of channels with their biases, which are not counted.
    let channels = Scores::gates(&scores, "alpha", GateKind::Channel).expect("channels");
    assert_eq!(channels.kind(), ScoreKind::Gate);
    let pruned = PruningConfig::new(0.5).init().expect("an operator");
    let pruned = pruned.forward(&channels).expect("masks");
    let sets = scores
        .sets()
        .iter()
        .filter(|s| s.kind() == GateKind::Channel);
    let sets: Vec<GateSet> = sets.cloned().collect();
    let all: usize = sets.iter().map(GateSet::gates).sum();
    assert_eq!(pruned.kept(), (all - all / 2, all));
    let mask = |path: &str| {
        pruned
            .masks
            .iter()
            .find(|m| m.path == path)
            .expect("a mask")
    };
    let [weight, bias] =
        ["weight", "bias"].map(|what| mask(&format!("transformer.h.0.mlp.c_fc.{what}")));
    assert_eq!(weight.keep, bias.keep);
    assert_eq!((weight.follows, bias.follows), (false, true));
    let mut values = gates_of(&scores, "alpha", GateQuantity::Predicted, &sets).expect("gates");
    values.sort_by(f64::total_cmp);
    let predicted: f64 = values[..all / 2].iter().sum();
    let found = pruned.predicted_increase.expect("a prediction");
    assert_close("predicted", &[found], &[predicted], 1e-9, 0.0);
    assert!(Scores::gates(&scores, "alpha", GateKind::Layer).is_err());
    assert!(Scores::gates(&scores, "alpha", GateKind::KvHead).is_err());
}
