//! What each task depends on.

use std::collections::BTreeMap;
use std::fmt::Write;

use fisher_core::kind::FisherKind;
use fisher_core::statistics::Statistics;
use fisher_metrics::importance::ImportanceReport;
use fisher_metrics::picture::{ColorScale, HeatMap};
use serde_json::Value;

use super::parts::{IN_REPORT, figure, note, ranking, untold};
use crate::models::Outcomes;
use crate::words::count;

/// Rankings of layers and heads, and shares of all heads.
pub(super) fn importance(
    reports: &[ImportanceReport],
    run: &Value,
    outcomes: Outcomes,
    statistics: &Statistics,
) -> String {
    let mut text = String::new();
    if reports.is_empty() {
        return text;
    }
    let changed = match statistics.provenance().kind {
        FisherKind::MonteCarlo | FisherKind::Exact => "what the model predicts for the samples",
        _ => "the samples' loss",
    };
    let unit = match outcomes {
        Outcomes::Tokens(_) => {
            "squared nats a token: the square of the gradient of a sample's summed loss, over its active tokens, \
             on the average of samples, summed over the weights of a layer or head"
        }
        Outcomes::Classes(_) => {
            "squared nats: the square of the gradient of a sample's loss, on the average of samples, summed over the \
             weights of a layer or head"
        }
    };
    let _ = write!(
        text,
        "<p>A layer or head with much Fisher information is one whose weights the task's samples \
         are sensitive to: small random changes of these change {changed} much. F is in {unit}. Bars show F, \
         whiskers its 95\u{a0}% interval over samples, or over documents where samples name theirs. The rank is the \
         set of ranks that the samples leave open, 95\u{a0}% sure of all in a table at once; the interval of a share \
         or of F is of that layer or head alone, so that intervals may lie apart where ranks are open. F that rests \
         on few effective samples is made by a few of them, and below 5 it has no interval.</p>",
    );
    if let Some(said) = experts(&run["model"]["experts"]) {
        let _ = write!(text, "<p>{said}</p>");
    }
    for report in reports {
        let task = &report.task;
        for warning in &report.warnings {
            note(&mut text, &format!("{task}: {warning}"));
        }
        for (what, ranked) in [("layers", &report.layers), ("heads", &report.heads)] {
            if untold(ranked) {
                let samples = count(report.samples, "sample");
                let said =
                    format!("{task}: {samples} do not tell {what} apart, every rank is open");
                note(&mut text, &said);
            }
        }
        ranking(&mut text, &format!("{task}: layers"), &report.layers);
        ranking(
            &mut text,
            &format!("{task}: attention heads"),
            &report.heads,
        );
    }
    if reports.iter().any(|report| !report.heads.is_empty())
        && let Some(said) = shared(&run["model"])
    {
        let _ = write!(text, "<p class=soft>{said}</p>");
    }
    let maps = reports.iter();
    let maps: Vec<HeatMap> = maps.filter_map(|of| picture(of, statistics)).collect();
    if !maps.is_empty() {
        text.push_str("<h3>All heads</h3><div class=maps>");
        for map in maps {
            figure(&mut text, &map, "", IN_REPORT);
        }
        text.push_str("</div>");
    }
    text
}

/// What F is of where tokens choose experts.
fn experts(experts: &Value) -> Option<String> {
    let [count, chosen] = ["count", "chosen"].map(|key| experts[key].as_u64());
    Some(format!(
        "In layers of experts each token uses {} of {}. Which ones is taken as given: what another choice \
         would change is not in F, and the weights of an expert that no token of the samples chose have F = 0, \
         which says nothing of other samples.",
        chosen?, count?
    ))
}

/// Which query heads share which key/value head, where they do.
fn shared(model: &Value) -> Option<String> {
    let [heads, shared] = ["heads", "kv_heads"].map(|key| model[key].as_u64().unwrap_or(0));
    if shared == 0 || heads <= shared || heads % shared != 0 {
        return None;
    }
    let each = heads / shared;
    let group = |head: u64| {
        let (first, last) = (head * each, (head + 1) * each - 1);
        format!("{first} to {last} share key/value head {head}")
    };
    let groups: Vec<String> = (0..shared.min(4)).map(group).collect();
    let more = if shared > 4 { ", and so on" } else { "" };
    Some(format!(
        "Query heads {}{more}. What a shared key/value head has counts to each of its query heads in equal \
         parts.",
        groups.join(", ")
    ))
}

/// Shares of the heads, layer by head.
fn picture(report: &ImportanceReport, statistics: &Statistics) -> Option<HeatMap> {
    let by_name: BTreeMap<&str, Option<f64>> = report
        .heads
        .iter()
        .map(|h| (&*h.name, h.share.map(|s| s.value)))
        .collect();
    let mut rows: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for key in statistics.totals().heads() {
        let name = format!("{} head {}", key.attention, key.head);
        let share = by_name.get(&*name).copied().flatten();
        match rows.last_mut() {
            Some((attention, shares)) if *attention == key.attention => shares.push(share),
            _ => rows.push((key.attention.clone(), vec![share])),
        }
    }
    let columns = rows.iter().map(|(_, shares)| shares.len()).max()?;
    let percent = |shares: Vec<Option<f64>>| {
        let shares = shares.into_iter().map(|s| s.map(|s| 100.0 * s));
        shares.collect()
    };
    Some(HeatMap {
        title: format!("{}: share of each head, in per cent", report.task),
        rows: rows.iter().map(|(attention, _)| layer(attention)).collect(),
        columns: (0..columns).map(|head| head.to_string()).collect(),
        axes: ["layer".into(), "query head".into()],
        marked: Vec::new(),
        values: rows
            .into_iter()
            .map(|(_, shares)| percent(shares))
            .collect(),
        scale: ColorScale::Sequential,
        quantity: "per cent of the Fisher information that was measured: dark is more".into(),
    })
}

/// `layer 3` of an attention's path, by the first number in it; the path where there is none.
fn layer(attention: &str) -> String {
    let number = attention
        .split('.')
        .find_map(|part| part.parse::<usize>().ok());
    number.map_or_else(|| attention.into(), |number| format!("layer {number}"))
}
