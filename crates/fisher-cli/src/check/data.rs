//! Samples that are not what they should be.

use std::collections::BTreeMap;

use super::finding::{Finding, Judged};
use super::repeated::repeated;
use super::weights::few;
use crate::samples::TaskData;

/// Look at the samples of all tasks, of which at most so many were read of each.
pub(super) fn data(
    tasks: &[TaskData],
    most: usize,
    special: &BTreeMap<i64, String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for task in tasks {
        findings.push(lines(task, most));
        findings.push(ends(task, special));
    }
    findings.extend(repeated(tasks).findings());
    findings
}

fn lines(task: &TaskData, most: usize) -> Finding {
    let first = if task.samples.len() == most {
        "the first "
    } else {
        ""
    };
    let looked = format!("{}: {first}{} samples", task.name, task.samples.len());
    match task.bad.first() {
        None => Finding::new("lines", Judged::Fine, format!("{looked}, none left out")),
        Some(first) => {
            let said = format!(
                "{looked}, {} more left out; the first is line {}: {}; `fisher measure` stops at it, and leaves such \
                 lines out by --skip-bad",
                task.bad.len(),
                first.line,
                first.reason
            );
            Finding::new("lines", Judged::Warning, said)
        }
    }
}

/// The special token that a sample has twice in a row at its start, and at its end.
pub fn doubled(tokens: &[i64], special: &BTreeMap<i64, String>) -> [Option<i64>; 2] {
    let pair = |pair: &[i64]| match *pair {
        [a, b] if a == b && special.contains_key(&a) => Some(a),
        _ => None,
    };
    match tokens.len() {
        0 | 1 => [None; 2],
        n => [pair(&tokens[..2]), pair(&tokens[n - 2..])],
    }
}

fn ends(task: &TaskData, special: &BTreeMap<i64, String>) -> Finding {
    const TEST: &str = "special tokens";
    let name = &task.name;
    if special.is_empty() {
        let said = format!("{name}: neither config.json nor tokenizer.json names any");
        return Finding::new(TEST, Judged::Untested, said);
    }
    let all = task.samples.len();
    let with = |at: fn(&[i64]) -> Option<&i64>| {
        let found = task.samples.iter().filter_map(|sample| at(&sample.tokens));
        found.filter(|token| special.contains_key(token)).count()
    };
    let (begin, end) = (with(|t| t.first()), with(|t| t.last()));
    let twice = task.samples.iter().filter_map(|sample| {
        let [start, end] = doubled(&sample.tokens, special);
        let place = start
            .map(|token| (token, "start"))
            .or(end.map(|token| (token, "end")));
        place.map(|(token, place)| {
            let called = special.get(&token).map_or("", |name| name);
            format!("`{}` ({called} {token} at its {place})", sample.id)
        })
    });
    let twice: Vec<String> = twice.collect();
    let counts = format!("{name}: {begin} of {all} samples begin with one, {end} end with one");
    if !twice.is_empty() {
        let said = format!("{counts}; the same TWICE in {}", few(&twice));
        return Finding::new(TEST, Judged::Warning, said);
    }
    let mixed = |count: usize| count > 0 && count < all;
    if mixed(begin) || mixed(end) {
        return Finding::new(TEST, Judged::Warning, format!("{counts}: not all alike"));
    }
    Finding::new(
        TEST,
        Judged::Fine,
        format!("{counts}; none has one twice in a row there"),
    )
}
