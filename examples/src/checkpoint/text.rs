//! Text to tokens, by the folder's tokenizer.json.

use std::path::Path;

/// A tokenizer.
#[derive(Debug)]
pub struct Text {
    tokenizer: tokenizers::Tokenizer,
}

impl Text {
    /// Read `tokenizer.json` of a folder.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(format!("there is no {}: give `input_ids`", path.display()));
        }
        let fail = |e| format!("cannot read {}: {e}", path.display());
        let mut tokenizer = tokenizers::Tokenizer::from_file(&path).map_err(fail)?;
        // The file may say how it was used last: nothing of a sample may be cut off or added.
        tokenizer.with_truncation(None).map_err(fail)?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer })
    }

    /// The tokens of a text that goes on: with the special tokens that the tokenizer adds before it,
    /// and without those behind it.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode_open(&self, text: &str) -> Result<Vec<i64>, String> {
        let encoding = self.tokenizer.encode(text, true);
        let encoding = encoding.map_err(|e| e.to_string())?;
        let special = encoding.get_special_tokens_mask();
        let behind = special.iter().rev().take_while(|s| **s == 1).count();
        let ids = encoding.get_ids();
        // Before an empty text there is no behind.
        let end = if behind == ids.len() {
            ids.len()
        } else {
            ids.len() - behind
        };
        Ok(ids[..end].iter().map(|&id| i64::from(id)).collect())
    }

    /// The tokens of a text, with the special tokens that the tokenizer adds if `special`.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>, String> {
        let encoding = self
            .tokenizer
            .encode(text, special)
            .map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }
}
