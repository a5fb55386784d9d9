//! The frame of the page.

use std::fmt::Write;

use fisher_core::kind::FisherKind;
use fisher_core::statistics::Statistics;
use serde_json::Value;

use super::conflicts::conflicts;
use super::glance::{glance, lead};
use super::health::health;
use super::importance::importance;
use super::interference::interference;
use super::merging::merging;
use super::overlap::overlap;
use super::parts::escaped;
use super::settings::settings;
use super::tasks::tasks;
use super::tokens::tokens;
use crate::measure::{Beginnings, Findings, Measured, SampleTokens};
use crate::models::Outcomes;
use crate::words::phases;

/// The page, in a run's folder.
pub const PAGE: &str = "report.html";

/// How a page of this program begins to say so.
pub const GENERATOR: &str = "<meta name=generator content=\"fisher ";

const STYLE: &str = include_str!("style.css");

/// What a page tells.
#[derive(Debug)]
pub struct Page<'a> {
    /// What was run, as in report.json.
    pub run: &'a Value,
    /// What the model chooses among.
    pub outcomes: Outcomes,
    /// The tasks.
    pub tasks: &'a [Measured],
    /// Their statistics.
    pub statistics: &'a Statistics,
    /// What was found.
    pub findings: &'a Findings,
    /// Samples token by token.
    pub tokens: &'a [SampleTokens],
    /// How the samples begin that are named with their losses, where they are at hand.
    pub beginnings: &'a Beginnings,
}

impl Page<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let names: Vec<&str> = self.tasks.iter().map(|task| &*task.name).collect();
        let model = self.run["model"]["name"].as_str().unwrap_or("a model");
        let title = format!("{} in {model}", names.join(" and "));
        let mut body = String::new();
        let (run, found) = (self.run, self.findings);
        let sections: [(&str, &str, String); 9] = [
            (
                "tasks",
                "What was measured",
                tasks(
                    run,
                    self.outcomes,
                    self.tasks,
                    self.statistics,
                    self.beginnings,
                ),
            ),
            (
                "importance",
                "What each task depends on",
                importance(&found.importance, run, self.outcomes, self.statistics),
            ),
            ("overlap", "Where the tasks overlap", overlap(found)),
            ("conflicts", "Which samples collide", conflicts(found)),
            ("interference", "Which heads interfere", interference(found)),
            ("tokens", "Token by token", tokens(self.tokens)),
            (
                "merge",
                "What merging costs",
                merging(run, self.outcomes, self.tasks, found),
            ),
            ("health", "Health and warnings", health(self.tasks, found)),
            ("settings", "What was run", settings(run)),
        ];
        let sections = sections.iter().filter(|(_, _, text)| !text.is_empty());
        let mut links = String::new();
        for (id, heading, text) in sections {
            let _ = write!(links, "<li><a href=\"#{id}\">{heading}</a></li>");
            let _ = write!(
                body,
                "<section id=\"{id}\"><h2>{heading}</h2>{text}</section>"
            );
        }
        format!(
            "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
             {GENERATOR}{4}\">\n\
             <meta name=viewport content=\"width=device-width,initial-scale=1\">\n\
             <title>{0}: Fisher information</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <header><p class=kicker>Fisher information</p><h1>{0}</h1><p class=lead>{1}</p>{5}{2}\
             <nav aria-label=Sections><ul>{links}</ul></nav></header>\n<main>{body}</main>\n\
             <footer><p>Made by {3}. Numbers for programs are in report.json and results.safetensors beside \
             this page.</p></footer>\n</body>\n</html>\n",
            escaped(&title),
            lead(run, self.outcomes, self.tasks),
            glance(found),
            escaped(self.run["program"].as_str().unwrap_or_default()),
            env!("CARGO_PKG_VERSION"),
            unseen(run, self.tasks.len(), self.statistics.provenance().kind),
        )
    }
}

/// What of a report is not on the page, because only some phases were run.
fn unseen(run: &Value, tasks: usize, kind: FisherKind) -> String {
    let ran = run["phases"].as_array().into_iter().flatten();
    let ran: Vec<u8> = ran
        .filter_map(|phase| phase.as_u64()?.try_into().ok())
        .collect();
    // Gradients that are compared are those of the data's labels.
    let (last, how) = match (tasks, kind) {
        (2, FisherKind::Empirical) => (6, "without --phases"),
        (2, _) => (4, "with --phases 1-4"),
        (_, FisherKind::Empirical) => (3, "without --phases"),
        _ => (3, "with --phases 1-3"),
    };
    let unseen: Vec<u8> = (2..=last).filter(|phase| !ran.contains(phase)).collect();
    let were = match unseen.len() {
        0 => return String::new(),
        1 => "was",
        _ => "were",
    };
    format!(
        "<p class=soft>This report is of {} alone; {} {were} not looked at. The same command with --resume and {how} \
         has all.</p>",
        phases(&ran),
        phases(&unseen)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_not_run_is_named_with_what_brings_it() {
        let of = |phases: &[u8], tasks, kind| unseen(&json!({ "phases": phases }), tasks, kind);
        assert_eq!(of(&[1, 2, 3, 4, 5, 6], 2, FisherKind::Empirical), "");
        assert_eq!(of(&[1, 2, 3], 1, FisherKind::Empirical), "");
        assert_eq!(of(&[1, 2, 3, 4], 2, FisherKind::MonteCarlo), "");
        let said = of(&[6], 2, FisherKind::Empirical);
        for words in [
            "of phase 6 (interference) alone; phases 2 (importance), 3 (masks), 4 (overlap) and 5 (conflicts) were not",
            "--resume and without --phases",
        ] {
            assert!(said.contains(words), "{said}");
        }
    }
}
