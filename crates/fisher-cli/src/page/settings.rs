//! What was run.

use std::fmt::Write;

use serde_json::Value;

use super::parts::{escaped, plain};

/// What stands elsewhere on the page, or is the same in every run: units are told where F is.
const LEFT_OUT: [&str; 7] = [
    "loss per token",
    "files",
    "date",
    "seconds",
    "provenance: loss",
    "provenance: unit",
    "provenance: reduction",
];

/// The settings of the run, but for what stands elsewhere on the page or has no say in it.
pub(super) fn settings(run: &Value) -> String {
    let mut text = String::from("<dl>");
    let mut rows: Vec<(String, &Value)> = Vec::new();
    flatten("", run, &mut rows);
    let drawn = run["collection"]["kind"] == "monte_carlo";
    let merged = !run["merge_with"].is_null();
    let here = |name: &str| match name {
        "collection: draws" => drawn,
        "merge scale" => merged,
        name => !LEFT_OUT.iter().any(|said| name.starts_with(said)),
    };
    for (name, value) in rows.into_iter().filter(|(name, _)| here(name)) {
        let value = match (&*name, value.as_u64()) {
            ("memory", Some(bytes)) => size(bytes),
            _ => plain(value),
        };
        let _ = write!(
            text,
            "<dt>{}</dt><dd>{}</dd>",
            escaped(&name),
            escaped(&value)
        );
    }
    text + "</dl>"
}

/// Bytes, in a unit that leaves few digits.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
    ];
    let whole = |(_, of): &&(&str, u64)| bytes >= *of && bytes.is_multiple_of(*of);
    match UNITS.iter().find(whole) {
        Some((unit, of)) => format!("{} {unit}", bytes / of),
        None if bytes < 1_000_000 => format!("{bytes} bytes"),
        None => format!("{:.1} MB", bytes as f64 / 1e6),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_have_units_and_no_more_than_counts() {
        let run = |kind: &str| {
            settings(&json!({
                "memory": 2_147_483_648u64, "merge_scale": "none", "merge_with": null,
                "provenance": {"kind": kind, "loss": "token_sum", "unit": "per_token", "reduction": "mean"},
                "collection": {"kind": kind, "draws": 4},
            }))
        };
        let text = run("empirical");
        assert!(text.contains("<dt>memory</dt><dd>2 GiB</dd>"), "{text}");
        for never in ["token_sum", "reduction", "draws", "merge scale"] {
            assert!(!text.contains(never), "{text}");
        }
        assert!(run("monte_carlo").contains("<dt>collection: draws</dt><dd>4</dd>"));
        assert_eq!(size(500_000_000), "500 MB");
        assert_eq!(size(1_234_567_890), "1234.6 MB");
    }
}
