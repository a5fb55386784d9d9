//! Tokens that begin, end and pad.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// The tokens that a folder calls special, with what it calls them: `bos_token_id`, `eos_token_id` and `pad_token_id` of config.json and
/// generation_config.json, and the added tokens of tokenizer.json that are special. A file that is not there, or is no JSON, names none.
pub fn special_tokens(folder: &Path) -> BTreeMap<i64, String> {
    let json = |file: &str| -> Option<Value> {
        let bytes = std::fs::read(folder.join(file)).ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    let mut special = BTreeMap::new();
    for file in ["config.json", "generation_config.json"] {
        let Some(config) = json(file) else { continue };
        for field in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            let ids = match &config[field] {
                Value::Array(ids) => ids.clone(),
                id => vec![id.clone()],
            };
            for id in ids.iter().filter_map(Value::as_i64) {
                let name = field.trim_end_matches("_token_id").to_uppercase();
                special.entry(id).or_insert(name);
            }
        }
    }
    let tokenizer = json("tokenizer.json").unwrap_or_default();
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    for token in added.filter(|token| token["special"] == true) {
        if let (Some(id), Some(content)) = (token["id"].as_i64(), token["content"].as_str()) {
            special.insert(id, content.into());
        }
    }
    special
}
