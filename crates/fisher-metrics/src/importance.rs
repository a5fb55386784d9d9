//! Which layers and heads a task depends on.

use std::fmt;

use burn::config::Config;
use burn::module::Module;
use fisher_core::gradient::ContributionUnit;
use fisher_core::moments::{
    ConfidenceInterval, FEWEST_FOR_INTERVAL, FEWEST_FOR_TRUST, IntervalMethod, MeanEstimate,
    SampleMoments,
};
use fisher_core::provenance::Provenance;
use fisher_core::statistics::{Statistics, TaskStatistics, UnitSums};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_argument, check_level};
use crate::ranks::{MOST_VALUES, RankSet, rank_sets};
use crate::report::{bounded, finite, if_finite};
use crate::shares::{Share, shares};

/// Version of [`ImportanceReport`]'s form.
const SCHEMA: u64 = 2;

/// Configuration of [`Importance`].
#[derive(Config, Debug)]
pub struct ImportanceConfig {
    /// Level of the confidence intervals and of the sets of ranks.
    #[config(default = 0.95)]
    pub level: f64,
    /// How intervals are had.
    #[config(default = "IntervalMethod::Hall")]
    pub method: IntervalMethod,
    /// Bootstrap draws for the sets of ranks.
    #[config(default = 500)]
    pub draws: usize,
    /// Seed of the draws.
    #[config(default = 0)]
    pub seed: u64,
}

impl ImportanceConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] unless the level is between 0 and 1, and some draws are made.
    pub fn init(&self) -> Result<Importance> {
        check_level(self.level)?;
        check_argument(self.draws > 0, "draws", "above 0", 0.0)?;
        Ok(Importance {
            level: self.level,
            method: self.method,
            draws: self.draws,
            seed: self.seed,
        })
    }
}

/// Ranks layers and attention heads by their Fisher trace.
///
/// `F_G = (1/n) Σ_i Σ_(k∈G) C_ik`: the trace of the diagonal Fisher over all elements of a layer
/// or head, in the unit of the contributions. Its error is that of a mean over samples, or over
/// clusters where samples name them. `share = F_G / Σ F` over all layers. Rows fall with F; ties keep the
/// order of the statistics' totals. Which ranks the samples leave open is said by
/// [`rank_sets`].
#[derive(Module, Debug)]
pub struct Importance {
    level: f64,
    #[module(skip)]
    method: IntervalMethod,
    draws: usize,
    #[module(skip)]
    seed: u64,
}

/// The ranking of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImportanceReport {
    /// Version of this form.
    pub schema: u64,
    /// The task.
    pub task: String,
    /// Samples, `n`.
    pub samples: usize,
    /// Clusters of samples, those of one sample included, where some name one.
    pub clusters: Option<u64>,
    /// Active tokens.
    pub tokens: u64,
    /// Where the statistics come from: model, kind, units, seeds.
    pub provenance: Provenance,
    /// Level of the intervals and of the sets of ranks.
    pub level: f64,
    /// How the intervals were had.
    pub method: IntervalMethod,
    /// `Σ F` over all layers.
    pub trace: f64,
    /// Layers by falling F.
    pub layers: Vec<Ranked>,
    /// Attention heads by falling F. Key/value heads that query heads share count to each in equal
    /// parts.
    pub heads: Vec<Ranked>,
    /// The share that all heads together have of the trace; `None` without heads or trace.
    pub attention: Option<f64>,
    /// Ids of samples that look like copies of each other.
    pub copies: Vec<Vec<String>>,
    /// What a reader must know.
    pub warnings: Vec<String>,
}

/// One layer or head in a ranking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Its name.
    pub name: String,
    /// `F_G`, a sum over its elements.
    pub fisher: f64,
    /// Its elements; those of shared key/value heads in equal parts.
    pub elements: f64,
    /// `F_G` over its elements.
    pub density: f64,
    /// Standard error of `F_G`; `None` for fewer than two samples, or beyond the range of float64.
    pub standard_error: Option<f64>,
    /// Effective samples (or clusters) that `F_G` rests on, `(Σ C)² / Σ C²`; `None` likewise.
    pub effective: Option<f64>,
    /// Confidence interval of `F_G`; `None` likewise, and below 5 effective samples.
    pub interval: Option<ConfidenceInterval>,
    /// `F_G / Σ F`, with its interval; `None` where the trace is 0.
    pub share: Option<Share>,
    /// The ranks that the samples leave open, all at once; `None` where the samples' totals are not at
    /// hand.
    pub ranks: Option<RankSet>,
}

