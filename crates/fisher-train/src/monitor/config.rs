//! The settings of a hook, and what it captures.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use burn::config::Config;
use burn::module::ParamGroup;
use fisher_core::model::Catalogue;
use fisher_core::statistics::StatisticsConfig;
use fisher_core::store::GradientStoreConfig;
use serde::{Deserialize, Serialize};

use super::noise_scale::NoiseScaleConfig;
use super::schedule::Schedule;
use crate::batch::{SampleBatch, ids};
use crate::capture::CaptureConfig;
use crate::error::{Error, Result};

/// Configuration of a [`FisherHook`](crate::monitor::FisherHook).
#[derive(Config, Debug)]
pub struct HookConfig {
    /// When to capture.
    pub schedule: Schedule,
    /// What to accumulate: unless said, groups, layers and heads, and no elements.
    #[config(default = "StatisticsConfig::new().with_elementwise(false)")]
    pub statistics: StatisticsConfig,
    /// The engine that takes gradients.
    #[config(default = "CaptureConfig::new()")]
    pub capture: CaptureConfig,
    /// β of a moving average over captures.
    pub ema: Option<f64>,
    /// Estimate the gradient noise scale at each capture.
    pub noise: Option<NoiseScaleConfig>,
    /// Compare the gradients of these parameters across tasks at each capture. All samples'
    /// gradients of them are in memory then: attention alone ([`HeadLayout::group`](fisher_core::grouping::HeadLayout::group)) is less.
    pub compare: Option<ParamGroup>,
    /// Keep the gradients of each capture whole: in `step-N` under the store's folder, in place of
    /// what an earlier run left there for this step, or those of the last capture in memory where
    /// it has none.
    pub store: Option<GradientStoreConfig>,
    /// Put the means of all groups in the history, beside layers and heads.
    #[config(default = false)]
    pub groups_in_history: bool,
    /// Where to write: `history.jsonl` as training goes; at its end `statistics.safetensors` (over
    /// all captures), `latest.safetensors` (of the last) and `averages.safetensors`. A new run
    /// begins them anew once it captures; one that never does leaves them as they are.
    pub folder: Option<PathBuf>,
    /// The folder of the learner's checkpoints, `checkpoint` in that of `SupervisedTraining`: the
    /// state of the hook is saved beside them and comes back with them.
    pub checkpoints: Option<PathBuf>,
    /// The workers that call [`FisherHook::step`](crate::monitor::FisherHook::step) once in every step.
    #[config(default = 1)]
    pub workers: usize,
    /// What a [`FisherStrategy`](crate::monitor::FisherStrategy) does when a capture fails.
    #[config(default = "OnFailure::Stop")]
    pub on_failure: OnFailure,
}

/// What happens to training when a capture fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It stops, with the error in its result.
    #[default]
    Stop,
    /// It goes on without captures. The error is logged, and [`FisherHook::failure`](crate::monitor::FisherHook::failure) has it.
    Detach,
}

/// A name and batches for each task.
pub type Probes<B> = Vec<(String, Vec<B>)>;

/// What is captured.
#[derive(Debug)]
#[non_exhaustive]
pub enum HookSource<B> {
    /// The batch that is about to be trained on, as a task of this name.
    InFlight(String),
    /// The same samples each time.
    Probes(Probes<B>),
}

impl<B> From<Probes<B>> for HookSource<B> {
    fn from(probes: Probes<B>) -> Self {
        Self::Probes(probes)
    }
}

impl<B> From<&str> for HookSource<B> {
    /// Batches in flight, as a task of this name.
    fn from(task: &str) -> Self {
        Self::InFlight(task.into())
    }
}

impl HookConfig {
    /// Capture every so many steps, from the first on.
    pub fn every(steps: u64) -> Self {
        Self::new(Schedule::new().with_every_steps(Some(steps)))
    }

    /// Whether a hook can be made of this.
    pub(super) fn check<B: SampleBatch>(&self, source: &HookSource<B>) -> Result<()> {
        let refuse = |reason: &str| {
            Err(Error::Hook {
                reason: reason.into(),
            })
        };
        if self.schedule.has_zero() || self.workers == 0 {
            return refuse("an interval or number of workers of 0; give one above 0");
        }
        match source {
            HookSource::InFlight(_) if self.schedule.at_end => {
                refuse("no batch is in flight at the end of training; capture probes there")
            }
            HookSource::InFlight(_) if self.workers > 1 && self.ema.is_some() => refuse(
                "a moving average depends on the order that workers come in; average probes, or \
                 train with one worker",
            ),
            HookSource::InFlight(_) if self.workers > 1 && self.store.is_some() => refuse(
                "a store holds the gradients of one batch, and each worker has its own; store \
                 probes, or train with one worker",
            ),
            HookSource::InFlight(_) => Ok(()),
            HookSource::Probes(probes) => {
                let mut seen = HashSet::new();
                for (task, batches) in probes {
                    let mut first = 0;
                    for id in batches.iter().flat_map(|batch| {
                        first += batch.len();
                        ids(batch, first - batch.len())
                    }) {
                        if !seen.insert((task, id.clone())) {
                            return Err(Error::DuplicateSample {
                                task: task.clone(),
                                sample: id,
                            });
                        }
                    }
                }
                if seen.is_empty() {
                    refuse("there is no sample to capture; give at least one probe")
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Paths of the parameters to compare.
    pub(super) fn compared(&self, catalogue: &Catalogue) -> Result<Option<BTreeSet<String>>> {
        let Some(group) = &self.compare else {
            return Ok(None);
        };
        let chosen = catalogue.filter(group)?;
        let paths = chosen.parameters().iter().map(|p| p.path().to_owned());
        Ok(Some(paths.collect()))
    }
}
