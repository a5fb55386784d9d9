//! The frame of the page.

use std::fmt::Write;

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
use crate::measure::{Findings, Measured, SampleTokens};
use crate::models::Outcomes;

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
                tasks(run, self.outcomes, self.tasks, self.statistics),
            ),
            (
                "importance",
                "What each task depends on",
                importance(&found.importance, run, self.statistics),
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
             <header><p class=kicker>Fisher information</p><h1>{0}</h1><p class=lead>{1}</p>{2}\
             <nav aria-label=Sections><ul>{links}</ul></nav></header>\n<main>{body}</main>\n\
             <footer><p>Made by {3}. Numbers for programs are in report.json and results.safetensors beside \
             this page.</p></footer>\n</body>\n</html>\n",
            escaped(&title),
            lead(run, self.outcomes, self.tasks),
            glance(found),
            escaped(self.run["program"].as_str().unwrap_or_default()),
            env!("CARGO_PKG_VERSION"),
        )
    }
}
