//! The table of what is measured here beside what PyTorch takes.

use std::collections::HashMap;

use serde_json::json;

use crate::Outcome;
use crate::cases::{Case, Shape, Visitor};
use crate::names::name;
use crate::python::{Found, Theirs};
use crate::rounds::{Taken, measure};
use crate::subject::Subject;
use crate::ways::Way;

/// Ways that PyTorch has too, and their names in the table.
const WAYS: [(Way, &str); 3] = [
    (Way::Plain, "forward and backward"),
    (Way::Mean, "mean"),
    (Way::Elementwise, "mean and variance"),
];

/// Libraries, as the script and the table call them.
const LIBRARIES: [(&str, &str); 3] = [
    ("torch", "PyTorch"),
    ("opacus", "Opacus"),
    ("backpack", "BackPACK"),
];

/// Measures a step, means, and means with variances.
#[derive(Debug)]
pub(crate) struct Comparison {
    rounds: usize,
    quick: bool,
    cases: Vec<(Case, Shape)>,
    ours: HashMap<(Case, Way), Taken>,
}

impl Comparison {
    pub(crate) fn new(rounds: usize, quick: bool) -> Self {
        Self {
            rounds,
            quick,
            cases: Vec::new(),
            ours: HashMap::new(),
        }
    }

    /// What was measured.
    pub(crate) fn cases(&self) -> &[(Case, Shape)] {
        &self.cases
    }

    /// One table, and what is missing in it.
    pub(crate) fn print(&self, theirs: &Found) {
        let what = match self.quick {
            true => "One round of small shapes: whether it runs, not how fast.".to_owned(),
            false => format!("Seconds for a batch, medians of {} rounds.", self.rounds),
        };
        println!(
            "{what} Ways took turns; PyTorch's did in a process of its own, after ours. × is to one's own forward and \
             backward; ÷ is seconds there over seconds here. PyTorch's means are by hooks written for this table, \
             which take no gradients of the batch.\n"
        );
        let columns: Vec<_> = LIBRARIES
            .into_iter()
            .filter(|(key, _)| theirs.figures.keys().any(|(library, ..)| library == key))
            .collect();
        let heads = columns
            .iter()
            .map(|(_, title)| format!(" {title} s | × | ÷ here |"));
        println!("| case | way | here s | × |{}", heads.collect::<String>());
        println!("|---|---|---|---|{}", "---|".repeat(3 * columns.len()));
        for &(case, _) in &self.cases {
            for (way, title) in WAYS {
                let Some(ours) = self.ours.get(&(case, way)) else {
                    continue;
                };
                let cells = columns.iter().map(|(library, _)| {
                    let key = ((*library).to_owned(), name(case), name(way));
                    match theirs.figures.get(&key) {
                        Some(Theirs { seconds, ratio }) => {
                            let to_ours = seconds / ours.seconds;
                            format!(" {seconds:.4} | {ratio:.2} | {to_ours:.2} |")
                        }
                        None => " — | — | — |".to_owned(),
                    }
                });
                println!(
                    "| {} | {title} | {:.4} | {:.2} |{}",
                    name(case),
                    ours.seconds,
                    ours.ratio,
                    cells.collect::<String>()
                );
            }
        }
        println!();
        theirs
            .remarks
            .iter()
            .for_each(|remark| println!("- {remark}"));
        println!();
        for &(case, shape) in &self.cases {
            for ours in WAYS
                .iter()
                .filter_map(|(way, _)| self.ours.get(&(case, *way)))
            {
                let line = json!({
                    "library": "fisher",
                    "case": name(case),
                    "shape": shape,
                    "way": name(ours.way),
                    "seconds": ours.seconds,
                    "ratio": ours.ratio,
                    "rounds": ours.rounds,
                });
                println!("{line}");
            }
        }
        theirs.lines.iter().for_each(|line| println!("{line}"));
    }
}

impl Visitor for Comparison {
    fn visit<M: Subject>(&mut self, at: (Case, Shape), model: &M, batch: &M::Batch) -> Outcome {
        // The table comes at the end.
        eprintln!("measuring {}", name(at.0));
        let taken = measure(model, batch, &WAYS.map(|(way, _)| way), self.rounds)?;
        self.ours
            .extend(taken.into_iter().map(|taken| ((at.0, taken.way), taken)));
        self.cases.push(at);
        Ok(())
    }
}
