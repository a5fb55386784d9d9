//! Two algorithmic tasks with known circuits.
//!
//! *Induction*: a run of distinct symbols, then the same run again. After the first symbol of the
//! second run the rest is known to whoever looks up what came after the current symbol before:
//! an induction head, which needs a previous-token head in the layer below (Olsson et al. 2022,
//! "In-context learning and induction heads").
//!
//! *Maximum*: a list of symbols, then `=`, then the largest of them. A head at the `=` that
//! attends to larger symbols more is enough; one layer will do (Gross et al. 2024, "Compact proofs
//! of model performance via mechanistic interpretability").
//!
//! Both use the same symbols, so their embeddings are shared.

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_train::batch::{SampleBatch, SampleMapper};
use fisher_train::labels::IGNORE;
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{RngExt, SeedableRng};

/// Symbols.
pub const SYMBOLS: usize = 31;
/// The token `=`.
pub const EQUALS: usize = SYMBOLS;
/// All tokens.
pub const VOCABULARY: usize = SYMBOLS + 1;
/// Symbols in a run of the induction task.
pub const RUN: std::ops::RangeInclusive<usize> = 5..=8;
/// Symbols in a list of the maximum task.
pub const LIST: std::ops::RangeInclusive<usize> = 4..=8;
/// The longest sample.
pub const CONTEXT: usize = 2 * *RUN.end();

/// A task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A run of symbols, repeated.
    Induction,
    /// The largest symbol of a list.
    Maximum,
}

impl Task {
    /// Both tasks.
    pub const ALL: [Self; 2] = [Self::Induction, Self::Maximum];

    /// The name in statistics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Induction => "induction",
            Self::Maximum => "maximum",
        }
    }
}

/// One sample: tokens, and at each position the token that should come next, or [`IGNORE`].
#[derive(Debug, Clone)]
pub struct Item {
    /// A name.
    pub id: String,
    /// The task.
    pub task: Task,
    /// What goes in.
    pub tokens: Vec<i64>,
    /// What each position should predict, or [`IGNORE`].
    pub labels: Vec<i64>,
}

impl Item {
    fn induction(id: String, rng: &mut StdRng) -> Self {
        let length = rng.random_range(RUN);
        let run = index::sample(rng, SYMBOLS, length);
        let tokens: Vec<i64> = run.iter().chain(run.iter()).map(|s| s as i64).collect();
        // Known are the symbols after the first of the second run.
        let label = |at: usize| match tokens.get(at + 1) {
            Some(&next) if at >= length => next,
            _ => IGNORE,
        };
        Self {
            labels: (0..tokens.len()).map(label).collect(),
            id,
            task: Task::Induction,
            tokens,
        }
    }

    fn maximum(id: String, rng: &mut StdRng) -> Self {
        let length = rng.random_range(LIST);
        let mut tokens: Vec<i64> = (0..length)
            .map(|_| rng.random_range(0..SYMBOLS as i64))
            .collect();
        let mut labels = vec![IGNORE; length];
        labels.extend(tokens.iter().max());
        tokens.push(EQUALS as i64);
        Self {
            id,
            task: Task::Maximum,
            tokens,
            labels,
        }
    }
}

/// Samples to train on and samples held out.
#[derive(Debug, Clone)]
pub struct Data {
    /// Both tasks, to train on.
    pub train: Vec<Item>,
    held_out: [Vec<Item>; 2],
    probe: [Vec<Item>; 2],
}

impl Data {
    /// `train` samples of each task to train on, `held_out` others to mark models on and `probe`
    /// others to collect statistics on, for a seed. What is measured is not what is marked.
    pub fn generate([train, held_out, probe]: [usize; 3], seed: u64) -> Self {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut items = |task: Task, split: &str, count: usize| -> Vec<Item> {
            let item = |i| {
                let id = format!("{}-{split}-{i}", task.name());
                match task {
                    Task::Induction => Item::induction(id, rng),
                    Task::Maximum => Item::maximum(id, rng),
                }
            };
            (0..count).map(item).collect()
        };
        Self {
            train: Task::ALL
                .into_iter()
                .flat_map(|task| items(task, "train", train))
                .collect(),
            held_out: Task::ALL.map(|task| items(task, "held-out", held_out)),
            probe: Task::ALL.map(|task| items(task, "probe", probe)),
        }
    }

    /// The samples of a task to collect statistics on.
    pub fn probe(&self, task: Task) -> &[Item] {
        &self.probe[task as usize]
    }

    /// The samples of a task to mark models on.
    pub fn held_out(&self, task: Task) -> &[Item] {
        &self.held_out[task as usize]
    }
}

/// Samples padded to the longest.
#[derive(Debug, Clone)]
pub struct TaskBatch {
    /// `[samples, positions]`
    pub tokens: Tensor<2, Int>,
    /// What each position should predict, or [`IGNORE`]: `[samples, positions]`
    pub labels: Tensor<2, Int>,
    /// The task of every sample.
    pub tasks: Vec<Task>,
    /// The id of every sample.
    pub ids: Vec<String>,
    lengths: Vec<usize>,
}

impl SampleBatch for TaskBatch {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(self.ids[index].clone())
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self {
            tokens: mapper.tensor(&self.tokens),
            labels: mapper.tensor(&self.labels),
            tasks: mapper.list(&self.tasks),
            ids: mapper.list(&self.ids),
            lengths: mapper.list(&self.lengths),
        }
    }

    fn sample(&self, index: usize) -> Self {
        // Without its padding: attention is causal, so what comes after changes nothing.
        let sample = SampleMapper::cut(self, index);
        let length = self.lengths[index];
        Self {
            tokens: sample.tokens.narrow(1, 0, length),
            labels: sample.labels.narrow(1, 0, length),
            ..sample
        }
    }
}

/// Makes a [`TaskBatch`] of items.
#[derive(Debug, Clone, Copy)]
pub struct TaskBatcher;

impl Batcher<Item, TaskBatch> for TaskBatcher {
    fn batch(&self, items: Vec<Item>, device: &Device) -> TaskBatch {
        let lengths: Vec<usize> = items.iter().map(|item| item.tokens.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let matrix = |of: fn(&Item) -> &Vec<i64>, padding: i64| {
            let rows = items.iter().flat_map(|item| {
                let padded = of(item).iter().copied().chain(std::iter::repeat(padding));
                padded.take(longest)
            });
            let data = TensorData::new(rows.collect::<Vec<i64>>(), [items.len(), longest]);
            Tensor::from_data(data, device)
        };
        TaskBatch {
            tokens: matrix(|item| &item.tokens, 0),
            labels: matrix(|item| &item.labels, IGNORE),
            tasks: items.iter().map(|item| item.task).collect(),
            ids: items.iter().map(|item| item.id.clone()).collect(),
            lengths,
        }
    }
}
