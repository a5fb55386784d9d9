//! What follows from a task's Fisher, each as an experiment with a table.

use std::error::Error;
use std::path::Path;

use burn::tensor::Device;
use fisher_core::grouping::HeadLayout;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::pruning::{ComparisonConfig, OverlapConfig, PruningConfig, Scores, Suggestion};
use fisher_metrics::weights::Weights;
use fisher_train::apply::{Ewc, EwcConfig, MergeConfig, MergeSource};
use fisher_train::collect::CollectorConfig;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::model::CausalTransformer;
use crate::tasks::{Data, Task};
use crate::training::{Lesson, Mark, loader, marks, train};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What all chapters share.
pub struct Setting<'a> {
    /// Training and held-out samples.
    pub data: &'a Data,
    /// Where the heads are.
    pub heads: &'a HeadLayout,
    /// The device, without autodiff.
    pub device: &'a Device,
    /// Seed of everything random.
    pub seed: u64,
    /// Where training may leave files.
    pub folder: &'a Path,
    /// Epochs for models that learn one task.
    pub epochs: usize,
}

impl Setting<'_> {
    /// How well a model does each task on held-out samples.
    ///
    /// # Errors
    /// What the loader failed with.
    pub fn marks(&self, model: &CausalTransformer) -> Result<[Mark; 2]> {
        Ok(marks(model, self.data, self.device)?)
    }

    /// Statistics of a model on the probe samples of `tasks`.
    ///
    /// # Errors
    /// What kept them from being collected.
    pub fn collect(&self, model: &CausalTransformer, tasks: &[Task]) -> Result<Statistics> {
        let config = StatisticsConfig::new().with_seed(Some(self.seed));
        let mut statistics = config.init_with_heads(model, self.heads)?;
        for task in tasks {
            let batches = loader(self.data.probe(*task), &self.device.clone().autodiff());
            let collector = CollectorConfig::new().init()?;
            collector.collect(model, task.name(), &*batches, &mut statistics)?;
        }
        Ok(statistics)
    }

    fn teach(
        &self,
        model: &CausalTransformer,
        task: Task,
        ewc: Option<&Ewc>,
    ) -> Result<(CausalTransformer, usize)> {
        let lesson = Lesson {
            data: self.data,
            tasks: &[task],
            epochs: self.epochs,
            rate: 2e-3,
            seed: self.seed,
            ewc,
            hook: None,
            dashboard: false,
        };
        Ok(train(model.clone(), &lesson, self.folder, self.device)?)
    }
}

pub(crate) fn accuracies(marks: [Mark; 2]) -> String {
    let percent = marks.map(|mark| format!("{:>9.1} %", 100.0 * mark.accuracy));
    percent.join("  ")
}

/// Begin a chapter on the screen.
pub fn heading(title: &str) {
    println!("\n== {title}\n");
}

/// How alike the tasks are, and where they need the same groups.
///
/// # Errors
/// What an analysis refused.
pub fn overlap(statistics: &Statistics) -> Result<()> {
    heading("Overlap: which half of the groups each task needs most");
    let [a, b] = Task::ALL.map(|task| Scores::grouped(statistics, task.name()));
    let (a, b) = (a?, b?);
    println!(
        "Shares of the groups, {}.\n",
        ComparisonConfig::new().init().forward(&a, &b)?
    );
    let pruning = PruningConfig::new(0.5).init()?;
    let overlap = OverlapConfig::new().init()?;
    let report = overlap.forward(&pruning.forward(&a)?, &pruning.forward(&b)?)?;
    println!("{report}");
    if let Some(suggestion) = Suggestion::of([&report]) {
        println!("{suggestion}.");
    }
    Ok(())
}

