//! Every group of a task, from the most to the least important.

use std::collections::BTreeMap;
use std::fmt;

use burn::config::Config;
use fisher_core::gradient::ContributionUnit;
use fisher_core::grouping::GroupReduction;
use fisher_core::moments::{
    ConfidenceInterval, FEWEST_FOR_INTERVAL, FEWEST_FOR_TRUST, IntervalMethod,
};
use fisher_core::provenance::Provenance;
use fisher_core::statistics::Statistics;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_argument, check_level};
use crate::report::{bounded, finite, if_finite};

/// Version of the form of [`RankingReport`].
const SCHEMA: u64 = 2;

/// Configuration of [`Ranking`].
#[derive(Config, Debug)]
pub struct RankingConfig {
    /// Groups listed; the ranking itself is of all.
    #[config(default = 20)]
    pub top: usize,
    /// Level of the confidence intervals.
    #[config(default = 0.95)]
    pub level: f64,
    /// How intervals are had. Groups keep no third moment, so that Hall's are the log-effective ones.
    #[config(default = "IntervalMethod::LogEffective")]
    pub method: IntervalMethod,
    /// Shares of the mass for which the smallest set of groups is counted.
    #[config(default = "vec![0.5, 0.9, 0.99]")]
    pub masses: Vec<f64>,
}

impl RankingConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] unless the level is between 0 and 1, and every mass from 0 to 1.
    pub fn init(&self) -> Result<Ranking> {
        check_level(self.level)?;
        for &mass in &self.masses {
            let fits = (0.0..=1.0).contains(&mass);
            check_argument(fits, "masses", "between 0 and 1", mass)?;
        }
        Ok(Ranking {
            config: self.clone(),
        })
    }
}

/// Ranks groups by falling F, ties by (path, label, index): total and reproducible.
#[derive(Debug, Clone)]
pub struct Ranking {
    config: RankingConfig,
}

/// One group in a ranking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedGroup {
    /// Path of the parameter.
    pub path: String,
    /// What the groups are.
    pub label: String,
    /// Which of them.
    pub index: usize,
    /// Its elements.
    pub elements: usize,
    /// F of the group, as it was reduced: a mean over its elements, or a sum.
    pub fisher: f64,
    /// Its density: F of an element, on average.
    pub density: f64,
    /// Standard error of `fisher`; `None` for fewer than two samples, where samples are in clusters, or
    /// beyond the range of what it was accumulated in.
    pub standard_error: Option<f64>,
    /// Effective samples that it rests on, `(Σ C)² / Σ C²`; `None` likewise.
    pub effective: Option<f64>,
    /// Confidence interval of `fisher`; `None` likewise, and below 5 effective samples.
    pub interval: Option<ConfidenceInterval>,
    /// What its elements have of the trace of all groups; `None` where that is 0.
    pub share: Option<f64>,
    /// The same within its layer.
    pub share_of_layer: Option<f64>,
}

/// The fewest groups that hold a share of the mass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MassSet {
    /// The share.
    pub mass: f64,
    /// How many groups hold it; `None` where the mass is 0.
    pub groups: Option<usize>,
}

/// The ranking of a task's groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankingReport {
    /// Version of this form.
    pub schema: u64,
    /// The task.
    pub task: String,
    /// Where the statistics come from.
    pub provenance: Provenance,
    /// Level of the intervals.
    pub level: f64,
    /// How the intervals were had.
    pub method: IntervalMethod,
    /// The trace: `Σ F` over the elements of all groups.
    pub total: f64,
    /// The number of groups.
    pub groups: usize,
    /// The first of the ranking.
    pub top: Vec<RankedGroup>,
    /// Share of the total, by `{path}|{label}`; empty where the total is 0.
    pub shares: BTreeMap<String, f64>,
    /// The trace by layer.
    pub layers: BTreeMap<String, f64>,
    /// The smallest sets of groups that hold a share of the trace.
    pub mass_sets: Vec<MassSet>,
    /// What a reader must know.
    pub warnings: Vec<String>,
}

