//! What was measured: files, samples, tokens, and how well the model predicts them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use fisher_core::statistics::Statistics;
use serde_json::Value;

use super::parts::{escaped, note, number, sentence, visible};
use crate::measure::{Beginnings, Measured, TokenLoss};
use crate::models::Outcomes;
use crate::words::count;

/// The tasks in a table, and when and for how long they were measured.
pub(super) fn tasks(
    run: &Value,
    outcomes: Outcomes,
    tasks: &[Measured],
    statistics: &Statistics,
    beginnings: &Beginnings,
) -> String {
    let interval =
        "with its 95\u{a0}% interval over samples, or over documents where samples name theirs";
    let said = match outcomes {
        Outcomes::Tokens(_) => format!(
            "The loss is that of the active tokens, in nats: the mean is over all of them alike, {interval}; the \
             median is over samples."
        ),
        Outcomes::Classes(_) => format!(
            "The loss is that of each sample's class, in nats: the mean is over samples, {interval}."
        ),
    };
    let [of, each] = outcomes.words();
    let mut text = format!(
        "<p>{said} Equal probabilities for all have ln({of}), here {}.</p>\
         <div class=scroll tabindex=0><table><caption>Tasks</caption><thead><tr><th scope=col>task</th>\
         <th scope=col>file</th><th scope=col class=n>samples</th>{}\
         <th scope=col class=n>loss per {each}</th><th scope=col class=n>median of samples</th>\
         <th scope=col class=n>lowest</th><th scope=col class=n>highest</th></tr></thead><tbody>",
        number(outcomes.uniform_loss()),
        match outcomes {
            Outcomes::Tokens(_) => "<th scope=col class=n>active tokens</th>",
            Outcomes::Classes(_) => "",
        },
    );
    for task in tasks {
        row(&mut text, run, outcomes, task, statistics);
    }
    text.push_str("</tbody></table></div>");
    let numbered = |task: &&Measured| task.ids.iter().any(|id| !id.is_string());
    if tasks.iter().any(|task| numbered(&task)) {
        text.push_str(
            "<p class=soft>A sample is called by its id; one that has none by the number of its line in the file, \
             counted from 1.</p>",
        );
    }
    for task in tasks {
        if let (Some(known), Ok(loss)) =
            (beginnings.get(&task.name), TokenLoss::of(task, statistics))
        {
            begin(&mut text, &task.name, &loss, known);
        }
    }
    for task in tasks.iter().filter(|task| task.ids.len() == 1) {
        let said = "has one sample: nothing that is said of it has an error, an interval or a rank";
        note(&mut text, &format!("{} {said}", task.name));
    }
    let when = when(run);
    if !when.is_empty() {
        let _ = write!(text, "<p class=soft>{}</p>", sentence(&when.join(", ")));
    }
    text
}

fn row(
    text: &mut String,
    run: &Value,
    outcomes: Outcomes,
    task: &Measured,
    statistics: &Statistics,
) {
    let tokens: u64 = task.tokens.iter().sum();
    let [path, file] = file(&run["files"][&task.name]);
    let _ = write!(
        text,
        "<tr><th scope=row>{}</th><td title=\"{}\">{}</td><td class=n>{}</td>",
        escaped(&task.name),
        escaped(&path),
        escaped(&file),
        task.ids.len(),
    );
    if let Outcomes::Tokens(_) = outcomes {
        let _ = write!(text, "<td class=n>{tokens}</td>");
    }
    let Ok(loss) = TokenLoss::of(task, statistics) else {
        text.push_str(
            "<td class=n>–</td><td class=n>–</td><td class=n>–</td><td class=n>–</td></tr>",
        );
        return;
    };
    let interval = loss.interval.map_or(String::new(), |[low, high]| {
        let ends = format!("{}\u{2009}to\u{2009}{}", number(low), number(high));
        format!(" <small>({ends})</small>")
    });
    let [lowest, highest] = loss
        .range
        .map(|(loss, id)| format!("{} <small>({})</small>", number(loss), escaped(&id)));
    let _ = write!(
        text,
        "<td class=n>{}{interval}</td><td class=n>{}</td><td class=n>{lowest}</td><td class=n>{highest}</td></tr>",
        number(loss.mean),
        number(loss.median),
    );
}

/// How the samples of the lowest and the highest loss begin.
fn begin(text: &mut String, task: &str, loss: &TokenLoss, known: &BTreeMap<String, String>) {
    let named = ["lowest", "highest"].into_iter().zip(&loss.range);
    let said = named.filter_map(|(what, (_, id))| {
        let begins = escaped(&visible(known.get(id)?));
        Some(format!(
            "the {what}, {}, begins <q>{begins}</q>",
            escaped(id)
        ))
    });
    let said: Vec<String> = said.collect();
    if !said.is_empty() {
        let name = escaped(task);
        let _ = write!(text, "<p class=soft>{name}: {}.</p>", said.join("; "));
    }
}

/// The path of a file, and its name; of several files all paths, and the first names.
fn file(files: &Value) -> [String; 2] {
    const SHOWN: usize = 3;
    let paths: Vec<&str> = match files {
        Value::String(path) => vec![path],
        Value::Array(paths) => paths.iter().filter_map(Value::as_str).collect(),
        _ => return ["not known".into(), "–".into()],
    };
    let name = |path: &&str| {
        let name = Path::new(path).file_name();
        name.map_or_else(
            || (*path).into(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    let mut names: Vec<String> = paths.iter().take(SHOWN).map(name).collect();
    if paths.len() > SHOWN {
        names.push(format!("{} more", paths.len() - SHOWN));
    }
    [paths.join(", "), names.join(", ")]
}

/// When, for how long and in how many runs it was measured, as far as that is known.
fn when(run: &Value) -> Vec<String> {
    let mut when = Vec::new();
    if let Some(date) = run["date"].as_str() {
        when.push(format!("written {}", escaped(date)));
    }
    if let Some(seconds) = run["seconds"].as_f64() {
        let took = duration(seconds);
        when.push(format!(
            "this call of the program took {took} (calls that it went on from are not counted)"
        ));
    }
    if let Some(runs) = run["collection"]["merged"].as_array() {
        when.push(format!("joined from {}", count(runs.len(), "run")));
    }
    when
}

/// Seconds, minutes or hours.
fn duration(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.1} s"),
        120.0..7200.0 => format!("{:.1} minutes", seconds / 60.0),
        _ => format!("{:.1} hours", seconds / 3600.0),
    }
}
