//! What the overlap of two tasks suggests for merging them, over all sparsities together.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::advice::Advice;
use super::overlap::OverlapReport;

/// Below this share of the ceiling at every sparsity the tasks need different weights.
const APART: f64 = 0.25;
/// From this share of the ceiling on, at every sparsity, they need the same.
const TOGETHER: f64 = 0.75;
/// A task whose halves agree by less than this κ does not tell its weights from others.
const ITSELF: f64 = 0.4;
/// Samples of a task below which nothing is suggested.
const SAMPLES: usize = 16;

/// What the overlaps of two tasks at several sparsities say together: one suggestion, by stratified κ
/// beside what halves of one task reach. Nothing was merged to find it.
///
/// Below a quarter of the ceiling the tasks are said to need different weights, from three quarters on the
/// same, between them some; each only where it is so at every sparsity and for every way in which samples were halved.
/// Where a task's halves agree by a κ below 0.4 or by one that is undefined at any sparsity, a task has fewer
/// than 16 samples, or there are no halves, nothing is suggested. The limits are a choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The tasks.
    pub tasks: [String; 2],
    /// Their samples, where that was [said](Suggestion::from_samples).
    pub samples: Option<[usize; 2]>,
    /// The lowest and highest stratified κ between the tasks; `None` where all are undefined.
    pub kappa: Option<[f64; 2]>,
    /// How many sparsities were compared.
    pub sparsities: usize,
    /// At how many of them the ceiling is defined ([`relative`](Suggestion::relative)).
    pub measured: usize,
    /// The lowest stratified κ between halves of one task, of those that are defined; `None` without any.
    pub itself: Option<f64>,
    /// The lowest and highest κ between halves of both tasks relative to the ceiling
    /// ([`Ceiling::relative`](super::Ceiling::relative)), where that is defined.
    pub relative: Option<[f64; 2]>,
    /// The same, way by way to halve ([`Ceiling::spread`](super::Ceiling::spread)); `None` where one is
    /// undefined.
    pub spread: Option<[f64; 2]>,
    /// What is suggested.
    pub advice: Option<Advice>,
}

impl Suggestion {
    /// Of the overlaps of two tasks, the same two in all; `None` of nothing.
    pub fn of<'a>(reports: impl IntoIterator<Item = &'a OverlapReport>) -> Option<Self> {
        let reports: Vec<&OverlapReport> = reports.into_iter().collect();
        let first = reports.first()?;
        let ceilings: Vec<_> = reports.iter().filter_map(|r| r.ceiling.as_ref()).collect();
        let within = ceilings.iter().flat_map(|ceiling| ceiling.within).flatten();
        let itself = within.reduce(f64::min);
        let relatives = || ceilings.iter().filter_map(|ceiling| ceiling.relative);
        let (relative, measured) = (range(relatives()), relatives().count());
        let spreads: Option<Vec<[f64; 2]>> = ceilings.iter().map(|c| c.spread).collect();
        let spread = spreads.and_then(|spreads| range(spreads.into_iter().flatten()));
        let told = itself.is_some_and(|kappa| kappa >= ITSELF) && measured == reports.len();
        Some(Self {
            tasks: first.tasks.clone(),
            samples: None,
            kappa: range(reports.iter().filter_map(|r| r.all.stratified)),
            sparsities: reports.len(),
            measured,
            itself,
            relative,
            spread,
            advice: spread.filter(|_| told).and_then(advice),
        })
    }

    /// The same, from so many samples of either task.
    #[must_use]
    pub fn from_samples(self, samples: [usize; 2]) -> Self {
        let enough = samples.iter().all(|n| *n >= SAMPLES);
        Self {
            samples: Some(samples),
            advice: self.advice.filter(|_| enough),
            ..self
        }
    }
}

/// What all of a range says.
fn advice([low, high]: [f64; 2]) -> Option<Advice> {
    match () {
        () if high < APART => Some(Advice::Arithmetic),
        () if low >= TOGETHER => Some(Advice::Surgery),
        () if low >= APART && high < TOGETHER => Some(Advice::WeightedArithmetic),
        () => None,
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let all = values.map(|x| [x, x]);
    all.reduce(|[low, high], [x, y]| [low.min(x), high.max(y)])
}

/// Both ends of a range, or one number where they are the same.
fn span([low, high]: [f64; 2], unit: f64, digits: usize, mark: &str) -> String {
    let [low, high] = [low, high].map(|x| format!("{:.digits$}{mark}", unit * x));
    if low == high {
        low
    } else {
        format!("{low} to {high}")
    }
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.tasks;
        let unresolved = |f: &mut fmt::Formatter<'_>, why: fmt::Arguments| {
            write!(
                f,
                "Whether {a} and {b} need the same weights is not resolved: {why}"
            )
        };
        let Some(kappa) = self.kappa else {
            return unresolved(f, format_args!("everything is kept, or nothing"));
        };
        let Some(itself) = self.itself else {
            let kappa = span(kappa, 1.0, 2, "");
            return unresolved(
                f,
                format_args!(
                    "masks agree beyond chance by κ = {kappa}, and without halves of each task to compare with, \
                     nothing says whether that is little or much"
                ),
            );
        };
        if let Some([n, m]) = self.samples.filter(|of| of.iter().any(|n| *n < SAMPLES)) {
            return unresolved(
                f,
                format_args!(
                    "{n} and {m} samples are too few, it takes {SAMPLES} of each at least"
                ),
            );
        }
        if itself < ITSELF {
            return unresolved(
                f,
                format_args!(
                    "masks of two halves of one task agree by no more than κ = {itself:.2}, less than {ITSELF}, so that \
                     samples are too few to tell"
                ),
            );
        }
        let undefined = self.sparsities - self.measured;
        let Some(relative) = self.relative.filter(|_| undefined == 0) else {
            return unresolved(
                f,
                format_args!(
                    "at {undefined} of {} sparsities the agreement of halves of both is undefined",
                    self.sparsities
                ),
            );
        };
        let relative = span(relative, 100.0, 0, " %");
        let spread = self.spread.map_or_else(
            || "undefined for some ways to halve the samples".into(),
            |spread| {
                format!(
                    "{} over ways to halve the samples",
                    span(spread, 100.0, 0, " %")
                )
            },
        );
        let Some(advice) = self.advice else {
            return unresolved(
                f,
                format_args!(
                    "masks agree beyond chance by {relative} of what halves of one task do ({spread}), which is \
                     not clearly little, some or all"
                ),
            );
        };
        let says = match advice {
            Advice::Surgery => "as if both needed the same weights, which suggests",
            Advice::WeightedArithmetic => "as if they shared some weights, which suggests",
            Advice::Arithmetic => "as if they needed different weights, which suggests",
        };
        write!(
            f,
            "Masks of {a} and {b} agree beyond chance by {relative} of what halves of one task do ({spread}): \
             {says} {advice}; nothing was merged to test it"
        )
    }
}
