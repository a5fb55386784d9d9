//! Every group of a task, from the most to the least important.

use std::collections::BTreeMap;
use std::fmt;

use burn::config::Config;
use fisher_core::gradient::ContributionUnit;
use fisher_core::moments::{ConfidenceInterval, IntervalMethod};
use fisher_core::provenance::Provenance;
use fisher_core::statistics::Statistics;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_argument, check_level};
use crate::report::{bounded, finite, if_finite};

/// Version of the form of [`RankingReport`].
const SCHEMA: u64 = 1;

/// Configuration of [`Ranking`].
#[derive(Config, Debug)]
pub struct RankingConfig {
    /// Groups listed; the ranking itself is of all.
    #[config(default = 20)]
    pub top: usize,
    /// Level of the confidence intervals.
    #[config(default = 0.95)]
    pub level: f64,
    /// Where the intervals' widths come from.
    #[config(default = "IntervalMethod::StudentT")]
    pub distribution: IntervalMethod,
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
    /// F of the group.
    pub fisher: f64,
    /// Standard error; `None` for fewer than two samples, or beyond the range of what it was
    /// accumulated in.
    pub standard_error: Option<f64>,
    /// Confidence interval; `None` likewise.
    pub interval: Option<ConfidenceInterval>,
    /// `F_G / Σ F` over all groups; `None` where that is 0.
    pub share: Option<f64>,
    /// The same within its layer.
    pub share_of_layer: Option<f64>,
    /// Whether the interval lies apart from both neighbours'; `None` without intervals.
    pub resolved: Option<bool>,
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
    /// Where the intervals' widths come from.
    pub distribution: IntervalMethod,
    /// `Σ F` over all groups.
    pub total: f64,
    /// The number of groups.
    pub groups: usize,
    /// The first of the ranking.
    pub top: Vec<RankedGroup>,
    /// Share of the total, by `{path}|{label}`; empty where the total is 0.
    pub shares: BTreeMap<String, f64>,
    /// `Σ F` by layer.
    pub layers: BTreeMap<String, f64>,
    /// The smallest sets that hold a share of the mass.
    pub mass_sets: Vec<MassSet>,
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
        for (path, parameter) in statistics.task(task)?.parameters() {
            for (grouping, welford) in parameter.groups() {
                let read = welford.read()?;
                let mean = read.mean.as_ref();
                let mean = mean.ok_or_else(|| Error::no_samples(task))?;
                let intervals = read.confidence_interval(config.level, config.distribution)?;
                let sum = finite(mean.iter().sum(), path)?;
                by_key.insert(format!("{path}|{}", grouping.label()), sum);
                *layers.entry(layer_of(path)).or_default() += sum;
                ranked.extend(mean.iter().enumerate().map(|(index, &fisher)| {
                    RankedGroup {
                        path: path.into(),
                        label: grouping.label().into(),
                        index,
                        fisher,
                        standard_error: read
                            .standard_error
                            .as_ref()
                            .and_then(|e| if_finite(e[index])),
                        interval: intervals.as_ref().and_then(|all| bounded(all[index])),
                        share: None,
                        share_of_layer: None,
                        resolved: None,
                    }
                }));
            }
        }
        if ranked.is_empty() {
            return Err(Error::not_collected("groups", "collect with `grouped`"));
        }
        let position = |g: &RankedGroup| (g.path.clone(), g.label.clone(), g.index);
        ranked.sort_by(|a, b| {
            let by_score = b.fisher.total_cmp(&a.fisher);
            by_score.then_with(|| position(a).cmp(&position(b)))
        });
        let total = finite(by_key.values().sum(), task)?;
        let share = |part: f64, of: f64| (of > 0.0).then(|| part / of);
        let mass_sets = config.masses.iter().map(|&mass| MassSet {
            mass,
            groups: share(0.0, total).map(|_| smallest(&ranked, mass * total)),
        });
        let mass_sets = mass_sets.collect();
        let groups = ranked.len();
        for i in 0..config.top.min(groups) {
            ranked[i].resolved = resolved(&ranked, i);
            let layer = layers[&layer_of(&ranked[i].path)];
            ranked[i].share = share(ranked[i].fisher, total);
            ranked[i].share_of_layer = share(ranked[i].fisher, layer);
        }
        ranked.truncate(config.top);
        Ok(RankingReport {
            schema: SCHEMA,
            task: task.into(),
            provenance: statistics.provenance().clone(),
            level: config.level,
            distribution: config.distribution,
            total,
            groups,
            top: ranked,
            shares: by_key
                .into_iter()
                .filter_map(|(key, sum)| Some((key, share(sum, total)?)))
                .collect(),
            layers,
            mass_sets,
        })
    }
}

/// How many of the first groups it takes to hold `mass`.
fn smallest(ranked: &[RankedGroup], mass: f64) -> usize {
    let mut sum = 0.0;
    let enough = ranked.iter().position(|group| {
        sum += group.fisher;
        sum >= mass
    });
    enough.map_or(ranked.len(), |last| last + 1)
}

fn resolved(ranked: &[RankedGroup], i: usize) -> Option<bool> {
    let interval = ranked[i].interval?;
    let above = i.checked_sub(1).and_then(|above| ranked[above].interval);
    let below = ranked.get(i + 1).and_then(|below| below.interval);
    Some(
        above.is_none_or(|above| above.lower > interval.upper)
            && below.is_none_or(|below| interval.lower > below.upper),
    )
}

impl fmt::Display for RankingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} groups, Σ F {:.3e}",
            self.task, self.groups, self.total
        )?;
        for (i, group) in self.top.iter().enumerate() {
            let percent =
                |x: Option<f64>| x.map_or("–".into(), |x| format!("{:.1} %", 100.0 * x));
            let error = group
                .standard_error
                .map_or("–".into(), |e| format!("{e:.1e}"));
            let mark = if group.resolved == Some(false) {
                "~"
            } else {
                " "
            };
            writeln!(
                f,
                "{:>4}{mark} {:<48} {:>10.3e} ± {error:>7}  {:>7}",
                i + 1,
                format!("{} {} {}", group.path, group.label, group.index),
                group.fisher,
                percent(group.share),
            )?;
        }
        let sets = self.mass_sets.iter().map(|set| {
            let groups = set.groups.map_or("–".into(), |n| n.to_string());
            format!("{:.0} % of the mass in {groups}", 100.0 * set.mass)
        });
        write!(f, "  {}", sets.collect::<Vec<_>>().join(", "))
    }
}
