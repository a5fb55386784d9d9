//! What tokenizer_config.json says.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// What is said of a tokenizer beside tokenizer.json.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerSettings {
    /// `bos_token`, `eos_token` and others, which templates of chats ask for.
    pub special: BTreeMap<String, String>,
    /// `chat_template`.
    pub template: Option<Value>,
}

impl TokenizerSettings {
    /// Read tokenizer_config.json of a folder, and special_tokens_map.json for what that does not say.
    /// Where there are none, nothing is said.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let config = json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let mut special = BTreeMap::new();
        for of in [
            json(&folder.join("special_tokens_map.json"))?.unwrap_or_default(),
            config.clone(),
        ] {
            let tokens = of.as_object().into_iter().flatten();
            let tokens = tokens.filter(|(key, _)| key.ends_with("_token"));
            // As the text, or with settings of how it is found.
            let text = |value: &Value| {
                let text = value.as_str().or_else(|| value["content"].as_str());
                text.map(str::to_owned)
            };
            special.extend(tokens.filter_map(|(key, value)| Some((key.clone(), text(value)?))));
        }
        Ok(Self {
            template: Some(config["chat_template"].clone()).filter(|value| !value.is_null()),
            special,
        })
    }
}

/// A file of JSON, where it is there.
pub(super) fn json(path: &Path) -> Result<Option<Value>, String> {
    let fail = |e: &dyn std::fmt::Display| format!("cannot read {}: {e}", path.display());
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| fail(&e)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(&error)),
    }
}
