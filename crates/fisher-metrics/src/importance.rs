//! Which layers and heads a task depends on.

use std::fmt;

use burn::config::Config;
use burn::module::Module;
use fisher_core::gradient::ContributionUnit;
use fisher_core::moments::{ConfidenceInterval, IntervalMethod, Welford};
use fisher_core::provenance::Provenance;
use fisher_core::statistics::Statistics;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_level};
use crate::report::{bounded, finite, if_finite};

/// Version of [`ImportanceReport`]'s form.
const SCHEMA: u64 = 1;

/// Configuration of [`Importance`].
#[derive(Config, Debug)]
pub struct ImportanceConfig {
    /// Level of the confidence intervals.
    #[config(default = 0.95)]
    pub level: f64,
    /// Where the intervals' widths come from.
    #[config(default = "IntervalMethod::StudentT")]
    pub distribution: IntervalMethod,
}

impl ImportanceConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] unless the level is between 0 and 1.
    pub fn init(&self) -> Result<Importance> {
        check_level(self.level)?;
        Ok(Importance {
            level: self.level,
            distribution: self.distribution,
        })
    }
}

/// Ranks layers and attention heads by their Fisher trace.
///
/// `F_G = (1/n) Σ_i Σ_(k∈G) C_ik`: the trace of the diagonal Fisher over all elements of a layer
/// or head, in the unit of the contributions. Its error bar is that of a mean over samples.
/// `share = F_G / Σ F` over all layers. Ranks fall with F; ties keep the order of the
/// statistics' totals.
#[derive(Module, Debug)]
pub struct Importance {
    level: f64,
    #[module(skip)]
    distribution: IntervalMethod,
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
    /// Active tokens.
    pub tokens: u64,
    /// Where the statistics come from: model, kind, units, seeds.
    pub provenance: Provenance,
    /// Level of the intervals.
    pub level: f64,
    /// Where the intervals' widths come from.
    pub distribution: IntervalMethod,
    /// `Σ F` over all layers.
    pub trace: f64,
    /// Layers by falling F.
    pub layers: Vec<Ranked>,
    /// Attention heads by falling F. Key/value heads that query heads share count to each.
    pub heads: Vec<Ranked>,
}

/// One layer or head in a ranking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Its name.
    pub name: String,
    /// `F_G`.
    pub fisher: f64,
    /// Standard error of `F_G`; `None` for fewer than two samples, or beyond the range of what it was
    /// accumulated in.
    pub standard_error: Option<f64>,
    /// Confidence interval of `F_G`; `None` likewise.
    pub interval: Option<ConfidenceInterval>,
    /// `F_G / Σ F`; `None` where the trace is 0.
    pub share: Option<f64>,
    /// Whether the interval lies apart from both neighbours'; `None` without intervals.
    pub resolved: Option<bool>,
}

impl Importance {
    /// Rank the layers and heads of `task`.
    ///
    /// # Errors
    /// [`Error::NoSamples`] for a task without samples, [`Error::OutOfRange`]; errors of the statistics for a task that
    /// is not there, a level that is none, or a device that fails.
    pub fn forward<C: ContributionUnit>(
        &self,
        statistics: &Statistics<C>,
        task: &str,
    ) -> Result<ImportanceReport> {
        let of_task = statistics.task(task)?;
        let totals = statistics.totals();
        let layers = self.values(task, totals.layers().to_vec(), of_task.layers())?;
        let names = totals.heads().iter();
        let names = names.map(|key| format!("{} head {}", key.attention, key.head));
        let heads = if totals.heads().is_empty() {
            Vec::new()
        } else {
            self.values(task, names.collect(), of_task.heads())?
        };
        let trace = layers.iter().map(|layer| layer.fisher).sum();
        let trace = finite(trace, task)?;
        Ok(ImportanceReport {
            schema: SCHEMA,
            task: task.into(),
            samples: of_task.count(),
            tokens: of_task.tokens(),
            provenance: statistics.provenance().clone(),
            level: self.level,
            distribution: self.distribution,
            trace,
            layers: rank(layers, trace),
            heads: rank(heads, trace),
        })
    }

    fn values(&self, task: &str, names: Vec<String>, welford: &Welford) -> Result<Vec<Ranked>> {
        let read = welford.read()?;
        let mean = read.mean.as_ref().ok_or_else(|| Error::no_samples(task))?;
        let intervals = read.confidence_interval(self.level, self.distribution)?;
        let ranked = names.into_iter().enumerate().map(|(i, name)| {
            Ok(Ranked {
                fisher: finite(mean[i], &name)?,
                standard_error: read.standard_error.as_ref().and_then(|e| if_finite(e[i])),
                interval: intervals.as_ref().and_then(|all| bounded(all[i])),
                share: None,
                resolved: None,
                name,
            })
        });
        ranked.collect()
    }
}

