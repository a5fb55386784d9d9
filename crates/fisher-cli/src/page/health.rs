//! Health and warnings.

use std::fmt::Write;

use fisher_metrics::damping::Health;
use fisher_metrics::interference::InterferenceReport;

use super::parts::{escaped, note, number, percent};
use crate::measure::{Findings, Measured};
use crate::words::count;

/// What was left out, what needs a warning, and the Fisher that scores are divided by.
pub(super) fn health(tasks: &[Measured], findings: &Findings) -> String {
    let mut text = String::new();
    warnings(&mut text, findings);
    if text.is_empty() {
        text += "<p>No analysis warns of anything.</p>";
    }
    let left_out = left_out(tasks);
    if left_out.is_empty() {
        text += "<p>No line and no sample was left out.</p>";
    }
    text += &left_out;
    if let Some((settings, report)) = findings.interference.first() {
        state(&mut text, settings, report);
    }
    text
}

/// What the analyses warn of, beside themselves and here.
fn warnings(text: &mut String, findings: &Findings) {
    for report in &findings.importance {
        for warning in &report.warnings {
            note(text, &format!("{}: {warning}", report.task));
        }
    }
    if let Some(why) = &findings.without_halves {
        note(text, why);
    }
    for (_, report) in &findings.conflicts {
        for warning in &report.warnings {
            note(text, &format!("conflicts, {}: {warning}", report.space()));
        }
    }
    for (settings, report) in &findings.interference {
        for warning in &report.warnings {
            note(text, &format!("interference, {settings}: {warning}"));
        }
    }
    if let Some(merged) = &findings.uses.merged {
        for warning in &merged.report.warnings {
            note(text, &format!("merging: {warning}"));
        }
    }
}

/// Lines and samples that were left out.
fn left_out(tasks: &[Measured]) -> String {
    let mut text = String::new();
    for task in tasks {
        let name = &task.name;
        if let Some(first) = task.bad_lines.first() {
            let lines = count(task.bad_lines.len(), "bad line");
            note(
                &mut text,
                &format!(
                    "{name}: {lines} left out, such as line {}: {}",
                    first.line, first.reason
                ),
            );
        }
        if let Some([id, parameter]) = task.skipped.first() {
            let samples = count(task.skipped.len(), "sample");
            note(
                &mut text,
                &format!(
                    "{name}: {samples} without a finite gradient left out, such as {id} (in {parameter})"
                ),
            );
        }
    }
    text
}

/// Cells whose F is told.
const CELLS: usize = 40;

/// F of the heads that the scores are divided by.
fn state(text: &mut String, settings: &str, report: &InterferenceReport) {
    let _ = write!(
        text,
        "<p>The Fisher that interference ({}) divides by, over each cell, and the damping λ that was added. Where λ is more than a hundredth of the median it decides more than F does.</p>\
         <details><summary>{}</summary><div class=scroll tabindex=0><table><thead><tr>\
         <th scope=col>cell</th><th scope=col class=n>smallest F</th><th scope=col class=n>median</th>\
         <th scope=col class=n>largest</th><th scope=col class=n>below ε</th>\
         <th scope=col class=n>λ</th></tr></thead><tbody>",
        escaped(settings),
        match report.slices.len() {
            all if all > CELLS => format!("The {CELLS} of {all} cells that are damped most"),
            all => count(all, "cell"),
        }
    );
    let mut slices: Vec<_> = report
        .slices
        .iter()
        .filter_map(|slice| Some((slice, slice.health?)))
        .collect();
    // The most damped first; ties keep the model's order.
    let damped = |health: &Health| health.ridge_lambda_applied / health.median;
    slices.sort_by(|(_, x), (_, y)| damped(y).total_cmp(&damped(x)));
    for (slice, health) in slices.into_iter().take(CELLS) {
        let mark = if health.swamped() {
            " (too much damping)"
        } else {
            ""
        };
        let _ = write!(
            text,
            "<tr><th scope=row class=name>{}{mark}</th><td class=n>{}</td><td class=n>{}</td>\
             <td class=n>{}</td><td class=n>{}</td><td class=n>{}</td></tr>",
            escaped(&slice.name),
            number(health.min),
            number(health.median),
            number(health.max),
            percent(Some(health.fraction_below_epsilon)),
            number(health.ridge_lambda_applied)
        );
    }
    text.push_str("</tbody></table></div></details>");
}