impl Importance {
    /// Rank the layers and heads of `task`.
    ///
    /// # Errors
    /// [`Error::NoSamples`] for a task without samples, [`Error::OutOfRange`]; errors of the statistics for a task that
    /// is not there.
    pub fn forward<C: ContributionUnit>(
        &self,
        statistics: &Statistics<C>,
        task: &str,
    ) -> Result<ImportanceReport> {
        let of_task = statistics.task(task)?;
        let totals = statistics.totals();
        let layers = Parts {
            names: totals.layers().to_vec(),
            elements: statistics.layer_elements(),
            moments: of_task.layers(),
            units: of_task.layer_units(),
        };
        let names = totals.heads().iter();
        let names = names.map(|key| format!("{} head {}", key.attention, key.head));
        let heads = Parts {
            names: names.collect(),
            elements: statistics.head_elements(),
            moments: of_task.heads(),
            units: of_task.head_units(),
        };
        let means = layers.moments.mean.as_ref();
        let means = means.ok_or_else(|| Error::no_samples(task))?;
        let trace = finite(means.iter().sum(), task)?;
        let traces = layers.units.as_ref();
        let traces = traces.map(|units| units.sums.iter().map(|row| row.iter().sum()).collect());
        let of_heads: f64 = heads.moments.mean.iter().flatten().sum();
        let clusters = of_task.has_clusters().then_some(layers.moments.units);
        let [layers, heads] = [layers, heads].map(|parts| self.rank(parts, trace, traces.as_ref()));
        let (layers, heads) = (layers?, heads?);
        let copies = of_task.copies();
        Ok(ImportanceReport {
            schema: SCHEMA,
            task: task.into(),
            samples: of_task.count(),
            clusters,
            tokens: of_task.tokens(),
            provenance: statistics.provenance().clone(),
            level: self.level,
            method: self.method,
            trace,
            attention: (!heads.is_empty() && trace > 0.0).then(|| of_heads / trace),
            warnings: warnings(of_task, [&layers, &heads], &copies),
            layers,
            heads,
            copies,
        })
    }

    /// By falling F; the sort is stable, so ties keep the model's order.
    fn rank(&self, parts: Parts, trace: f64, traces: Option<&Vec<f64>>) -> Result<Vec<Ranked>> {
        let Parts {
            names,
            elements,
            moments,
            units,
        } = parts;
        let ranks = units
            .as_ref()
            .and_then(|units| rank_sets(units, self.level, self.draws, self.seed));
        let shares = shares(&moments, units.as_ref().zip(traces), trace, self.level)?;
        let ranked = names.into_iter().enumerate().map(|(i, name)| {
            let Some(estimate) = moments.estimate(i) else {
                return Err(Error::no_samples(&name));
            };
            let MeanEstimate {
                mean,
                standard_error,
                effective,
                ..
            } = estimate;
            Ok(Ranked {
                fisher: finite(mean, &name)?,
                elements: elements[i],
                density: mean / elements[i],
                standard_error: standard_error.and_then(if_finite),
                effective: effective.and_then(if_finite),
                interval: estimate
                    .interval(self.level, self.method)?
                    .and_then(bounded),
                share: shares[i],
                ranks: ranks.as_ref().map(|ranks| ranks[i]),
                name,
            })
        });
        let mut ranked = ranked.collect::<Result<Vec<_>>>()?;
        ranked.sort_by(|a, b| b.fisher.total_cmp(&a.fisher));
        Ok(ranked)
    }
}

/// What is ranked.
struct Parts {
    names: Vec<String>,
    elements: Vec<f64>,
    moments: SampleMoments,
    units: Option<UnitSums>,
}

