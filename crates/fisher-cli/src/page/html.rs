//! The page, section by section.

use std::collections::BTreeMap;
use std::fmt::Write;

use fisher_core::statistics::Statistics;
use fisher_metrics::conflicts::Verdict;
use fisher_metrics::importance::{ImportanceReport, Ranked};
use fisher_metrics::picture::ColorScale;
use fisher_metrics::picture::HeatMap;
use serde_json::Value;

use super::parts::{escaped, figure, maybe, note, number, percent, ranking, share};
use super::samples::{collisions, state, worst};
use crate::words::count;

/// The page, in a run's folder.
pub const PAGE: &str = "report.html";
/// How a page of this program begins to say so.
pub const GENERATOR: &str = "<meta name=generator content=\"fisher ";
use super::tasks::tasks;
use super::tokens::tokens;
use crate::measure::{Cost, Findings, MERGED, Measured, Merged, SampleTokens};

const STYLE: &str = include_str!("style.css");

/// What a page tells.
#[derive(Debug)]
pub struct Page<'a> {
    /// What was run, as in report.json.
    pub run: &'a Value,
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
        let measured = tasks(self.run, self.tasks, self.statistics);
        let sections: [(&str, &str, String); 9] = [
            ("tasks", "What was measured", measured),
            ("importance", "What each task depends on", self.importance()),
            ("overlap", "Where the tasks overlap", self.overlap()),
            ("conflicts", "Which samples collide", self.conflicts()),
            ("interference", "Which heads interfere", self.interference()),
            ("tokens", "Token by token", tokens(self.tokens)),
            ("merge", "What merging costs", self.merging()),
            ("health", "Health and warnings", self.health()),
            ("settings", "What was run", self.settings()),
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
             <footer><p>Made by {3}. Every number is in report.json and results.safetensors beside \
             this page.</p></footer>\n</body>\n</html>\n",
            escaped(&title),
            self.lead(),
            self.glance(),
            escaped(self.run["program"].as_str().unwrap_or_default()),
            env!("CARGO_PKG_VERSION"),
        )
    }

    /// One sentence about the model and the data.
    fn lead(&self) -> String {
        let model = &self.run["model"];
        let of = |key: &str| model[key].as_u64().unwrap_or(0);
        let tasks = self.tasks.iter().map(|task| {
            let tokens: u64 = task.tokens.iter().sum();
            let samples = count(task.ids.len(), "sample");
            let tokens = count(tokens as usize, "active token");
            format!("{samples} of {} with {tokens}", escaped(&task.name))
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
            "A {} model of {}, {heads} and {} weights; {}.",
            escaped(model["type"].as_str().unwrap_or("decoder")),
            count(of("layers") as usize, "layer"),
            large(of("weights")),
            tasks.collect::<Vec<_>>().join(", ")
        )
    }

    /// The findings in a few sentences.
    fn glance(&self) -> String {
        let mut said: Vec<String> = Vec::new();
        for report in &self.findings.importance {
            said.extend(most(report));
        }
        if let Some((key, report)) = self.findings.overlap.first() {
            said.push(format!(
                "Masks of both tasks ({}) share {} of what either keeps; beyond chance they agree by \
                 κ = {}.{}",
                escaped(&mask(key)),
                percent(report.all.jaccard),
                maybe(report.all.stratified),
                self.suggestion()
            ));
        }
        if let Some((_, report)) = self.findings.conflicts.first() {
            said.push(format!(
                "The expected cosine between samples of the tasks is negative in {} of {} parameters and \
                 positive in {} (q ≤ {}, {}); {}.",
                report.count(Verdict::Opposed),
                report.slices.len(),
                report.count(Verdict::Aligned),
                report.settings.alpha,
                report.space(),
                report.counted()
            ));
        }
        if said.is_empty() {
            return String::new();
        }
        let said: String = said.iter().map(|said| format!("<li>{said}</li>")).collect();
        format!("<div class=glance><ul>{said}</ul></div>")
    }

    fn importance(&self) -> String {
        let mut text = String::new();
        if self.findings.importance.is_empty() {
            return text;
        }
        text.push_str(
            "<p>A layer or head with much Fisher information is one whose weights the task's samples \
             are sensitive to: a small change there changes their loss much. Bars show F, whiskers \
             its 95\u{a0}% interval over samples. The rank is the set of ranks that the samples leave \
             open, 95\u{a0}% sure of all in a table at once. F that rests on few effective samples is made by a \
             few of them, and below 5 it has no interval.</p>",
        );
        for report in &self.findings.importance {
            let task = &report.task;
            for warning in &report.warnings {
                note(&mut text, &format!("{task}: {warning}"));
            }
            ranking(&mut text, &format!("{task}: layers"), &report.layers);
            ranking(
                &mut text,
                &format!("{task}: attention heads"),
                &report.heads,
            );
        }
        let heads = self.findings.importance.iter();
        if heads.map(|report| report.heads.len()).max() > Some(0)
            && let Some(said) = shared(&self.run["model"])
        {
            let _ = write!(text, "<p class=soft>{said}</p>");
        }
        let maps = self.findings.importance.iter();
        let maps: Vec<HeatMap> = maps.filter_map(|report| self.heads(report)).collect();
        if !maps.is_empty() {
            text.push_str("<h3>All heads</h3><div class=maps>");
            for map in maps {
                figure(&mut text, &map, "");
            }
            text.push_str("</div>");
        }
        text
    }

    /// Shares of the heads, layer by head.
    fn heads(&self, report: &ImportanceReport) -> Option<HeatMap> {
        let by_name: BTreeMap<&str, Option<f64>> = report
            .heads
            .iter()
            .map(|h| (&*h.name, h.share.map(|s| s.value)))
            .collect();
        let mut rows: Vec<(String, Vec<Option<f64>>)> = Vec::new();
        for key in self.statistics.totals().heads() {
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
            quantity: "per cent of all Fisher information: dark is more".into(),
        })
    }

    fn overlap(&self) -> String {
        let mut text = String::new();
        let Some((_, first)) = self.findings.overlap.first() else {
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
             common, halves against halves.</p><div class=scroll tabindex=0><table><caption>Masks of {a} and \
             {b}</caption><thead><tr><th scope=col>pruned</th><th scope=col class=n>Jaccard</th>\
             <th scope=col class=n>κ</th><th scope=col class=n>κ of halves of {a}</th>\
             <th scope=col class=n>of {b}</th><th scope=col class=n>across</th>\
             <th scope=col class=n>kept by both</th>\
             <th scope=col class=n>by chance</th><th scope=col class=n>only {a}</th>\
             <th scope=col class=n>only {b}</th></tr></thead><tbody>"
        );
        for (key, report) in &self.findings.overlap {
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
        let _ = write!(text, "</tbody></table></div><p>{}</p>", self.suggestion());
        if let Some(why) = &self.findings.without_halves {
            note(&mut text, why);
        }
        if let Some(comparison) = &self.findings.comparison {
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

    /// What all overlaps suggest, with a space before it.
    fn suggestion(&self) -> String {
        let suggestion = self.findings.suggestion.as_ref();
        suggestion.map_or(String::new(), |says| {
            format!(" {}.", escaped(&says.to_string()))
        })
    }

    fn conflicts(&self) -> String {
        let mut text = String::new();
        if self.findings.conflicts.is_empty() {
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
        for (space, report) in &self.findings.conflicts {
            let heading = match *space {
                "raw" => "Gradients as they are",
                _ => "The same of gradients weighed by the Fisher (whitened)",
            };
            let _ = write!(text, "<h3>{heading}</h3>");
            collisions(&mut text, report);
        }
        text
    }

    fn interference(&self) -> String {
        let mut text = String::new();
        if self.findings.interference.is_empty() {
            return text;
        }
        text.push_str(
            "<p>For every head and block (query, key, value, output), how much the gradients of one \
             task's samples weigh on what the other task's samples depend on: the mean over all pairs \
             of samples. Hover over a cell for its number. Query heads that share a key or value head \
             share its cells.</p>",
        );
        for (settings, report) in &self.findings.interference {
            let _ = write!(text, "<h3>Settings: {}</h3>", escaped(settings));
            for warning in &report.warnings {
                note(&mut text, warning);
            }
            if let Some(tested) = report.tested() {
                let _ = write!(text, "<p>{tested}; framed (*) where it is resolved.</p>");
            }
            text.push_str("<div class=maps>");
            for map in report.picture().maps {
                figure(&mut text, &map, "");
            }
            text.push_str("</div>");
            worst(&mut text, report);
        }
        text
    }

    fn merging(&self) -> String {
        let mut text = String::new();
        let (Some(merged), [first, second]) = (&self.findings.uses.merged, self.tasks) else {
            return text;
        };
        let other = plain(&self.run["merge_with"]);
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
            text += " What that costs was measured on the samples that the Fisher was measured on: by how \
                     much their loss rises beside that of the task's own model, with the 95\u{a0}% interval \
                     of the mean, paired by sample. The prediction beside it is ½ΣF(θ − θ₁)², the penalty of \
                     elastic weight consolidation; it leaves out the first order and all cross terms.</p>";
            costs(&mut text, merged, &first);
        }
        for warning in &merged.report.warnings {
            note(&mut text, warning);
        }
        text
    }

    fn health(&self) -> String {
        let mut text = String::new();
        for task in self.tasks {
            let name = &task.name;
            if let Some(first) = task.bad_lines.first() {
                let lines = count(task.bad_lines.len(), "bad line");
                note(
                    &mut text,
                    &format!(
                        "{lines} of {name} were left out, such as line {}: {}",
                        first.line, first.reason
                    ),
                );
            }
            if let Some([id, parameter]) = task.skipped.first() {
                let samples = count(task.skipped.len(), "sample");
                note(
                    &mut text,
                    &format!(
                        "{samples} of {name} without a finite gradient were left out, such as {id} (in {parameter})"
                    ),
                );
            }
        }
        for (space, report) in &self.findings.conflicts {
            for warning in &report.warnings {
                note(&mut text, &format!("conflicts ({space}): {warning}"));
            }
        }
        if let Some((settings, report)) = self.findings.interference.first() {
            state(&mut text, settings, report);
        }
        if text.is_empty() {
            "<p>Nothing was left out, and nothing needs a warning.</p>".into()
        } else {
            text
        }
    }

    fn settings(&self) -> String {
        let mut text = String::from("<dl>");
        let mut rows: Vec<(String, &Value)> = Vec::new();
        flatten("", self.run, &mut rows);
        // What stands elsewhere on the page.
        let here = |name: &str| {
            let said = ["loss per token", "files", "date", "seconds"];
            !said.iter().any(|said| name.starts_with(said))
        };
        for (name, value) in rows.into_iter().filter(|(name, _)| here(name)) {
            let value = escaped(&plain(value));
            let _ = write!(text, "<dt>{}</dt><dd>{value}</dd>", escaped(&name));
        }
        text + "</dl>"
    }
}

/// What tasks were measured to lose, and what was predicted for the first.
fn costs(text: &mut String, merged: &Merged, first: &str) {
    let total = |of: fn(&Cost) -> f64| merged.cost.values().map(of).sum::<f64>();
    text.push_str(
        "<div class=scroll tabindex=0><table><caption>Rise of the loss, in nats a token</caption><thead>\
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
            "<p>Most of the prediction for the merged weights comes from {}.</p>",
            shares.join(", ")
        );
    }
}

/// `layer 3` of an attention's path, by the first number in it; the path where there is none.
fn layer(attention: &str) -> String {
    let number = attention
        .split('.')
        .find_map(|part| part.parse::<usize>().ok());
    number.map_or_else(|| attention.into(), |number| format!("layer {number}"))
}

/// `global@0.5` in words.
fn mask(key: &str) -> String {
    let (scope, share) = key.split_once('@').unwrap_or((key, ""));
    let share = share
        .parse::<f64>()
        .map_or_else(|_| share.into(), |s| format!("{:.0} %", 100.0 * s));
    match scope {
        "global" => format!("{share} of all groups"),
        _ => format!("{share} of every {scope}"),
    }
}

fn large(n: u64) -> String {
    match n {
        0..100_000 => n.to_string(),
        100_000..1_000_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}

/// A setting as text.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => {
            const SHOWN: usize = 12;
            let mut words: Vec<String> = values.iter().take(SHOWN).map(plain).collect();
            if values.len() > SHOWN {
                words.push(format!("{} more", values.len() - SHOWN));
            }
            words.join(", ")
        }
        other => other.to_string(),
    }
}

