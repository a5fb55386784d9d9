//! Which heads interfere.

use std::fmt::Write;

use fisher_metrics::interference::{InterferenceReport, Variant};

use super::parts::{IN_REPORT, escaped, figure, note, number};
use crate::measure::Findings;

/// Scores of heads, a section for each settings.
pub(super) fn interference(findings: &Findings) -> String {
    let mut text = String::new();
    if findings.interference.is_empty() {
        return text;
    }
    text.push_str(
        "<p>For every head and block (query, key, value, output), how much the gradients of one \
         task's samples weigh on what the other task's samples depend on: the mean over all pairs \
         of samples. Hover over a cell for its number. Query heads that share a key or value head \
         share its cells.</p>",
    );
    for (settings, report) in &findings.interference {
        let _ = write!(text, "<h3>Settings: {}</h3>", escaped(settings));
        for warning in &report.warnings {
            note(&mut text, warning);
        }
        if let Some(tested) = report.tested() {
            let _ = write!(text, "<p>{tested}; framed (*) where it is resolved.</p>");
        }
        text.push_str("<div class=maps>");
        for map in report.picture().maps {
            figure(&mut text, &map, "", IN_REPORT);
        }
        text.push_str("</div>");
        worst(&mut text, report);
    }
    text
}

/// The pairs of samples with the worst scores.
fn worst(text: &mut String, report: &InterferenceReport) {
    let [a, b] = report.tasks.each_ref().map(|task| escaped(task));
    let what = match report.settings.variant {
        Variant::Signed | Variant::Full => "lowest",
        _ => "highest",
    };
    let _ = write!(
        text,
        "<details><summary>Pairs of samples with the {what} scores</summary><div class=scroll \
         tabindex=0><table><thead><tr><th scope=col>sample of {a}</th><th scope=col>sample of {b}</th>\
         <th scope=col>head</th><th scope=col class=n>score</th></tr></thead><tbody>"
    );
    for pair in &report.top {
        let _ = write!(
            text,
            "<tr><td>{}</td><td>{}</td><td class=name>{}</td><td class=n>{}</td></tr>",
            escaped(&pair.a.id),
            escaped(&pair.b.id),
            escaped(&pair.slice),
            number(pair.score)
        );
    }
    text.push_str("</tbody></table></div></details>");
}
