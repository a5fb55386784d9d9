//! Merging and elastic weight consolidation, with diagonal Fishers and with Kronecker products, over some seeds.
//!
//! `cargo bench -p fisher-examples --bench join-and-keep -- --help`

use std::collections::BTreeMap;

use burn::data::dataloader::batcher::Batcher;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use clap::Parser;
use fisher_core::factors::FactorsConfig;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_examples::model::{CausalTransformer, CausalTransformerConfig};
use fisher_examples::tasks::{CONTEXT, Data, Item, Task, TaskBatcher, VOCABULARY};
use fisher_examples::training::marks;
use fisher_metrics::curvature::kronecker::Kronecker;
use fisher_train::apply::{
    Ewc, EwcConfig, FisherScale, KroneckerMergeConfig, KroneckerSource, MergeConfig, MergeSource,
};
use fisher_train::capture::CaptureConfig;
use fisher_train::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;

/// Merge a model of each of two tasks, and learn one task after the other, by several Fishers.
#[derive(Parser, Debug)]
struct Arguments {
    /// Seeds of weights, data and batches
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Steps that both tasks are learnt together before they part
    #[arg(long, default_value_t = 120)]
    together: usize,
    /// Steps of each task alone
    #[arg(long, default_value_t = 300)]
    alone: usize,
    /// Strengths of the penalty to choose from
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000,10000")]
    strengths: Vec<f64>,
    /// ε of Kronecker products, as multiples of their mean eigenvalues
    #[arg(long, value_delimiter = ',', default_value = "0.001,0.1,1,10")]
    epsilons: Vec<f64>,
    /// `merge` or `keep` alone
    #[arg(long)]
    only: Option<String>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

struct School {
    data: Data,
    device: Device,
    seed: u64,
}

impl School {
    fn items(&self, tasks: &[Task]) -> Vec<Item> {
        let items = self.data.train.iter();
        items
            .filter(|item| tasks.contains(&item.task))
            .cloned()
            .collect()
    }

    fn teach(
        &self,
        mut model: CausalTransformer,
        tasks: &[Task],
        steps: usize,
        ewc: Option<&Ewc>,
    ) -> Fallible<CausalTransformer> {
        let items = self.items(tasks);
        let mut optimizer = AdamWConfig::new()
            .with_beta_2(0.98)
            .with_weight_decay(0.0)
            .init();
        for step in 0..steps {
            let random = &mut StdRng::seed_from_u64(self.seed << 32 | step as u64);
            let places = index::sample(random, items.len(), 64);
            let chosen = places.into_iter().map(|at| items[at].clone()).collect();
            let batch = TaskBatcher.batch(chosen, &self.device);
            let mut loss: Tensor<1> = model.sample_losses(&batch).means().mean();
            if let Some(ewc) = ewc {
                loss = ewc.penalty(&model)?.into_iter().fold(loss, Tensor::add);
            }
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(3e-3, model, gradients);
        }
        Ok(model)
    }

    /// The Fishers of a task that a model has learnt.
    fn fishers(&self, model: &CausalTransformer, task: Task) -> Fallible<Fishers> {
        let items = self.data.probe(task);
        let mut statistics: Statistics = StatisticsConfig::new().with_grouped(false).init(model)?;
        let mut factors = FactorsConfig::new().init(model)?;
        let paths: Vec<String> = statistics.paths().map(str::to_owned).collect();
        let mut capture = CaptureConfig::new().init(model, paths.iter().map(String::as_str))?;
        let batches: Vec<_> = items
            .chunks(64)
            .map(|items| TaskBatcher.batch(items.to_vec(), &self.device))
            .collect();
        for batch in &batches {
            capture.accumulate(batch, task.name(), (&mut statistics, &mut factors))?;
        }
        let kfac = Kronecker::of(&factors, task.name())?;
        let mut corrections = kfac.corrections_without_errors(&self.device)?;
        for batch in &batches {
            capture.accumulate(batch, task.name(), &mut corrections)?;
        }
        Ok(Fishers {
            inputs: Kronecker::of_inputs(&factors, task.name())?,
            ekfac: kfac.clone().corrected(&corrections)?,
            kfac,
            statistics,
        })
    }

    /// Accuracy of the task that goes worse, in percent.
    fn worst(&self, model: &CausalTransformer) -> Fallible<f64> {
        let marks = marks(model, &self.data, &self.device)?;
        Ok(100.0 * marks[0].accuracy.min(marks[1].accuracy))
    }
}

struct Fishers {
    statistics: Statistics,
    kfac: Kronecker,
    ekfac: Kronecker,
    inputs: Kronecker,
}

#[derive(Default)]
struct Rows(Vec<String>, BTreeMap<String, Vec<f64>>);

impl Rows {
    fn add(&mut self, name: impl Into<String>, value: f64) {
        let name = name.into();
        eprintln!("{name}: {value:.1}");
        if !self.1.contains_key(&name) {
            self.0.push(name.clone());
        }
        self.1.entry(name).or_default().push(value);
    }

