//! Do gates rank heads and channels closer to measured ablation than `½ Σ F θ²` does?

use std::collections::BTreeMap;

use burn::data::dataloader::batcher::Batcher;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::Device;
use fisher_core::gates::GateKind;
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::Catalogue;
use fisher_examples::digits::{Classifier, DigitBatcher, draw};
use fisher_examples::model::CausalTransformerConfig;
use fisher_examples::tasks::{CONTEXT, Data, Item, Task, TaskBatcher, VOCABULARY};
use fisher_examples::truth::{median_and_range, see, table};
use fisher_metrics::truth::TruthReport;
use fisher_train::batch::SampleLoss;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Seeds at most: each trains two models.
const SEEDS: u64 = 5;

/// Rank correlations of a model's gates, by what they are on and by score.
type Found = BTreeMap<String, Vec<TruthReport>>;

pub(crate) fn tables(runs: usize) -> Vec<String> {
    let seeds = (runs as u64).clamp(1, SEEDS);
    let mut found = Found::new();
    for seed in 0..seeds {
        for (what, report) in transformer(seed).into_iter().chain(network(seed)) {
            found.entry(what).or_default().push(report);
        }
    }
    found
        .iter()
        .map(|(what, reports)| markdown(what, reports))
        .collect()
}

fn markdown(what: &str, reports: &[TruthReport]) -> String {
    let (first, seeds) = (&reports[0], reports.len());
    let mut lines = vec![format!(
        "Spearman with measured ablation (weights 0): {what}, {} gates, {} held-out samples; median (range) over {seeds} seeds",
        first.gates, first.samples
    )];
    lines.push(String::new());
    lines.push("| score | Spearman | higher than ½ΣFθ² in | resolved so in |".into());
    lines.push("|---|---|---|---|".into());
    let rho = |report: &TruthReport, score: &str| {
        let row = report.scores.iter().find(|row| row.score == score);
        row.and_then(|row| row.spearman).unwrap_or(f64::NAN)
    };
    for row in &first.scores {
        let name = &*row.score;
        let values: Vec<f64> = reports.iter().map(|report| rho(report, name)).collect();
        let above = reports
            .iter()
            .filter(|report| rho(report, name) > rho(report, "½ΣFθ²"));
        let resolved = reports.iter().filter(|report| {
            let mut pairs = report.differences.iter();
            pairs.any(|pair| pair.resolved && pair.higher == name && pair.lower == "½ΣFθ²")
        });
        let [above, resolved] = [above.count(), resolved.count()];
        lines.push(format!(
            "| {} | {} | {above} of {seeds} | {resolved} of {seeds} |",
            name.replace('|', "\\|"),
            median_and_range(&values, 2)
        ));
    }
    let halves: Vec<f64> = reports.iter().filter_map(|report| report.halves).collect();
    lines.push(format!(
        "| reliability of the ablation, half by half | {} | | |",
        median_and_range(&halves, 2)
    ));
    lines.join("\n")
}

/// By a plain loop, in batches of 128 that are drawn anew in each epoch.
fn teach<M: SampleLoss, T: Clone>(
    mut model: M,
    items: &[T],
    batch: impl Fn(Vec<T>) -> M::Batch,
    (epochs, rate, seed): (usize, f64, u64),
) -> M {
    let mut optimizer = AdamConfig::new().init();
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut items = items.to_vec();
    let steps = (epochs * items.len().div_ceil(128)) as f64;
    let mut step = 0.0;
    for _ in 0..epochs {
        items.shuffle(rng);
        for chunk in items.chunks(128) {
            let loss = model.sample_losses(&batch(chunk.to_vec())).means().mean();
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            let falling = 0.5 * (1.0 + (std::f64::consts::PI * step / steps).cos());
            model = optimizer.step(rate * falling.max(0.03), model, gradients);
            step += 1.0;
        }
    }
    model
}

fn transformer(seed: u64) -> Vec<(String, TruthReport)> {
    let device = Device::flex().autodiff();
    device.seed(seed);
    let data = Data::generate([4000, 512, 1024], seed);
    let config = CausalTransformerConfig::new(VOCABULARY, CONTEXT);
    let batch = |items: Vec<Item>| TaskBatcher.batch(items, &device);
    let fresh = config.init(&device);
    let model = teach(fresh, &data.train, batch, (10, 3e-3, seed));
    let catalogue = Catalogue::of(&model).expect("parameters");
    let attention = AttentionConfig::new(config.heads);
    let heads = HeadLayout::recognize(&catalogue, &attention).expect("heads");
    let batches = |items: &[Item]| -> Vec<_> {
        let chunks = items.chunks(128);
        chunks.map(|items| batch(items.to_vec())).collect()
    };
    let probes = Task::ALL.map(|task| (task.name(), batches(data.probe(task))));
    let seen = see(&model, &heads, probes.to_vec()).expect("a pass");
    let mut found = Vec::new();
    for task in Task::ALL {
        let held_out = batches(data.held_out(task));
        for kind in [(GateKind::Head, "heads"), (GateKind::Channel, "channels")] {
            let of = (task.name(), &*held_out);
            let (measured, report) = table(&model, &heads, &seen, of, kind).expect("a table");
            eprintln!("seed {seed}, loss {:.4} a token: {report}", measured.loss);
            found.push((
                format!("transformer on {}, {}", task.name(), kind.1),
                report,
            ));
        }
    }
    found
}

fn network(seed: u64) -> Vec<(String, TruthReport)> {
    let device = Device::flex().autodiff();
    device.seed(seed);
    let rng = &mut StdRng::seed_from_u64(1000 + seed);
    let batch = |items: Vec<_>| DigitBatcher.batch(items, &device);
    let train = draw(0..10, 4000, rng);
    let model = teach(Classifier::new(&device), &train, batch, (6, 3e-3, seed));
    let mut batches = |count| -> Vec<_> {
        let items = draw(0..10, count, rng);
        items
            .chunks(128)
            .map(|items| batch(items.to_vec()))
            .collect()
    };
    let (probes, held_out) = (batches(1024), batches(1024));
    let none = HeadLayout::none();
    let seen = see(&model, &none, vec![("digits", probes)]).expect("a pass");
    let kind = (GateKind::Channel, "channels");
    let (measured, report) =
        table(&model, &none, &seen, ("digits", &held_out), kind).expect("a table");
    eprintln!("seed {seed}, loss {:.4}: {report}", measured.loss);
    vec![("convolutional network on digits, channels".into(), report)]
}