impl Ranking {
    /// Rank the groups of `task`.
    ///
    /// # Errors
    /// [`Error::NotCollected`] without grouped statistics, [`Error::NoSamples`] for a task
    /// without samples, [`Error::Argument`] for a share of the mass that is none,
    /// [`Error::OutOfRange`]; errors of the statistics.
    pub fn forward<C: ContributionUnit>(
        &self,
        statistics: &Statistics<C>,
        task: &str,
    ) -> Result<RankingReport> {
        let config = &self.config;
        let mut ranked = Vec::new();
        let mut by_key: BTreeMap<String, f64> = BTreeMap::new();
        let mut layers: BTreeMap<String, f64> = BTreeMap::new();
        let layer_of = |path: &str| {
            statistics
                .totals()
                .layer_of(path)
                .unwrap_or(path)
                .to_owned()
        };
        let of_task = statistics.task(task)?;
        let means = statistics.provenance().reduction == GroupReduction::Mean;
        // What accumulators of groups say of errors is of independent samples.
        let independent = !of_task.has_clusters();
        for (path, parameter) in of_task.parameters() {
            for (grouping, welford) in parameter.groups() {
                let read = welford.read()?;
                let mut sum = 0.0;
                for (index, elements) in grouping.sizes().into_iter().enumerate() {
                    let estimate = read
                        .estimate(index)
                        .ok_or_else(|| Error::no_samples(task))?;
                    let size = elements as f64;
                    let fisher = estimate.mean;
                    let density = if means { fisher } else { fisher / size };
                    sum += density * size;
                    let known =
                        |value: Option<f64>| value.filter(|_| independent).and_then(if_finite);
                    ranked.push((
                        density * size,
                        RankedGroup {
                            path: path.into(),
                            label: grouping.label().into(),
                            index,
                            elements,
                            fisher,
                            density,
                            standard_error: known(estimate.standard_error),
                            effective: known(estimate.effective),
                            interval: None,
                            share: None,
                            share_of_layer: None,
                        },
                        estimate,
                    ));
                }
                let sum = finite(sum, path)?;
                by_key.insert(format!("{path}|{}", grouping.label()), sum);
                *layers.entry(layer_of(path)).or_default() += sum;
            }
        }
        if ranked.is_empty() {
            return Err(Error::not_collected("groups", "collect with `grouped`"));
        }
        let position = |g: &RankedGroup| (g.path.clone(), g.label.clone(), g.index);
        ranked.sort_by(|(_, a, _), (_, b, _)| {
            let by_score = b.fisher.total_cmp(&a.fisher);
            by_score.then_with(|| position(a).cmp(&position(b)))
        });
        let total = finite(by_key.values().sum(), task)?;
        let share = |part: f64, of: f64| (of > 0.0).then(|| part / of);
        let mut sums: Vec<f64> = ranked.iter().map(|(sum, ..)| *sum).collect();
        sums.sort_by(|a, b| b.total_cmp(a));
        let mass_sets = config.masses.iter().map(|&mass| MassSet {
            mass,
            groups: share(0.0, total).map(|_| smallest(&sums, mass * total)),
        });
        let mass_sets = mass_sets.collect();
        let groups = ranked.len();
        ranked.truncate(config.top);
        let top = ranked.into_iter().map(|(sum, mut group, estimate)| {
            if independent {
                let interval = estimate.interval(config.level, config.method)?;
                group.interval = interval.and_then(bounded);
            }
            group.share = share(sum, total);
            group.share_of_layer = share(sum, layers[&layer_of(&group.path)]);
            Ok(group)
        });
        let top = top.collect::<Result<Vec<_>>>()?;
        let warnings = warnings(&top, independent);
        Ok(RankingReport {
            schema: SCHEMA,
            task: task.into(),
            provenance: statistics.provenance().clone(),
            level: config.level,
            method: config.method,
            total,
            groups,
            top,
            shares: by_key
                .into_iter()
                .filter_map(|(key, sum)| Some((key, share(sum, total)?)))
                .collect(),
            layers,
            mass_sets,
            warnings,
        })
    }
}

/// How many of the largest it takes to hold `mass`.
fn smallest(sums: &[f64], mass: f64) -> usize {
    let mut held = 0.0;
    let enough = sums.iter().position(|sum| {
        held += sum;
        held >= mass
    });
    enough.map_or(sums.len(), |last| last + 1)
}

fn warnings(top: &[RankedGroup], independent: bool) -> Vec<String> {
    if !independent {
        return vec![
            "samples are in clusters, and groups are accumulated sample by sample: their errors are \
             not known (those of whole layers and heads are)"
                .into(),
        ];
    }
    let below = |limit: f64| {
        let few =
            |group: &&RankedGroup| group.fisher > 0.0 && group.effective.is_some_and(|n| n < limit);
        top.iter().filter(few).count()
    };
    if below(FEWEST_FOR_TRUST) == 0 {
        return Vec::new();
    }
    vec![format!(
        "{} of the {} groups listed rest on fewer than {FEWEST_FOR_TRUST} effective samples: other \
         samples could change their F much; {} have no interval because they rest on fewer than {FEWEST_FOR_INTERVAL}",
        below(FEWEST_FOR_TRUST),
        top.len(),
        below(FEWEST_FOR_INTERVAL)
    )]
}

impl fmt::Display for RankingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} groups, trace {:.3e}, by F of a group; whether neighbours would change places with other \
             samples is not tested",
            self.task, self.groups, self.total
        )?;
        writeln!(
            f,
            "{:>4} {:<48} {:>10}  {:>23}  {:>6}  {:>7}",
            "",
            "",
            "F",
            format!("{:.0} % interval", 100.0 * self.level),
            "n_eff",
            "share"
        )?;
        for (i, group) in self.top.iter().enumerate() {
            let or_dash = |x: Option<String>| x.unwrap_or_else(|| "–".into());
            let interval = group.interval;
            writeln!(
                f,
                "{:>4} {:<48} {:>10.3e}  {:>23}  {:>6}  {:>7}",
                i + 1,
                format!("{} {} {}", group.path, group.label, group.index),
                group.fisher,
                or_dash(interval.map(|c| format!("{:.3e} … {:.3e}", c.lower, c.upper))),
                or_dash(group.effective.map(|n| format!("{n:.1}"))),
                or_dash(group.share.map(|share| format!("{:.1} %", 100.0 * share))),
            )?;
        }
        let sets = self.mass_sets.iter().map(|set| {
            let groups = set.groups.map_or("–".into(), |n| n.to_string());
            format!("{:.0} % of the trace in {groups}", 100.0 * set.mass)
        });
        write!(f, "  {}", sets.collect::<Vec<_>>().join(", "))?;
        for warning in &self.warnings {
            write!(f, "\n  Note: {warning}.")?;
        }
        Ok(())
    }
}
