//! Where the tasks overlap.

use std::fmt::Write;

use super::parts::{escaped, maybe, note};
use crate::measure::Findings;

/// Masks of both tasks at each sparsity, and their shares without masks.
pub(super) fn overlap(findings: &Findings) -> String {
    let mut text = String::new();
    let Some((_, first)) = findings.overlap.first() else {
        return text;
    };
    let [a, b] = first.tasks.each_ref().map(|task| escaped(task));
    let _ = write!(
        text,
        "<p>Each task keeps the groups (heads, channels, rows, single elements of vectors) that its \
         Fisher ranks highest; the table compares what is kept. Two random masks that keep half \
         share a third, so that Jaccard compares only at equal sparsity; κ is 0 for chance within \
         each tensor and 1 for the same mask. Halves of one task's samples agree with each other no \
         better than a task can agree with itself: they are the measure for what two tasks have in \
         common. Masks of halves are noisier than those of all samples, so that halves go with halves: <i>κ across \
         halves</i>, between a half of {a} and one of {b}, is what to hold against κ of the halves of each, and κ of \
         all samples is not. All three are means over several ways to halve.</p><div class=scroll tabindex=0><table><caption>Masks of {a} and \
         {b}</caption><thead><tr><th scope=col>pruned</th><th scope=col class=n>Jaccard</th>\
         <th scope=col class=n>κ</th><th scope=col class=n>κ of halves of {a}</th>\
         <th scope=col class=n>of {b}</th><th scope=col class=n>κ across halves</th>\
         <th scope=col class=n>kept by both</th>\
         <th scope=col class=n>by chance</th><th scope=col class=n>only {a}</th>\
         <th scope=col class=n>only {b}</th></tr></thead><tbody>"
    );
    for (key, report) in &findings.overlap {
        let all = &report.all;
        let ceiling = report.ceiling.as_ref();
        let [of_a, of_b] = [0, 1].map(|task| ceiling.and_then(|c| c.within[task]));
        let _ = write!(
            text,
            "<tr><th scope=row>{}</th><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td>\
             <td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{:.0}</td>\
             <td class=n>{}</td><td class=n>{}</td></tr>",
            escaped(&mask(key)),
            maybe(all.jaccard),
            maybe(all.stratified),
            maybe(of_a),
            maybe(of_b),
            maybe(ceiling.and_then(|c| c.across)),
            all.both,
            all.expected_intersection,
            all.only_a,
            all.only_b,
        );
    }
    text.push_str("</tbody></table></div>");
    if let Some(why) = &findings.without_halves {
        note(&mut text, why);
    }
    if let Some(comparison) = &findings.comparison {
        let _ = write!(
            text,
            "<p>Without masks, the shares of all groups: cosine {}, rank correlation {}, \
             Jensen-Shannon divergence {} nats (0 for equal shares, 0.693 for disjoint ones).</p>",
            maybe(comparison.cosine),
            maybe(comparison.spearman),
            maybe(comparison.jensen_shannon)
        );
    }
    text
}

/// `global@0.5` in words.
pub(super) fn mask(key: &str) -> String {
    let (scope, share) = key.split_once('@').unwrap_or((key, ""));
    let share = share
        .parse::<f64>()
        .map_or_else(|_| share.into(), |s| format!("{:.0} %", 100.0 * s));
    match scope {
        "global" => format!("{share} of all groups"),
        _ => format!("{share} of every {scope}"),
    }
}
