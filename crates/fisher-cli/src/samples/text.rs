//! Text to tokens, by the folder's tokenizer.json.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use fisher_train::labels::IGNORE;
#[cfg(feature = "tokenizers")]
use tokenizers::{Encoding, Token, Tokenizer};

/// Built without tokenizers, there is none.
#[cfg(not(feature = "tokenizers"))]
type Tokenizer = std::convert::Infallible;

/// A tokenizer.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    added: Added,
}

/// Tokens that a tokenizer adds to a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Added {
    /// Before it.
    pub before: Vec<String>,
    /// Behind it.
    pub after: Vec<String>,
}

impl fmt::Display for Added {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let list = |tokens: &[String]| {
            let tokens: Vec<String> = tokens.iter().map(|token| format!("`{token}`")).collect();
            if tokens.is_empty() {
                "nothing".into()
            } else {
                tokens.join(" ")
            }
        };
        let (before, after) = (list(&self.before), list(&self.after));
        match (self.before.is_empty(), self.after.is_empty()) {
            (true, true) => write!(out, "the tokenizer adds nothing before or after a sample"),
            _ => write!(
                out,
                "the tokenizer adds {before} before each sample and {after} after"
            ),
        }
    }
}

/// The tokens of a text, and where in it each stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The tokens.
    pub ids: Vec<i64>,
    /// The bytes of the text that each was made of. What the tokenizer added before the text is at
    /// `0..0`, and behind it one further than its end.
    spans: Vec<Range<usize>>,
    /// Bytes of the text.
    length: usize,
    /// Whether spans run along the text.
    ordered: bool,
}

impl Tokens {
    /// Labels where only some parts of the text count: the token where it has part in one of those,
    /// [`IGNORE`] elsewhere. A token that stands across a border counts, since some of what it says is
    /// to be predicted. What was added counts with the part that it is next to.
    ///
    /// # Errors
    /// When the tokenizer does not say where its tokens stand.
    pub fn labels(&self, parts: &[Range<usize>]) -> Result<Vec<i64>, String> {
        if !self.ordered {
            return Err(
                "the tokenizer does not say where in a text its tokens stand (no offsets), so one part of it \
                 cannot be told from another: give `input_ids` and `labels`"
                    .into(),
            );
        }
        // White space at a token's beginning may be left out of its span, never what is at its end: a
        // token of white space alone has only an end.
        let counts = |span: &Range<usize>| {
            parts.iter().any(|part| {
                let begun = span.end > part.start || part.start == 0;
                begun && (span.start < part.end || part.end == self.length)
            })
        };
        let labels = self.ids.iter().zip(&self.spans);
        let labels = labels.map(|(id, span)| if counts(span) { *id } else { IGNORE });
        Ok(labels.collect())
    }
}

impl Text {
    /// Read `tokenizer.json` of a folder. It decides what is added, whatever tokenizer_config.json has as
    /// `add_bos_token`: so does transformers.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            let others = ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"];
            let other = others.iter().find(|name| folder.join(name).exists());
            let how = other.map_or(String::new(), |other| {
                format!(
                    ", and {other} is not read (`AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` of \
                     transformers makes one of the other)"
                )
            });
            return Err(format!(
                "there is no {}{how}: give `input_ids`",
                path.display()
            ));
        }
        let tokenizer = open(&path)?;
        let added = added(&tokenizer)?;
        Ok(Self { tokenizer, added })
    }

    /// What is added to a text.
    pub fn added(&self) -> &Added {
        &self.added
    }

    /// The tokens of a text, with those that the tokenizer adds if `special`.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn tokens(&self, text: &str, special: bool) -> Result<Tokens, String> {
        tokens(&self.tokenizer, text, special)
    }

    /// The tokens of a prompt and its completion as those of one text, and labels where only the
    /// completion counts.
    ///
    /// # Errors
    /// What the tokenizer says; when it does not say where its tokens stand.
    pub fn completed(&self, prompt: &str, completion: &str) -> Result<(Tokens, Vec<i64>), String> {
        let whole = format!("{prompt}{completion}");
        let tokens = self.tokens(&whole, true)?;
        let labels = tokens.labels(std::slice::from_ref(&(prompt.len()..whole.len())))?;
        Ok((tokens, labels))
    }
}

#[cfg(not(feature = "tokenizers"))]
fn open(path: &Path) -> Result<Tokenizer, String> {
    Err(format!(
        "this program was built without the feature `tokenizers`, which text and {} need; build it with \
         `--features tokenizers`, or give `input_ids`",
        path.display()
    ))
}

#[cfg(not(feature = "tokenizers"))]
fn added(tokenizer: &Tokenizer) -> Result<Added, String> {
    match *tokenizer {}
}

#[cfg(not(feature = "tokenizers"))]
fn tokens(tokenizer: &Tokenizer, _text: &str, _special: bool) -> Result<Tokens, String> {
    match *tokenizer {}
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

/// What the tokenizer adds to a text of one token.
#[cfg(feature = "tokenizers")]
fn added(tokenizer: &Tokenizer) -> Result<Added, String> {
    let one = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
    let all = tokenizer
        .post_process(one, None, true)
        .map_err(|e| e.to_string())?;
    let tokens = all.get_tokens();
    let text = all.get_special_tokens_mask().iter().position(|s| *s == 0);
    let text = text.ok_or("the tokenizer's template leaves the text out")?;
    Ok(Added {
        before: tokens[..text].to_vec(),
        after: tokens[text + 1..].to_vec(),
    })
}

#[cfg(feature = "tokenizers")]
fn tokens(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Tokens, String> {
    let encoding = tokenizer.encode(text, special).map_err(|e| e.to_string())?;
    let mask = encoding.get_special_tokens_mask();
    let of_text = |at: &usize| mask[*at] == 0;
    let first = (0..mask.len()).find(of_text).unwrap_or(mask.len());
    let last = (0..mask.len()).rfind(of_text).unwrap_or(0);
    let offsets = encoding.get_offsets();
    let spans = (0..offsets.len()).map(|at| match at {
        _ if at < first => 0..0,
        _ if at > last => text.len()..text.len() + 1,
        _ => offsets[at].0..offsets[at].1,
    });
    let inside = offsets.get(first..=last).unwrap_or_default();
    Ok(Tokens {
        ids: encoding.get_ids().iter().map(|id| i64::from(*id)).collect(),
        spans: spans.collect(),
        length: text.len(),
        ordered: run_along(inside.iter().map(|(_, end)| *end)),
    })
}

/// Whether tokens that end so stand one after the other in a text, and not all nowhere.
#[cfg(any(feature = "tokenizers", test))]
fn run_along(ends: impl Iterator<Item = usize>) -> bool {
    let ends: Vec<usize> = ends.collect();
    ends.is_sorted() && ends.last().is_none_or(|end| *end > 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer without offsets puts every token at the beginning.
    #[test]
    fn where_tokens_stand_nowhere_nothing_is_split() {
        let tokens = |ends: [usize; 3]| Tokens {
            ids: vec![5, 6, 7],
            spans: ends.map(|end| end.saturating_sub(2)..end).into(),
            length: 6,
            ordered: run_along(ends.into_iter()),
        };
        let part = std::slice::from_ref(&(4..6));
        assert_eq!(tokens([2, 4, 6]).labels(part), Ok(vec![IGNORE, IGNORE, 7]));
        for ends in [[0, 0, 0], [2, 6, 4]] {
            let error = tokens(ends).labels(part).expect_err("no offsets");
            assert!(error.contains("no offsets"), "{error}");
        }
    }
}
