//! Where the two tasks collide, sample by sample and head by head.

use std::error::Error;

use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::GradientStoreConfig;
use fisher_metrics::conflicts::{ConflictsConfig, SliceBy};
use fisher_metrics::interference::{InterferenceConfig, InterferenceReport, Pool, Variant};
use fisher_metrics::pruning::spearman;
use fisher_train::collect::CollectorConfig;

use crate::chapters::{Setting, heading};
use crate::groups::Ablated;
use crate::model::CausalTransformer;
use crate::tasks::Task;
use crate::training::loader;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Samples of each task that are compared.
const SAMPLES: usize = 64;

/// Compare samples of both tasks, and the map of heads with what ablation said of them.
///
/// Writes `conflicts.json`, `interference.json` and their pictures.
///
/// # Errors
/// What an analysis refused.
pub fn collide(setting: &Setting, model: &CausalTransformer, ablated: &[Ablated]) -> Result<()> {
    heading("Collisions: samples of one task against samples of the other");
    let only = setting.heads.group();
    let mut store = GradientStoreConfig::new(1 << 30)
        .with_only(Some(only))
        .init(model)?
        .with_heads(setting.heads.clone());
    let config = StatisticsConfig::new().with_elementwise(false);
    let mut statistics: Statistics = config.init_with_heads(model, setting.heads)?;
    for task in Task::ALL {
        let items = setting.data.probe(task);
        let items = &items[..items.len().min(SAMPLES)];
        let batches = loader(items, &setting.device.clone().autodiff());
        let into = (&mut statistics, &mut store);
        let collector = CollectorConfig::new().init()?;
        collector.collect(model, task.name(), &*batches, into)?;
    }
    println!("Gradients of the attention: {}.\n", store.usage());

    let tasks = Task::ALL.map(Task::name);
    let conflicts = ConflictsConfig::new()
        .with_by(SliceBy::Head)
        .with_keep_pairs(true)
        .with_seed(setting.seed)
        .init()?;
    let report = conflicts.forward(&store, tasks)?;
    println!("{report}");
    let json = serde_json::to_string(&report)?;
    std::fs::write(setting.folder.join("conflicts.json"), json)?;
    let most = report.by_evidence().into_iter().next();
    if let Some(picture) = most.and_then(|slice| report.picture(&slice.name)) {
        picture.save(setting.folder.join("conflicts.svg"))?;
    }

    let interference = InterferenceConfig::new()
        .with_variant(Variant::Signed)
        .with_pool(Pool::Pooled)
        .init()?;
    let report = interference.forward(&store, tasks)?;
    println!("{report}");
    let json = serde_json::to_string(&report)?;
    std::fs::write(setting.folder.join("interference.json"), json)?;
    let picture = report.picture();
    picture.save(setting.folder.join("interference.svg"))?;
    let check = interference.self_check(&store, tasks)?;
    println!("{check}\n");
    compare(&report, ablated);
    Ok(())
}

/// Do the heads that ablation found important carry the largest scores?
fn compare(report: &InterferenceReport, ablated: &[Ablated]) {
    println!(
        "{:<32}  {:>10}  {:>10}  {:>12}  {:>7}",
        "", "induction", "maximum", "score", "blocks"
    );
    println!(
        "{:<32}  {:>10}  {:>10}  {:>12}  {:>7}",
        "", "loss +", "loss +", "over Q K V O", "resolved"
    );
    let mut scores = Vec::new();
    for head in ablated {
        let slices = report.blocks().into_iter();
        let slices = slices.filter_map(|block| report.slice(block, head.layer, head.head));
        let slices: Vec<_> = slices.collect();
        let score: f64 = slices.iter().map(|s| s.shown()).sum();
        let tests = slices.iter().filter_map(|s| s.significance);
        let marked = tests.filter(|test| test.resolved()).count();
        let [induction, maximum] = head.increase;
        println!(
            "{:<32}  {induction:>10.4}  {maximum:>10.4}  {score:>+12.3e}  {marked:>7}",
            head.name
        );
        scores.push(score.abs());
    }
    let both: Vec<f64> = ablated
        .iter()
        .map(|h| h.increase[0].min(h.increase[1]))
        .collect();
    let either: Vec<f64> = ablated
        .iter()
        .map(|h| h.increase[0] + h.increase[1])
        .collect();
    for (what, importance) in [
        ("both tasks need it", both),
        ("either task needs it", either),
    ] {
        let rho = spearman(&scores, &importance);
        let rho = rho.map_or("–".into(), |rho| format!("{rho:.2}"));
        println!(
            "Rank correlation of |score| with how much {what}: {rho} over {} heads.",
            ablated.len()
        );
    }
}
