//! What is known of the items of a plan.

use super::choose::Item;

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
