//! What is known of the items of a plan.

use super::choose::Item;
use super::source::Source;
use crate::measure::Result;

/// The items of a plan, and how well their scores are known.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Names of the tensors.
    pub names: Vec<String>,
    /// Their levels and costs, means over samples.
    pub items: Vec<Item>,
    /// The score by which each is compared with the others: what is larger deserves a higher level.
    pub scores: Vec<f64>,
    /// An upper bound of the standard error of each score, where nothing is known of single samples: all elements moving together.
    pub bounds: Option<Vec<f64>>,
    /// Scores and costs of single samples.
    pub samples: Option<Sums>,
    /// Independent units (samples or clusters) that the means are of.
    pub units: usize,
}

/// Scores and costs sample by sample. Samples of several tasks are weighed so that the mean over all samples is the mean of the
/// tasks' means.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    /// `[samples][items]`
    pub scores: Vec<Vec<f64>>,
    /// `[samples][items][levels]`
    pub costs: Vec<Vec<Vec<f64>>>,
    /// The cluster of each sample.
    pub clusters: Vec<usize>,
}

impl Scored {
    /// Of no item yet.
    pub(super) fn none(source: &Source) -> Result<Self> {
        Ok(Self {
            names: Vec::new(),
            items: Vec::new(),
            scores: Vec::new(),
            bounds: Some(Vec::new()),
            samples: source.store.as_ref().map(|store| {
                let clusters = source.clusters(store);
                Sums {
                    scores: vec![Vec::new(); clusters.len()],
                    costs: vec![Vec::new(); clusters.len()],
                    clusters,
                }
            }),
            units: source.samples()?,
        })
    }

    /// Take in a matrix: its levels and costs, its score and the bound of that, and, where gradients of samples were kept, score and
    /// costs of each by the weight and the elements of its gradient.
    pub(super) fn take(
        &mut self,
        source: &Source,
        path: &str,
        item: Item,
        (score, bound): (f64, Option<f64>),
        of_sample: impl Fn(f64, &[f32]) -> (f64, Vec<f64>),
    ) -> Result {
        self.names.push(path.into());
        self.items.push(item);
        self.scores.push(score);
        self.bounds = self.bounds.take().zip(bound).map(|(mut all, bound)| {
            all.push(bound);
            all
        });
        if let (Some(store), Some(sums)) = (&source.store, &mut self.samples) {
            source.each_sample(store, path, |i, weight, g| {
                let (score, costs) = of_sample(weight, g);
                sums.scores[i].push(score);
                sums.costs[i].push(costs);
            })?;
        }
        Ok(())
    }

    /// The total cost of each sample at these levels, where samples are known.
    pub fn totals(&self, levels: &[usize]) -> Option<Vec<f64>> {
        let total = |costs: &Vec<Vec<f64>>| {
            let costs = costs.iter().zip(levels);
            costs.map(|(costs, &at)| costs[at]).sum()
        };
        Some(self.samples.as_ref()?.costs.iter().map(total).collect())
    }

    /// The cost at these levels.
    pub fn cost(&self, levels: &[usize]) -> f64 {
        let costs = self.items.iter().zip(levels);
        costs.map(|(item, &at)| item.costs[at]).sum()
    }
}
