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
const ITSELF: f64 = 0.1;

/// What the overlaps of two tasks at several sparsities say together: one suggestion, by stratified κ
/// beside what halves of one task reach. Nothing was merged to find it.
///
/// Below a quarter of the ceiling at every sparsity the tasks are said to need different weights, from
/// three quarters on the same; where, at any sparsity, a task's halves agree by a κ below 0.1 or by one that is
/// undefined, or there are no halves, nothing is suggested. The limits are a choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The tasks.
    pub tasks: [String; 2],
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
        let told = itself.is_some_and(|kappa| kappa >= ITSELF);
        let advice = relative.filter(|_| told && measured == reports.len());
        Some(Self {
            tasks: first.tasks.clone(),
            kappa: range(reports.iter().filter_map(|r| r.all.stratified)),
            sparsities: reports.len(),
            measured,
            itself,
            relative,
            advice: advice.map(|[low, high]| match () {
                () if high < APART => Advice::Arithmetic,
                () if low >= TOGETHER => Advice::Surgery,
                () => Advice::WeightedArithmetic,
            }),
        })
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let all = values.map(|x| [x, x]);
    all.reduce(|[low, high], [x, y]| [low.min(x), high.max(y)])
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.tasks;
        let span = |[low, high]: [f64; 2], unit: f64, digits: usize, mark: &str| {
            let [low, high] = [low, high].map(|x| format!("{:.digits$}{mark}", unit * x));
            match low == high {
                true => low,
                false => format!("{low} to {high}"),
            }
        };
        let Some(kappa) = self.kappa else {
            return write!(
                f,
                "Whether {a} and {b} need the same weights cannot be said: everything is kept, or nothing"
            );
        };
        let kappa = span(kappa, 1.0, 2, "");
        match (self.itself, self.relative, self.advice) {
            (None, ..) => write!(
                f,
                "Masks of {a} and {b} agree beyond chance by κ = {kappa}; without halves of each task to \
                 compare with, whether that is little or much cannot be said"
            ),
            (Some(itself), Some(relative), Some(advice)) => {
                let relative = span(relative, 100.0, 0, " %");
                let says = match advice {
                    Advice::Surgery => "as if both needed the same weights, which suggests",
                    Advice::WeightedArithmetic => "as if they shared some weights, which suggests",
                    Advice::Arithmetic => "as if they needed different weights, which suggests",
                };
                write!(
                    f,
                    "Masks of {a} and {b} agree beyond chance by {relative} of what halves of one task do \
                     (κ = {kappa} between the tasks, {itself:.2} or more between halves): {says} {advice}; \
                     nothing was merged to test it"
                )
            }
            (Some(itself), Some(relative), None) if itself >= ITSELF => {
                let (relative, undefined) = (
                    span(relative, 100.0, 0, " %"),
                    self.sparsities - self.measured,
                );
                write!(
                    f,
                    "Masks of {a} and {b} agree beyond chance by {relative} of what halves of one task do at {} of {} \
                     sparsities; at the other {undefined} this is undefined, so that nothing is suggested",
                    self.measured, self.sparsities
                )
            }
            (Some(itself), None, _) if itself >= ITSELF => write!(
                f,
                "Whether {a} and {b} need the same weights cannot be said: at none of {} sparsities is the agreement of \
                 halves of both defined",
                self.sparsities
            ),
            (Some(itself), ..) => write!(
                f,
                "Whether {a} and {b} need the same weights cannot be said: masks of two halves of one task \
                 agree by no more than κ = {itself:.2}, so that samples are too few to tell"
            ),
        }
    }
}
