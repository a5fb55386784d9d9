//! Text to tokens, by the folder's tokenizer.json.

use std::path::Path;

#[cfg(feature = "tokenizers")]
use tokenizers::Tokenizer;

/// Built without tokenizers, there is none.
#[cfg(not(feature = "tokenizers"))]
type Tokenizer = std::convert::Infallible;

/// A tokenizer.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
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
        let tokenizer = open(&path)?;
        Ok(Self { tokenizer })
    }

    /// The tokens of a text that goes on: with the special tokens that the tokenizer adds before it,
    /// and without those behind it.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode_open(&self, text: &str) -> Result<Vec<i64>, String> {
        let Tokens { ids, special } = tokens(&self.tokenizer, text, true)?;
        let behind = special.iter().rev().take_while(|s| **s == 1).count();
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
        let Tokens { ids, .. } = tokens(&self.tokenizer, text, special)?;
        Ok(ids.into_iter().map(i64::from).collect())
    }
}

impl Text {
    /// What each token of a text adds to it.
    pub fn pieces(&self, ids: &[i64]) -> Vec<String> {
        // How a token reads depends on the one before it, and hardly on more.
        const BEFORE: usize = 8;
        let piece = |at: usize| {
            let start = at.saturating_sub(BEFORE);
            let before = decoded(&self.tokenizer, &ids[start..at]);
            let with = decoded(&self.tokenizer, &ids[start..=at]);
            with.strip_prefix(&before)
                .map_or_else(|| decoded(&self.tokenizer, &ids[at..=at]), str::to_owned)
        };
        (0..ids.len()).map(piece).collect()
    }
}

/// Tokens, and 1 for each that the tokenizer added.
struct Tokens {
    ids: Vec<u32>,
    special: Vec<u32>,
}

#[cfg(feature = "tokenizers")]
fn open(path: &Path) -> Result<Tokenizer, String> {
    let fail = |e| format!("cannot read {}: {e}", path.display());
    let mut tokenizer = Tokenizer::from_file(path).map_err(fail)?;
    // The file may say how it was used last: nothing of a sample may be cut off or added.
    tokenizer.with_truncation(None).map_err(fail)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

#[cfg(not(feature = "tokenizers"))]
fn open(path: &Path) -> Result<Tokenizer, String> {
    Err(format!(
        "this program was built without the feature `tokenizers`, which text and {} need; build it with \
         `--features tokenizers`, or give `input_ids`",
        path.display()
    ))
}

#[cfg(feature = "tokenizers")]
fn tokens(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Tokens, String> {
    let encoding = tokenizer.encode(text, special);
    let encoding = encoding.map_err(|e| e.to_string())?;
    Ok(Tokens {
        ids: encoding.get_ids().to_vec(),
        special: encoding.get_special_tokens_mask().to_vec(),
    })
}

#[cfg(not(feature = "tokenizers"))]
fn tokens(tokenizer: &Tokenizer, _text: &str, _special: bool) -> Result<Tokens, String> {
    match *tokenizer {}
}

/// The text of tokens; nothing where the tokenizer has none for them.
#[cfg(feature = "tokenizers")]
fn decoded(tokenizer: &Tokenizer, ids: &[i64]) -> String {
    let ids: Vec<u32> = ids
        .iter()
        .filter_map(|&id| u32::try_from(id).ok())
        .collect();
    tokenizer.decode(&ids, false).unwrap_or_default()
}

#[cfg(not(feature = "tokenizers"))]
fn decoded(tokenizer: &Tokenizer, _ids: &[i64]) -> String {
    match *tokenizer {}
}