/// Nested settings as `outer: inner`, without those that were not given.
fn flatten<'a>(prefix: &str, value: &'a Value, rows: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                let key = key.replace('_', " ");
                let name = if prefix.is_empty() {
                    key
                } else {
                    format!("{prefix}: {key}")
                };
                flatten(&name, value, rows);
            }
        }
        Value::Null => {}
        Value::Array(values) if values.is_empty() => {}
        value => rows.push((prefix.into(), value)),
    }
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
             information, {}{}",
            share(layer.share),
            sure(layer)
        ),
    };
    match report.heads.first() {
        Some(head) if head.fisher == 0.0 => {
            said.push_str("; the gradients of all attention heads are 0");
        }
        Some(head) if report.heads.len() > 1 => {
            let sure = if one { String::new() } else { sure(head) };
            let name = escaped(&head.name);
            let _ = write!(said, "; of the heads {name} has the largest{sure}");
        }
        _ => {}
    }
    Some(said + ".")
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

/// Whether first place holds, as words after a name.
fn sure(first: &Ranked) -> String {
    match first.ranks {
        Some(ranks) if ranks.worst == 1 => " (its first rank holds at 95\u{a0}%)".into(),
        Some(ranks) => format!(
            " (at 95\u{a0}% the samples leave its rank open from 1 to {})",
            ranks.worst
        ),
        None => " (whether its rank holds is not known)".into(),
    }
}
