//! What a page tells of samples against samples.

use std::fmt::Write;

use fisher_metrics::conflicts::{ConflictReport, SliceConflicts, Verdict};
use fisher_metrics::damping::Health;
use fisher_metrics::interference::{InterferenceReport, Variant};

use super::parts::{escaped, figure, maybe, number, percent, sentence};
use crate::measure::{DRAWN, SENTENCES};
use crate::words::count;

/// Conflicts: in numbers, in words, by parameter, and every pair of the first of those.
pub(super) fn collisions(text: &mut String, report: &ConflictReport) {
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
            figure(text, &map, &picture.note);
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

/// The pairs of samples with the worst scores.
pub(super) fn worst(text: &mut String, report: &InterferenceReport) {
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

/// Slices whose F is told.
const SLICES: usize = 40;

/// F of the heads that the scores are divided by.
pub(super) fn state(text: &mut String, settings: &str, report: &InterferenceReport) {
    let _ = write!(
        text,
        "<p>The Fisher that interference ({}) divides by, over each slice, and the damping λ that was \
         added. Where λ is more than a hundredth of the median it decides more than F does.</p>\
         <details><summary>{}</summary><div class=scroll tabindex=0><table><thead><tr>\
         <th scope=col>slice</th><th scope=col class=n>smallest F</th><th scope=col class=n>median</th>\
         <th scope=col class=n>largest</th><th scope=col class=n>below ε</th>\
         <th scope=col class=n>λ</th></tr></thead><tbody>",
        escaped(settings),
        match report.slices.len() {
            all if all > SLICES => format!("The {SLICES} of {all} slices that are damped most"),
            all => count(all, "slice"),
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
    for (slice, health) in slices.into_iter().take(SLICES) {
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
