//! The same experiment from several seeds: medians and ranges in the place of one run.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;
use std::path::Path;

use burn::tensor::Device;
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::Catalogue;

use crate::chapters::{Setting, heading};
use crate::groups::pruned;
use crate::model::CausalTransformerConfig;
use crate::tasks::{Data, Task};
use crate::training::{Lesson, loader, train};
use crate::truth::{median_and_range, see};

/// Numbers of all seeds, by a row's name, in the order in which rows came.
#[derive(Default)]
struct Rows(Vec<String>, BTreeMap<String, Vec<f64>>);

impl Rows {
    fn add(&mut self, name: String, value: f64) {
        if !self.1.contains_key(&name) {
            self.0.push(name.clone());
        }
        self.1.entry(name).or_default().push(value);
    }

    fn print(&self, digits: usize) {
        for name in &self.0 {
            println!("  {name:<52} {}", median_and_range(&self.1[name], digits));
        }
    }
}

/// Train, hold scores against ablation and prune, from each of some seeds, and print medians with their ranges.
///
/// # Errors
/// What a step refused.
pub fn compare(
    seeds: Range<u64>,
    (sizes, epochs): ([usize; 3], usize),
    device: &Device,
    folder: &Path,
) -> Result<(), Box<dyn Error>> {
    let (mut correlations, mut increases, mut accuracies) =
        (Rows::default(), Rows::default(), Rows::default());
    for seed in seeds.clone() {
        device.seed(seed);
        let data = Data::generate(sizes, seed);
        let config = CausalTransformerConfig::new(crate::tasks::VOCABULARY, crate::tasks::CONTEXT);
        let fresh = config.init(&device.clone().autodiff());
        let lesson = Lesson {
            data: &data,
            tasks: &Task::ALL,
            epochs,
            rate: 3e-3,
            seed,
            ewc: None,
            hook: None,
            dashboard: false,
        };
        let (model, _) = train(fresh, &lesson, folder, device)?;
        let catalogue = Catalogue::of(&model)?;
        let heads = HeadLayout::recognize(&catalogue, &AttentionConfig::new(config.heads))?;
        let setting = Setting {
            data: &data,
            heads: &heads,
            device,
            seed,
            folder,
            epochs,
        };
        let marks = setting.marks(&model)?;
        for (task, mark) in Task::ALL.into_iter().zip(marks) {
            accuracies.add(format!("{}, whole", task.name()), 100.0 * mark.accuracy);
        }
        let mut probes = Vec::new();
        for task in Task::ALL {
            let batches = loader(data.probe(task), &device.clone().autodiff());
            let batches = batches.iter().collect::<Result<Vec<_>, _>>();
            probes.push((task.name(), batches.map_err(|e| e.to_string())?));
        }
        let seen = see(&model, &heads, probes)?;
        let (_, of_heads) = setting.truth_of_heads(&model, &seen)?;
        for report in of_heads
            .iter()
            .chain(&setting.truth_of_channels(&model, &seen)?)
        {
            for row in &report.scores {
                let name = format!("{}, {}: {}", report.task, report.what, row.score);
                correlations.add(name, row.spearman.unwrap_or(f64::NAN));
            }
        }
        for row in pruned(&setting, &model, &seen)? {
            let share = 100.0 * row.share;
            let name = format!("without {share:.0} % of {}: {}", row.what, row.score);
            increases.add(name.clone(), row.increase);
            for (task, mark) in Task::ALL.into_iter().zip(row.marks) {
                let name = format!("{}, {name}", task.name());
                accuracies.add(name, 100.0 * mark.accuracy);
            }
        }
        println!("seed {seed} done");
    }
    let count = seeds.count();
    heading(&format!(
        "Rank correlation with measured ablation: median (range) over {count} seeds"
    ));
    correlations.print(2);
    heading(&format!(
        "Loss increase, both tasks: median (range) over {count} seeds"
    ));
    increases.print(3);
    heading(&format!("Accuracy in %: median (range) over {count} seeds"));
    accuracies.print(1);
    Ok(())
}
