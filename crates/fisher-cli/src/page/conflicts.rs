//! Which samples collide.

use std::fmt::Write;

use fisher_metrics::conflicts::{ConflictReport, SliceConflicts, Verdict};

use super::parts::{escaped, figure, maybe, sentence};
use crate::measure::{DRAWN, Findings, SENTENCES};
use crate::words::count;

/// Conflicts of gradients as they are, and weighed by the Fisher.
pub(super) fn conflicts(findings: &Findings) -> String {
    let mut text = String::new();
    if findings.conflicts.is_empty() {
        return text;
    }
    text.push_str(
        "<p>A parameter is <i>opposed</i> where the expected cosine of gradients across the tasks is \
         negative, <i>aligned</i> where it is positive, and <i>apart</i> where gradients differ by task \
         and no sign is known; q is the false discovery rate over parameters. Two samples conflict in \
         a parameter where their cosine is at least as far below 0 as a threshold, no smaller than a \
         floor, beyond which so few cosines are positive that these, counted as noise, are no more than \
         a share α of the negative ones, and where drawing the signs of whole samples at random would \
         hardly ever call as many pairs.</p>",
    );
    for (space, report) in &findings.conflicts {
        let heading = match *space {
            "raw" => "Raw gradients",
            _ => "Whitened gradients: the same, divided by the root of the Fisher of both tasks",
        };
        let _ = write!(text, "<h3>{heading}</h3>");
        collisions(&mut text, report);
    }
    text
}

/// Conflicts: in numbers, in words, by parameter, and every pair of the first of those.
fn collisions(text: &mut String, report: &ConflictReport) {
    let _ = write!(
        text,
        "<p>Of {} parameters {} are opposed, {} aligned, {} apart without a sign and {} unresolved (q ≤ {}); \
         {}{}.</p>",
        report.slices.len(),
        report.count(Verdict::Opposed),
        report.count(Verdict::Aligned),
        report.count(Verdict::Apart),
        report.count(Verdict::Unresolved),
        report.settings.alpha,
        report.counted(),
        match report.components.len() {
            0 => String::new(),
            n => format!(", in {}", count(n, "component")),
        }
    );
    if let Some(said) = report.collision() {
        let _ = write!(text, "<p>{}</p>", escaped(&sentence(&said)));
    }
    let sentences = report.sentences(SENTENCES);
    if !sentences.is_empty() {
        text.push_str("<ul class=said>");
        for said in sentences {
            let _ = write!(text, "<li>{}</li>", escaped(&sentence(&said)));
        }
        text.push_str("</ul>");
    }
    let slices = ordered(report);
    parameters(text, &slices);
    if let Some(picture) = slices.first().and_then(|slice| report.picture(&slice.name)) {
        for mut map in picture.maps {
            if map.rows.len() * map.columns.len() > DRAWN {
                continue;
            }
            map.title = "Cosines of all pairs".into();
            let elsewhere = "--save-pairs writes the numbers to results.safetensors";
            figure(text, &map, &picture.note, elsewhere);
        }
    }
}

/// The most surely opposed first, and of those that are as sure the one with the lowest cosine.
fn ordered(report: &ConflictReport) -> Vec<&SliceConflicts> {
    let mut slices = report.by_evidence();
    let q = |slice: &SliceConflicts| slice.opposed.map_or(2.0, |answer| answer.q);
    let cosine = |slice: &SliceConflicts| slice.mean_cosine.unwrap_or(2.0);
    slices.sort_by(|x, y| q(x).total_cmp(&q(y)).then(cosine(x).total_cmp(&cosine(y))));
    slices
}

/// The first parameters, and how many more there are.
fn parameters(text: &mut String, slices: &[&SliceConflicts]) {
    text.push_str(
        "<div class=scroll tabindex=0><table><caption>Parameters, the most surely opposed first</caption>\
         <thead><tr><th scope=col>parameter</th><th scope=col>verdict</th>\
         <th scope=col class=n>mean cosine across</th><th scope=col class=n>within the tasks</th>\
         <th scope=col class=n>q opposed</th>\
         <th scope=col class=n>q aligned</th><th scope=col class=n>q apart</th>\
         <th scope=col class=n>conflicting pairs</th></tr></thead><tbody>",
    );
    const ROWS: usize = 12;
    for slice in slices.iter().take(ROWS) {
        let q = [slice.opposed, slice.aligned, slice.apart];
        let [opposed, aligned, apart] = q.map(|answer| maybe(answer.map(|answer| answer.q)));
        let _ = write!(
            text,
            "<tr><th scope=row class=name>{}</th><td>{}</td><td class=n>{}</td><td class=n>{}</td>\
             <td class=n>{opposed}</td><td class=n>{aligned}</td><td class=n>{apart}</td><td class=n>{}</td></tr>",
            escaped(&slice.name),
            slice.verdict,
            maybe(slice.mean_cosine),
            maybe(within(slice)),
            slice.conflicts
        );
    }
    text.push_str("</tbody></table></div><p class=soft>");
    if slices.len() > ROWS {
        let _ = write!(
            text,
            "{} more parameters are in report.json.",
            slices.len() - ROWS
        );
    }
    text.push_str("</p>");
}

/// The mean cosine of two samples of one task, on the average of both tasks: `apart` is tested by how far it
/// lies above that across them.
fn within(slice: &SliceConflicts) -> Option<f64> {
    Some(slice.mean_cosine? - slice.apart?.statistic)
}
