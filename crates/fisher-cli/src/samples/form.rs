//! In which form a line tells its sample.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `input_ids`, with or without `labels`.
    Tokens,
    /// `text`.
    Text,
    /// `prompt` and `completion`.
    Completion,
    /// `messages`.
    Chat,
}

impl Form {
    /// All, by the key that is theirs.
    const KEYS: [(&str, Self); 4] = [
        ("input_ids", Self::Tokens),
        ("text", Self::Text),
        ("prompt", Self::Completion),
        ("messages", Self::Chat),
    ];

    /// Forms that others have, by a key of theirs, and how they become one that is read.
    const OTHERS: [(&str, &str); 2] = [
        (
            "conversations",
            "it has `conversations` (the form of ShareGPT), which is not read: turn them into `messages` by \
             `jq -c '{messages: [.conversations[] | {role: ({human: \"user\", gpt: \"assistant\"}[.from] // .from), \
             content: .value}]}' FILE > NEW`",
        ),
        (
            "instruction",
            "it has `instruction` (the form of Alpaca), which is not read: turn it into `prompt` and `completion`, the \
             prompt as the model is asked, by such as `jq -c '{prompt: (.instruction + \"\\n\" + (.input // \"\") + \"\\n\"), \
             completion: .output}' FILE > NEW`",
        ),
    ];

    /// The form of a line.
    ///
    /// # Errors
    /// When it is in none, in several, or has keys of another.
    pub(super) fn of(row: &Map<String, Value>) -> Result<Self, String> {
        let has = |key: &str| row.get(key).is_some_and(|value| !value.is_null());
        let keys = Self::KEYS.iter().filter(|(key, _)| has(key));
        let keys: Vec<&str> = keys.map(|(key, _)| *key).collect();
        let form = match *keys {
            [key] => Self::KEYS.iter().find(|known| known.0 == key),
            [] => None,
            _ => return Err(format!("it has {}: give one of them", keys.join(" and "))),
        };
        let Some((key, form)) = form else {
            if let Some((_, what)) = Self::OTHERS.iter().find(|(key, _)| has(key)) {
                return Err((*what).into());
            }
            return Err(
                "it has neither `input_ids`, nor `text`, nor `prompt` and `completion`, nor `messages`"
                    .into(),
            );
        };
        if *form != Self::Tokens && has("labels") {
            return Err(format!("`labels` belong to `input_ids`, not to `{key}`"));
        }
        if *form != Self::Completion && has("completion") {
            return Err(format!("`completion` belongs to `prompt`, not to `{key}`"));
        }
        Ok(*form)
    }
}