fn warnings(
    task: &TaskStatistics,
    parts: [&Vec<Ranked>; 2],
    copies: &[Vec<String>],
) -> Vec<String> {
    let mut warnings = Vec::new();
    let below = |limit: f64| {
        let all = parts.into_iter().flatten();
        all.filter(move |part| part.fisher > 0.0 && part.effective.is_some_and(|n| n < limit))
    };
    let known = |part: &Ranked| part.effective.unwrap_or(f64::INFINITY);
    let least = below(FEWEST_FOR_TRUST).min_by(|a, b| known(a).total_cmp(&known(b)));
    if let Some(least) = least {
        let effective = known(least);
        let (few, all) = (below(FEWEST_FOR_TRUST).count(), parts.map(Vec::len));
        let none = below(FEWEST_FOR_INTERVAL).count();
        let all = all[0] + all[1];
        let least = &least.name;
        warnings.push(match all {
            1 => format!(
                "{least}, which is all there is, rests on {effective:.1} effective samples, fewer than \
                 {FEWEST_FOR_TRUST}: other samples could change its F much{}",
                if none == 1 { ", and it has no interval" } else { "" }
            ),
            _ => format!(
                "{few} of {all} layers and heads rest on fewer than {FEWEST_FOR_TRUST} effective samples, the \
                 least on {effective:.1} ({least}): other samples could change their F much; {none} rest on \
                 fewer than {FEWEST_FOR_INTERVAL} and have no interval"
            ),
        });
    }
    if !copies.is_empty() {
        let samples: usize = copies.iter().map(Vec::len).sum();
        warnings.push(format!(
            "{samples} samples look like copies of each other (such as {} and {}): errors and ranks take \
             them for independent; give copies one cluster, or leave them out",
            copies[0][0], copies[0][1]
        ));
    }
    if parts.iter().any(|ranked| ranked.len() > MOST_VALUES) {
        warnings.push(format!(
            "no ranks are tested of more than {MOST_VALUES} layers or heads: all pairs would be too many"
        ));
    }
    if task.layer_units().is_none() {
        warnings.push(
            "the totals of some samples were not kept (files of older versions, weights that moved): \
             ranks and shares have no sets and intervals"
                .into(),
        );
    }
    warnings
}

impl fmt::Display for ImportanceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clusters = self.clusters.map(|n| format!(" in {n} clusters"));
        writeln!(
            f,
            "{}: {} samples{}, {} active tokens, trace of the {} Fisher ({}) {:.3e}",
            self.task,
            self.samples,
            clusters.unwrap_or_default(),
            self.tokens,
            self.provenance.kind,
            self.provenance.unit,
            self.trace
        )?;
        for (title, ranked) in [("heads", &self.heads), ("layers", &self.layers)] {
            if !ranked.is_empty() {
                table(f, title, ranked, self.level)?;
            }
        }
        if let Some(attention) = self.attention {
            writeln!(
                f,
                "  All heads together have {:.1} % of the trace.",
                100.0 * attention
            )?;
        }
        writeln!(
            f,
            "  rank: what the samples leave open, {:.0} % sure of all ranks of a table at once; n_eff: \
             effective samples that F rests on",
            100.0 * self.level
        )?;
        for warning in &self.warnings {
            writeln!(f, "  Note: {warning}.")?;
        }
        Ok(())
    }
}

fn table(f: &mut fmt::Formatter<'_>, title: &str, ranked: &[Ranked], level: f64) -> fmt::Result {
    const BAR: f64 = 20.0;
    let width = ranked.iter().map(|r| r.name.chars().count()).max();
    let width = width.unwrap_or(0).max(title.len());
    let largest = ranked.iter().map(|r| r.fisher).fold(0.0, f64::max);
    let interval = format!("{:.0} % interval", level * 100.0);
    writeln!(
        f,
        "{:>7} {title:<width$}  {:>10}  {interval:>23}  {:>6}  {:>22}  {:>10}",
        "rank", "F", "n_eff", "share", "F/element"
    )?;
    for entry in ranked {
        let or_dash = |x: Option<String>| x.unwrap_or_else(|| "–".into());
        let interval = entry.interval;
        let interval = interval.map(|c| format!("{:.3e} … {:.3e}", c.lower, c.upper));
        let effective = entry.effective.map(|n| format!("{n:.1}"));
        let share = entry.share.map(|share| share.to_string());
        let bar =
            "█".repeat((BAR * entry.fisher / largest.max(f64::MIN_POSITIVE)).round() as usize);
        writeln!(
            f,
            "{:>7} {:<width$}  {:>10.3e}  {:>23}  {:>6}  {:>22}  {:>10.3e}  {bar}",
            or_dash(entry.ranks.map(|ranks| ranks.to_string())),
            entry.name,
            entry.fisher,
            or_dash(interval),
            or_dash(effective),
            or_dash(share),
            entry.density,
        )?;
    }
    Ok(())
}
