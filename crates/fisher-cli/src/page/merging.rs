//! What merging costs.

use std::fmt::Write;

use serde_json::Value;

use super::parts::{escaped, maybe, note, number, plain};
use crate::measure::{Cost, Findings, MERGED, Measured, Merged};
use crate::models::Outcomes;

/// How the models were merged, and what that costs.
pub(super) fn merging(
    run: &Value,
    outcomes: Outcomes,
    tasks: &[Measured],
    findings: &Findings,
) -> String {
    let mut text = String::new();
    let (Some(merged), [first, second]) = (&findings.uses.merged, tasks) else {
        return text;
    };
    let other = plain(&run["merge_with"]);
    let [first, second] = [first, second].map(|task| escaped(&task.name));
    let at = if merged.own_fisher {
        "each by its own Fisher"
    } else {
        "both by a Fisher taken at this model"
    };
    let _ = write!(
        text,
        "<p>This model, for {first}, and {}, for {second}, were averaged element by element, weighed \
         {at}; the result is in the folder <b>{MERGED}</b>.",
        escaped(&other),
    );
    if merged.measured.is_empty() {
        text += " What that costs was not measured: the samples are not at hand.</p>";
    } else {
        text += " What that costs was measured on the samples of this run, which its Fisher is of too: by how \
                 much their loss rises beside that of the task's own model, with the 95\u{a0}% interval of the \
                 mean over samples, or over documents where samples name theirs. The prediction beside it is \
                 ½ΣF(θ − θ₁)², the penalty of elastic weight consolidation; it leaves out the first order and all cross terms.</p>";
        costs(&mut text, outcomes, merged, &first);
    }
    for warning in &merged.report.warnings {
        note(&mut text, warning);
    }
    text
}

/// What tasks were measured to lose, and what was predicted for the first.
fn costs(text: &mut String, outcomes: Outcomes, merged: &Merged, first: &str) {
    let total = |of: fn(&Cost) -> f64| merged.cost.values().map(of).sum::<f64>();
    let [_, each] = outcomes.words();
    let _ = write!(
        text,
        "<div class=scroll tabindex=0><table><caption>Rise of the loss, in nats a {each}</caption><thead>\
         <tr><th scope=col>task</th><th scope=col>weights</th><th scope=col class=n>measured</th>\
         <th scope=col class=n>from</th><th scope=col class=n>to</th><th scope=col class=n>predicted</th>\
         </tr></thead><tbody>",
    );
    for change in &merged.measured {
        let task = escaped(&change.task);
        let predicted = match (task == first, change.weights) {
            (true, "merged") => Some(total(|cost| cost.merged)),
            (true, _) => Some(total(|cost| cost.second)),
            _ => None,
        };
        let [from, to] = [0, 1].map(|end| change.interval.map(|interval| interval[end]));
        let _ = write!(
            text,
            "<tr><th scope=row>{task}</th><td>{}</td><td class=n>{}</td><td class=n>{}</td>\
             <td class=n>{}</td><td class=n>{}</td></tr>",
            match change.weights {
                "merged" => "merged",
                _ => "the other model's",
            },
            number(change.mean),
            maybe(from),
            maybe(to),
            maybe(predicted),
        );
    }
    *text += "</tbody></table></div>";
    let mut shares: Vec<_> = merged.cost.iter().collect();
    shares.sort_by(|(_, a), (_, b)| b.merged.total_cmp(&a.merged));
    let all = total(|cost| cost.merged);
    if all > 0.0 {
        let shares = shares.into_iter().take(3).map(|(path, cost)| {
            format!(
                "{} ({:.0}\u{a0}%)",
                escaped(path),
                100.0 * cost.merged / all
            )
        });
        let shares: Vec<String> = shares.collect();
        let _ = write!(
            text,
            "<p>The largest parts of the prediction for the merged weights are those of {}.</p>",
            shares.join(", ")
        );
    }
}