/// Prune weights by Fisher, by magnitude and at random, and look what is lost.
///
/// # Errors
/// What an analysis refused.
pub fn prune(setting: &Setting, model: &CausalTransformer, statistics: &Statistics) -> Result<()> {
    heading("Pruning: accuracy and loss of both tasks after weights are set to 0");
    let weights = Weights::of(model)?;
    let both = |scores: [fisher_metrics::Result<Scores>; 2]| -> Result<Scores> {
        let [a, b] = scores;
        Ok(a?.mean_with(&b?)?)
    };
    let tasks = Task::ALL.map(Task::name);
    let fisher = both(tasks.map(|task| Scores::elementwise(statistics, task)))?;
    let damage = both(tasks.map(|task| Scores::brain_damage(statistics, task, &weights)))?;
    let magnitude = fisher.magnitude(&weights)?;
    let rng = &mut StdRng::seed_from_u64(setting.seed);
    let random = fisher.clone().map(|_| rng.random());

    let before = setting.marks(model)?;
    let mean_loss = |marks: [Mark; 2]| 0.5 * (marks[0].loss + marks[1].loss);
    println!(
        "{:>8}  {:<12}  {:>11}  {:>11}  {:>13}  {:>13}",
        "pruned", "lowest", "induction", "maximum", "loss increase", "½Fθ² predicts"
    );
    println!("{:>8}  {:<12}  {}", "0 %", "–", accuracies(before));
    for sparsity in [0.5, 0.7, 0.9] {
        for (name, scores) in [
            ("½Fθ²", &damage),
            ("F", &fisher),
            ("magnitude", &magnitude),
            ("random", &random),
        ] {
            let masks = PruningConfig::new(sparsity).init()?.forward(scores)?;
            let (pruned, _) = masks.apply(model.clone())?;
            let after = setting.marks(&pruned)?;
            let increase = mean_loss(after) - mean_loss(before);
            let predicted = masks.predicted_increase;
            println!(
                "{:>6.0} %  {name:<12}  {}  {increase:>13.4}  {:>13}",
                100.0 * sparsity,
                accuracies(after),
                predicted.map_or("–".into(), |p| format!("{p:.4}"))
            );
        }
    }
    Ok(())
}

/// Teach one task to each of two copies of a model and merge them.
///
/// # Errors
/// What kept a model from being taught or merged.
pub fn merge(setting: &Setting, base: &CausalTransformer) -> Result<()> {
    heading("Merging: two specialists from one beginning, by Fisher and by plain average");
    println!("{:<28}  {:>11}  {:>11}", "", "induction", "maximum");
    let row = |name: &str, model: &CausalTransformer| -> Result<()> {
        println!("{name:<28}  {}", accuracies(setting.marks(model)?));
        Ok(())
    };
    row("beginning", base)?;
    let mut specialists = Vec::new();
    for task in Task::ALL {
        let (model, epochs) = setting.teach(base, task, None)?;
        row(&format!("taught {}, {epochs} epochs", task.name()), &model)?;
        let statistics = setting.collect(&model, &[task])?;
        specialists.push((model, statistics, task));
    }
    let sources = specialists
        .iter()
        .map(|(model, statistics, task)| MergeSource {
            model,
            statistics,
            task: task.name(),
            weight: 1.0,
        });
    let sources: Vec<_> = sources.collect();
    // An epsilon far above every F is a plain average.
    let plain = MergeConfig::new().with_epsilon(1e12).init()?;
    row("plain average", &plain.forward(&sources)?.model)?;
    let merged = MergeConfig::new().init()?.forward(&sources)?;
    row("Fisher merge", &merged.model)?;
    println!("{}", merged.report);
    Ok(())
}

/// Learn one task after the other, with and without holding on to the first.
///
/// # Errors
/// What kept a model from being taught.
pub fn sequence(setting: &Setting, base: &CausalTransformer) -> Result<()> {
    heading("Continual learning: induction after maximum, with and without EWC");
    println!("{:<28}  {:>11}  {:>11}", "", "induction", "maximum");
    let row = |name: &str, model: &CausalTransformer| -> Result<()> {
        println!("{name:<28}  {}", accuracies(setting.marks(model)?));
        Ok(())
    };
    let (first, epochs) = setting.teach(base, Task::Maximum, None)?;
    row(&format!("maximum, {epochs} epochs"), &first)?;
    let statistics = setting.collect(&first, &[Task::Maximum])?;
    let (model, epochs) = setting.teach(&first, Task::Induction, None)?;
    row(&format!("then induction, {epochs} epochs"), &model)?;
    for strength in [100.0, 1_000.0, 10_000.0] {
        let mut ewc = EwcConfig::new(strength).init()?;
        ewc.protect(&statistics, Task::Maximum.name(), &first)?;
        let (model, epochs) = setting.teach(&first, Task::Induction, Some(&ewc))?;
        row(&format!("EWC λ = {strength}, {epochs} epochs"), &model)?;
    }
    Ok(())
}
