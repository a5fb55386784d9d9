//! The steps at which a hook captures.

use burn::config::Config;
use serde::{Deserialize, Serialize};

/// The steps at which a [`FisherHook`](crate::monitor::FisherHook) captures; none unless said.
///
/// A *step* is a batch. Step `s` comes before the weights are trained on batch `s`, the first being
/// 0: its gradients are those of weights that were trained on `s` batches.
#[derive(Config, Debug, PartialEq)]
pub struct Schedule {
    /// Steps 0, k, 2k and so on.
    pub every_steps: Option<u64>,
    /// The first step of epochs 0, k, 2k and so on.
    pub every_epochs: Option<u64>,
    /// These steps.
    #[config(default = "Vec::new()")]
    pub at_steps: Vec<u64>,
    /// After the last step.
    #[config(default = false)]
    pub at_end: bool,
}

/// A point in the course of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrainingPoint {
    /// Batches that the weights were trained on.
    pub step: u64,
    /// Epochs that are over.
    pub epoch: u64,
}

impl Schedule {
    /// Whether to capture at a step; `first` is the first of its epoch.
    pub(crate) fn fires(&self, moment: TrainingPoint, first: bool) -> bool {
        let divides = |every: Option<u64>, n: u64| every.is_some_and(|k| n.is_multiple_of(k));
        divides(self.every_steps, moment.step)
            || (first && divides(self.every_epochs, moment.epoch))
            || self.at_steps.contains(&moment.step)
    }

    /// Whether an interval is 0, which would divide nothing.
    pub(crate) fn has_zero(&self) -> bool {
        self.every_steps == Some(0) || self.every_epochs == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(schedule: &Schedule, steps: u64, epoch_length: u64) -> Vec<u64> {
        let moment = |step| TrainingPoint {
            step,
            epoch: step / epoch_length,
        };
        let fires = |step: &u64| schedule.fires(moment(*step), step.is_multiple_of(epoch_length));
        (0..steps).filter(fires).collect()
    }

    #[test]
    fn each_way_and_all_together() {
        let none = Schedule::new();
        assert!(fired(&none, 20, 5).is_empty());
        let steps = none.clone().with_every_steps(Some(6));
        assert_eq!(fired(&steps, 20, 5), [0, 6, 12, 18]);
        let epochs = none.clone().with_every_epochs(Some(2));
        assert_eq!(fired(&epochs, 20, 5), [0, 10]);
        let at = none.with_at_steps(vec![3, 19, 40]);
        assert_eq!(fired(&at, 20, 5), [3, 19]);
        let all = at.with_every_steps(Some(6)).with_every_epochs(Some(2));
        assert_eq!(fired(&all, 20, 5), [0, 3, 6, 10, 12, 18, 19]);
    }
}
