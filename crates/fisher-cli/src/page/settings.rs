//! What was run.

use std::fmt::Write;

use serde_json::Value;

use super::parts::{escaped, plain};

/// The settings of the run, but for what stands elsewhere on the page.
pub(super) fn settings(run: &Value) -> String {
    let mut text = String::from("<dl>");
    let mut rows: Vec<(String, &Value)> = Vec::new();
    flatten("", run, &mut rows);
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