/// By falling F; the sort is stable, so ties keep the model's order.
fn rank(mut ranked: Vec<Ranked>, trace: f64) -> Vec<Ranked> {
    ranked.sort_by(|a, b| b.fisher.total_cmp(&a.fisher));
    let apart = |above: &Ranked, below: &Ranked| match (above.interval, below.interval) {
        (Some(above), Some(below)) => Some(above.lower > below.upper),
        _ => None,
    };
    let gaps: Vec<Option<bool>> = ranked.windows(2).map(|p| apart(&p[0], &p[1])).collect();
    for (i, entry) in ranked.iter_mut().enumerate() {
        let mut neighbours = [i.checked_sub(1), Some(i)].into_iter().flatten();
        entry.share = (trace > 0.0).then(|| entry.fisher / trace);
        entry.resolved = entry
            .interval
            .map(|_| neighbours.all(|gap| gaps.get(gap).is_none_or(|apart| *apart == Some(true))));
    }
    ranked
}

impl fmt::Display for ImportanceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} samples, {} active tokens, trace of the {} Fisher ({}) {:.3e}",
            self.task,
            self.samples,
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
        write!(
            f,
            "  ~ the interval overlaps a neighbour's: the rank is not resolved"
        )
    }
}

fn table(f: &mut fmt::Formatter<'_>, title: &str, ranked: &[Ranked], level: f64) -> fmt::Result {
    const BAR: f64 = 24.0;
    let width = ranked.iter().map(|r| r.name.chars().count()).max();
    let width = width.unwrap_or(0).max(title.len());
    let largest = ranked.iter().map(|r| r.fisher).fold(0.0, f64::max);
    let interval = format!("{:.0} % interval", level * 100.0);
    writeln!(
        f,
        "     {title:<width$}  {:>10}  {:>10}  {interval:>24}  {:>7}",
        "F", "± s.e.", "share"
    )?;
    for (i, entry) in ranked.iter().enumerate() {
        let or_dash = |x: Option<String>| x.unwrap_or_else(|| "–".into());
        let error = or_dash(entry.standard_error.map(|e| format!("{e:.2e}")));
        let interval = or_dash(
            entry
                .interval
                .map(|c| format!("{:.3e} … {:.3e}", c.lower, c.upper)),
        );
        let share = or_dash(entry.share.map(|s| format!("{:.1} %", s * 100.0)));
        let mark = if entry.resolved == Some(false) {
            "~"
        } else {
            " "
        };
        let bar =
            "█".repeat((BAR * entry.fisher / largest.max(f64::MIN_POSITIVE)).round() as usize);
        writeln!(
            f,
            "{:>3}{mark} {:<width$}  {:>10.3e}  {error:>10}  {interval:>24}  {share:>7}  {bar}",
            i + 1,
            entry.name,
            entry.fisher,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, fisher: f64, half: f64) -> Ranked {
        Ranked {
            name: name.into(),
            fisher,
            standard_error: Some(half),
            interval: Some(ConfidenceInterval {
                lower: fisher - half,
                upper: fisher + half,
            }),
            share: None,
            resolved: None,
        }
    }

    #[test]
    fn ranks_fall_ties_keep_their_order_and_overlap_is_not_resolved() {
        let entries = vec![
            entry("a", 1.0, 0.1),
            entry("b", 5.0, 0.5),
            entry("c", 1.0, 0.1),
            entry("d", 3.0, 0.5),
        ];
        let ranked = rank(entries, 10.0);
        let names: Vec<&str> = ranked.iter().map(|r| &*r.name).collect();
        assert_eq!(names, ["b", "d", "a", "c"]);
        let resolved: Vec<_> = ranked.iter().map(|r| r.resolved).collect();
        assert_eq!(resolved, [Some(true), Some(true), Some(false), Some(false)]);
        let shares: f64 = ranked.iter().filter_map(|r| r.share).sum();
        assert!((shares - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_sample_has_no_error_bars() {
        let alone = Ranked {
            interval: None,
            standard_error: None,
            ..entry("a", 0.0, 0.0)
        };
        let ranked = rank(vec![alone], 0.0);
        assert_eq!((ranked[0].share, ranked[0].resolved), (None, None));
    }
}
