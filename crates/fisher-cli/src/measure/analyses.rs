//! Every analysis of one or two tasks.

use fisher_core::model::Role;
use fisher_core::statistics::{Statistics, TaskStatistics};
use fisher_core::store::GradientStore;
use fisher_metrics::Error;
use fisher_metrics::conflicts::{ConflictReport, ConflictsConfig};
use fisher_metrics::damping::Ridge;
use fisher_metrics::importance::{ImportanceConfig, ImportanceReport};
use fisher_metrics::interference::{InterferenceConfig, InterferenceReport};
use fisher_metrics::pruning::{
    ComparisonConfig, ComparisonReport, Masks, OverlapConfig, OverlapReport, PruningConfig, Scope,
    Scores, Suggestion,
};
use fisher_metrics::ranking::{RankingConfig, RankingReport};

use super::uses::Uses;
use crate::say::say;

/// Which analyses are wanted, and how.
#[derive(Debug, Clone)]
pub struct Analyses {
    /// Up to which phase: 2 importance, 3 masks, 4 overlap, 5 conflicts, 6 interference.
    pub phases: Vec<u8>,
    /// Shares of groups that masks remove.
    pub sparsities: Vec<f64>,
    /// Settings of interference, with the text that named them.
    pub interference: Vec<(String, InterferenceConfig)>,
    /// Bytes to work with.
    pub memory: usize,
    /// Seed of relabellings.
    pub seed: u64,
    /// Whether to show progress.
    pub progress: bool,
    /// Whether numbers of all pairs of samples are wanted; a few are kept anyhow, to be drawn.
    pub pairs: bool,
}

/// Gives the weights of the parameter of that name, which has so many.
pub type ReadWeights<'a> = &'a dyn Fn(&str, usize) -> Result<Vec<f64>, Error>;

/// As many pairs of samples are kept, whether they are wanted or not.
pub(crate) const DRAWN: usize = 64 * 64;

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Phase 2, of each task.
    pub importance: Vec<ImportanceReport>,
    /// Phase 2 over all groups, of each task.
    pub ranking: Vec<RankingReport>,
    /// How alike the tasks' shares are.
    pub comparison: Option<ComparisonReport>,
    /// Phase 3: task, scope and sparsity, masks of groups.
    pub masks: Vec<(String, String, Masks)>,
    /// Phase 3: task, masks of single weights of matrices by ½Fθ², half removed.
    pub brain_damage: Vec<(String, Masks)>,
    /// Phase 4, by scope and sparsity.
    pub overlap: Vec<(String, OverlapReport)>,
    /// Why overlap has no halves of tasks beside it, where it has none.
    pub without_halves: Option<String>,
    /// What all overlaps suggest together.
    pub suggestion: Option<Suggestion>,
    /// Phase 5: `raw` and `fisher` (whitened), by parameter.
    pub conflicts: Vec<(&'static str, ConflictReport)>,
    /// Phase 6, by settings.
    pub interference: Vec<(String, InterferenceReport)>,
    /// Phase 7.
    pub uses: Uses,
}

/// Scores of halves of each of two tasks, split by split.
type Halves = [Vec<[Scores; 2]>; 2];

/// Ways in which samples are halved, to see how far a task agrees with itself.
const SPLITS: usize = 10;

impl Analyses {
    fn wants(&self, phase: u8) -> bool {
        self.phases.contains(&phase)
    }

    /// Analyze the tasks of `statistics` and `store`.
    ///
    /// # Errors
    /// What an analysis refused.
    pub fn run(
        &self,
        tasks: &[String],
        statistics: &Statistics,
        weights: ReadWeights<'_>,
        store: Option<&GradientStore>,
    ) -> Result<Findings, Error> {
        let mut findings = Findings::default();
        for task in tasks {
            if self.wants(2) {
                let importance = ImportanceConfig::new().init()?;
                let ranking = RankingConfig::new().init()?;
                findings
                    .importance
                    .push(importance.forward(statistics, task)?);
                findings.ranking.push(ranking.forward(statistics, task)?);
            }
            if self.wants(3) && by_element(statistics, task)? {
                let half = PruningConfig::new(0.5).with_protected_roles(Vec::new());
                let roles = [Role::Matrix, Role::Embedding];
                let masks = half
                    .init()?
                    .by_brain_damage(statistics, task, &roles, weights)?;
                findings.brain_damage.push((task.clone(), masks));
            }
        }
        if self.wants(3) || self.wants(4) {
            self.prune(tasks, statistics, store, &mut findings)?;
        }
        let [a, b] = tasks else {
            return Ok(findings);
        };
        if self.wants(2) {
            let scores = |task: &String| Scores::grouped(statistics, task);
            let comparison = ComparisonConfig::new().init();
            findings.comparison = Some(comparison.forward(&scores(a)?, &scores(b)?)?);
        }
        if let Some(store) = store {
            self.collide([a, b], store, &mut findings)?;
        }
        Ok(findings)
    }