    fn print(&self, title: &str) {
        if self.0.is_empty() {
            return;
        }
        println!("\n{title}\n\n| | median | range |\n|---|--:|--:|");
        for name in &self.0 {
            let mut values = self.1[name].clone();
            values.sort_by(f64::total_cmp);
            let (least, most) = (values[0], values[values.len() - 1]);
            println!(
                "| {name} | {:.1} | {least:.1} to {most:.1} |",
                values[values.len() / 2]
            );
        }
    }
}

fn main() -> Fallible<()> {
    let arguments = Arguments::parse();
    let (mut merged, mut kept) = (Rows::default(), Rows::default());
    for seed in 0..arguments.seeds {
        let device = Device::flex().autodiff();
        device.seed(seed);
        let school = School {
            data: Data::generate([3000, 200, 256], 100 + seed),
            device: device.clone(),
            seed,
        };
        let fresh = CausalTransformerConfig::new(VOCABULARY, CONTEXT).init(&device);
        let base = school.teach(fresh, &Task::ALL, arguments.together, None)?;
        let models =
            Task::ALL.map(|task| school.teach(base.clone(), &[task], arguments.alone, None));
        let [first, second] = models;
        let models = [first?, second?];
        let fishers = [
            school.fishers(&models[0], Task::ALL[0])?,
            school.fishers(&models[1], Task::ALL[1])?,
        ];
        let wanted = |name: &str| arguments.only.as_deref().is_none_or(|only| only == name);
        if wanted("merge") {
            merge(&school, &arguments, &models, &fishers, &mut merged)?;
        }
        if wanted("keep") {
            keep(&school, &arguments, &models[0], &fishers[0], &mut kept)?;
        }
    }
    let seeds = arguments.seeds;
    merged.print(&format!(
        "Two models of a task each, merged: accuracy on the worse task, {seeds} seeds"
    ));
    kept.print(&format!(
        "The second task learnt after the first: accuracy on the worse task, the best of strengths {:?}, {seeds} seeds",
        arguments.strengths
    ));
    Ok(())
}

fn merge(
    school: &School,
    arguments: &Arguments,
    models: &[CausalTransformer; 2],
    fishers: &[Fishers; 2],
    rows: &mut Rows,
) -> Fallible<()> {
    for scale in [FisherScale::None, FisherScale::Trace, FisherScale::Norm] {
        let source = |at: usize| MergeSource {
            model: &models[at],
            statistics: &fishers[at].statistics,
            task: Task::ALL[at].name(),
            weight: 1.0,
        };
        let merging = MergeConfig::new().with_scale(scale).init()?;
        let found = merging.forward(&[source(0), source(1)])?;
        rows.add(
            format!("diagonal, scale {scale:?}"),
            school.worst(&found.model)?,
        );
        for name in ["KFAC", "EKFAC"] {
            let of = |at: usize| match name {
                "KFAC" => &fishers[at].kfac,
                _ => &fishers[at].ekfac,
            };
            let source = |at: usize| KroneckerSource {
                model: &models[at],
                fisher: of(at),
                weight: 1.0,
            };
            for &epsilon in &arguments.epsilons {
                let merging = KroneckerMergeConfig::new()
                    .with_scale(scale)
                    .with_epsilon(epsilon)
                    .with_iterations(2000);
                let found = merging.init()?.forward(&[source(0), source(1)])?;
                let name = format!("{name}, scale {scale:?}, ε {epsilon}");
                rows.add(name, school.worst(&found.model)?);
            }
        }
    }
    let source = |at: usize| KroneckerSource {
        model: &models[at],
        fisher: &fishers[at].inputs,
        weight: 1.0,
    };
    for &epsilon in &arguments.epsilons {
        let merging = KroneckerMergeConfig::new()
            .with_epsilon(epsilon)
            .with_iterations(2000);
        let found = merging.init()?.forward(&[source(0), source(1)])?;
        let name = format!("inputs alone (RegMean), ε {epsilon}");
        rows.add(name, school.worst(&found.model)?);
    }
    // So large an ε that F counts for nothing.
    let plain = KroneckerMergeConfig::new()
        .with_epsilon(1e6)
        .with_scale(FisherScale::Norm);
    let found = plain.init()?.forward(&[source(0), source(1)])?;
    rows.add("plain average", school.worst(&found.model)?);
    Ok(())
}

fn keep(
    school: &School,
    arguments: &Arguments,
    first: &CausalTransformer,
    fishers: &Fishers,
    rows: &mut Rows,
) -> Fallible<()> {
    let second = [Task::ALL[1]];
    let free = school.teach(first.clone(), &second, arguments.alone, None)?;
    rows.add("no penalty", school.worst(&free)?);
    for name in ["diagonal", "KFAC", "EKFAC"] {
        let mut best = f64::NEG_INFINITY;
        for &strength in &arguments.strengths {
            let mut ewc = EwcConfig::new(strength).init()?;
            match name {
                "diagonal" => ewc.protect(&fishers.statistics, Task::ALL[0].name(), first)?,
                "KFAC" => ewc.protect_kronecker(&fishers.kfac, first)?,
                _ => ewc.protect_kronecker(&fishers.ekfac, first)?,
            }
            let model = school.teach(first.clone(), &second, arguments.alone, Some(&ewc))?;
            let worst = school.worst(&model)?;
            eprintln!("  {name} {strength}: {worst:.1}");
            best = best.max(worst);
        }
        rows.add(name, best);
    }
    Ok(())
}
