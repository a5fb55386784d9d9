//! What the page begins with: the model and the data, and the findings in a few sentences.

use std::fmt::Write;

use fisher_metrics::importance::{ImportanceReport, Ranked};
use serde_json::Value;

use super::overlap::mask;
use super::parts::{escaped, maybe, percent, sentence, share, untold};
use crate::measure::{Findings, Measured};
use crate::models::Outcomes;
use crate::words::count;

/// One sentence about the model and the data.
pub(super) fn lead(run: &Value, outcomes: Outcomes, tasks: &[Measured]) -> String {
    let model = &run["model"];
    let of = |key: &str| model[key].as_u64().unwrap_or(0);
    let tasks = tasks.iter().map(|task| {
        let tokens: u64 = task.tokens.iter().sum();
        let samples = count(task.ids.len(), "sample");
        let tokens = match outcomes {
            Outcomes::Tokens(_) => format!(" with {}", count(tokens as usize, "active token")),
            Outcomes::Classes(_) => String::new(),
        };
        format!("{samples} of {}{tokens}", escaped(&task.name))
    });
    let heads = match (of("heads") as usize, of("kv_heads") as usize) {
        (0, _) => "without attention heads".into(),
        (heads, shared) if (1..heads).contains(&shared) => format!(
            "each with {} that share {},",
            count(heads, "query head"),
            count(shared, "key/value head")
        ),
        (heads, _) => format!("each with {},", count(heads, "attention head")),
    };
    format!(
        "A {} model of {}, {heads} and {} weights{}; {}.",
        escaped(model["type"].as_str().unwrap_or("decoder")),
        count(of("layers") as usize, "layer"),
        large(of("weights")),
        match outcomes {
            Outcomes::Tokens(_) => String::new(),
            Outcomes::Classes(classes) => format!(", which tells {classes} classes apart"),
        },
        tasks.collect::<Vec<_>>().join(", ")
    )
}

fn large(n: u64) -> String {
    match n {
        0..100_000 => n.to_string(),
        100_000..1_000_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}

/// The findings in a few sentences.
pub(super) fn glance(findings: &Findings) -> String {
    let mut said: Vec<String> = Vec::new();
    for report in &findings.importance {
        said.extend(most(report));
    }
    if let Some((key, report)) = findings.overlap.first() {
        said.push(format!(
            "Masks of both tasks ({}) share {} of what either keeps; beyond chance they agree by \
             κ = {}.{}",
            escaped(&mask(key)),
            percent(report.all.jaccard),
            maybe(report.all.stratified),
            suggestion(findings)
        ));
    }
    if let Some((_, report)) = findings.conflicts.first() {
        let signs = format!("{}; {}", report.signs(), report.counted());
        said.push(escaped(&sentence(&signs)));
        said.extend(report.collision().map(|of| escaped(&sentence(&of))));
    }
    if said.is_empty() {
        return String::new();
    }
    let said: String = said.iter().map(|said| format!("<li>{said}</li>")).collect();
    format!("<div class=glance><ul>{said}</ul></div>")
}

/// What a task depends on most, in a sentence.
fn most(report: &ImportanceReport) -> Option<String> {
    let task = escaped(&report.task);
    let layer = report.layers.first()?;
    if report.trace == 0.0 {
        return Some(format!(
            "In these samples of <b>{task}</b> every gradient is 0: no layer and no head counts more than \
             another."
        ));
    }
    let one = report.samples == 1;
    let name = escaped(&layer.name);
    let mut said = match (&*report.layers, one) {
        ([_], _) => {
            format!("All Fisher information of <b>{task}</b> that was measured is in <b>{name}</b>")
        }
        (_, true) => format!(
            "In the one sample of <b>{task}</b>, <b>{name}</b> has the largest share of the squared gradient, \
             {}; of other samples that says nothing",
            share(layer.share)
        ),
        (_, false) => format!(
            "In these samples of <b>{task}</b>, <b>{name}</b> has the largest share of the Fisher \
             information that was measured, {}{}",
            share(layer.share),
            sure(&report.layers, "layers", report.samples)
        ),
    };
    match report.heads.first() {
        Some(head) if head.fisher == 0.0 => {
            said.push_str("; the gradients of all attention heads are 0");
        }
        Some(head) if report.heads.len() > 1 => {
            let sure = match one {
                true => String::new(),
                false => sure(&report.heads, "heads", report.samples),
            };
            let name = escaped(&head.name);
            let _ = write!(said, "; of the heads <b>{name}</b> has the largest{sure}");
        }
        _ => {}
    }
    Some(said + ".")
}

/// Whether the first of a ranking is first beyond these samples, as words behind its name and share.
fn sure(ranked: &[Ranked], what: &str, samples: usize) -> String {
    let first = ranked.first().and_then(|first| first.ranks);
    match first {
        None => " (whether its rank holds is not known)".into(),
        Some(ranks) if ranks.worst == 1 => " (its first rank holds at 95\u{a0}%)".into(),
        Some(_) if untold(ranked) => {
            format!(", but {samples} samples do not tell {what} apart: any may have the largest")
        }
        Some(ranks) => format!(
            " (of all {what} at once, 95\u{a0}% sure, its rank is open from 1 to {})",
            ranks.worst
        ),
    }
}

/// What all overlaps suggest, with a space before it.
fn suggestion(findings: &Findings) -> String {
    let suggestion = findings.suggestion.as_ref();
    suggestion.map_or(String::new(), |says| {
        format!(" {}.", escaped(&says.to_string()))
    })
}