    fn prune(
        &self,
        tasks: &[String],
        statistics: &Statistics,
        store: Option<&GradientStore>,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let scores = tasks.iter().map(|task| Scores::grouped(statistics, task));
        let scores = scores.collect::<Result<Vec<_>, _>>()?;
        let halves = match (store, tasks) {
            (Some(store), [_, _]) if self.wants(4) => Some(self.halves(tasks, &scores, store)?),
            (None, [_, _]) if self.wants(4) => Some(Err(
                "gradients of samples were not kept (--keep-gradients keeps them)".into(),
            )),
            _ => None,
        };
        let halves = halves.and_then(|halves| {
            let why = match halves {
                Ok(halves) => return Some(halves),
                Err(why) => why,
            };
            let said = format!("halves of tasks are left out of the overlap: {why}");
            say!("  {said}");
            findings.without_halves = Some(said);
            None
        });
        for (scope, name) in [(Scope::Global, "global"), (Scope::Tensor, "tensor")] {
            for sparsity in &self.sparsities {
                let key = format!("{name}@{sparsity}");
                let pruning = PruningConfig::new(*sparsity)
                    .with_scope(scope)
                    .with_protected_roles(Vec::new())
                    .init()?;
                let mut of_tasks = Vec::new();
                for scores in &scores {
                    of_tasks.push(pruning.forward(scores)?);
                }
                if let (true, [a, b]) = (self.wants(4), &*of_tasks) {
                    let overlap = OverlapConfig::new().init()?;
                    let report = match &halves {
                        Some(halves) => {
                            let [of_a, of_b] = halves.each_ref().map(|splits| {
                                let masks = splits.iter().map(|[first, second]| {
                                    Ok([pruning.forward(first)?, pruning.forward(second)?])
                                });
                                masks.collect::<Result<Vec<_>, Error>>()
                            });
                            overlap.forward_with_halves([a, b], [&of_a?, &of_b?])?
                        }
                        None => overlap.forward(a, b)?,
                    };
                    findings.overlap.push((key.clone(), report));
                }
                if self.wants(3) {
                    let masks = tasks.iter().cloned().zip(of_tasks);
                    let masks = masks.map(|(task, masks)| (task, key.clone(), masks));
                    findings.masks.extend(masks);
                }
            }
        }
        let suggestion = Suggestion::of(findings.overlap.iter().map(|(_, report)| report));
        findings.suggestion = match tasks {
            [a, b] => {
                let [n, m] = [statistics.task(a)?, statistics.task(b)?].map(TaskStatistics::count);
                suggestion.map(|suggestion| suggestion.from_samples([n, m]))
            }
            _ => suggestion,
        };
        Ok(())
    }

    /// The scores of halves of both tasks, or why there are none.
    fn halves(
        &self,
        tasks: &[String],
        scores: &[Scores],
        store: &GradientStore,
    ) -> Result<Result<Halves, String>, Error> {
        let kept = |scores: &Scores| {
            let mut sets = scores.sets().iter();
            sets.all(|set| store.catalogue().get(set.path()).is_some())
        };
        let numbers: usize = scores.iter().map(|s| 3 * (SPLITS + 1) * s.count()).sum();
        let few = |task: &String| store.samples(task).len() < 4;
        if !scores.iter().all(kept) {
            return Ok(Err(
                "gradients of some parameters were not kept (--compare all keeps them)".into(),
            ));
        }
        if let Some(task) = tasks.iter().find(|task| few(task)) {
            return Ok(Err(format!("{task} has fewer than 4 samples")));
        }
        if 8 * numbers > self.memory {
            let size = 8.0 * numbers as f64 / 1e9;
            return Ok(Err(format!(
                "their scores are {size:.1} GB, more than --memory"
            )));
        }
        let halves = |at: usize| match scores[at].halves(store, &tasks[at], SPLITS, self.seed) {
            // All of one cluster.
            Err(Error::TooFewSamples { .. }) => Ok(None),
            found => found.map(Some),
        };
        Ok(match (halves(0)?, halves(1)?) {
            (Some(a), Some(b)) => Ok([a, b]),
            (None, _) => Err(format!("all samples of {} are of one cluster", tasks[0])),
            (_, None) => Err(format!("all samples of {} are of one cluster", tasks[1])),
        })
    }

    fn collide(
        &self,
        tasks: [&String; 2],
        store: &GradientStore,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let tasks = tasks.map(String::as_str);
        let pairs: usize = tasks.iter().map(|task| store.samples(task).len()).product();
        let keep_pairs = self.pairs || pairs <= DRAWN;
        if self.wants(5) {
            for (space, whitening) in [("raw", None), ("fisher", Some(Ridge::new()))] {
                let conflicts = ConflictsConfig::new()
                    .with_whitening(whitening)
                    .with_seed(self.seed)
                    .with_memory(self.memory)
                    .with_progress(self.progress)
                    .with_keep_pairs(keep_pairs);
                let report = conflicts.init()?.forward(store, tasks)?;
                findings.conflicts.push((space, report));
            }
        }
        let heads = store.heads().attention();
        if self.wants(6) && !heads.is_empty() {
            for (name, config) in &self.interference {
                let config = config
                    .clone()
                    .with_memory(self.memory)
                    .with_progress(self.progress)
                    .with_keep_scores(self.pairs);
                let report = config.init()?.forward(store, tasks)?;
                findings.interference.push((name.clone(), report));
            }
        }
        Ok(())
    }
}

/// Whether any matrix was measured element by element.
fn by_element(statistics: &Statistics, task: &str) -> Result<bool, Error> {
    let matrix = |path: &str| !matches!(statistics.role(path), Some(Role::Vector) | None);
    let mut parameters = statistics.task(task)?.parameters();
    Ok(parameters.any(|(path, parameter)| matrix(path) && parameter.elementwise().is_some()))
}
