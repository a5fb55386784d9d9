//! Samples of a task as JSON lines.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::decoder::Sequence;
use fisher_train::IGNORE;

/// What a file of samples must keep to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// The longest sequence.
    pub context: usize,
}

/// Turns text into tokens, with the special ones or without.
pub type Encode<'a> = dyn Fn(&str, bool) -> Result<Vec<i64>, String> + 'a;

/// A line that is no sample.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {reason}", file.display())]
pub struct BadLine {
    /// The file.
    pub file: PathBuf,
    /// From 1; 0 for the whole file.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// The samples of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// Those that are good, in order.
    pub sequences: Vec<Sequence>,
    /// Those that were left out.
    pub bad: Vec<BadLine>,
}

/// Read a file of one JSON object a line: `{"id"?, "input_ids", "labels"?}`, `{"id"?, "text"}` or
/// `{"id"?, "prompt", "completion"}`, whose prompt does not count. Labels are not shifted. A sample
/// without an id is called by its line number.
///
/// Text is encoded with the tokenizer's special tokens; a completion without, behind its prompt.
/// Stops after `most` samples. With `skip`, bad lines are left out and listed.
///
/// # Errors
/// [`BadLine`], with file, line and reason.
pub fn read(
    file: &Path,
    encode: &Encode,
    limits: Limits,
    most: Option<usize>,
    skip: bool,
) -> Result<Samples, BadLine> {
    let bad = |line: usize, reason: String| BadLine {
        file: file.into(),
        line,
        reason,
    };
    let text = std::fs::read_to_string(file).map_err(|e| bad(0, e.to_string()))?;
    let mut samples = Samples {
        sequences: Vec::new(),
        bad: Vec::new(),
    };
    let mut seen = HashSet::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        if most.is_some_and(|most| samples.sequences.len() >= most) {
            break;
        }
        let sequence = parse(line, index + 1, encode, limits).and_then(|sequence| {
            match seen.insert(sequence.id.clone()) {
                true => Ok(sequence),
                false => Err(format!("the id `{}` came before", sequence.id)),
            }
        });
        match sequence {
            Ok(sequence) => samples.sequences.push(sequence),
            Err(reason) if skip => samples.bad.push(bad(index + 1, reason)),
            Err(reason) => return Err(bad(index + 1, reason)),
        }
    }
    match samples.sequences.is_empty() {
        true => Err(bad(0, "there is no sample in it".into())),
        false => Ok(samples),
    }
}

fn parse(line: &str, number: usize, encode: &Encode, limits: Limits) -> Result<Sequence, String> {
    let json: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let entries = json.as_object().ok_or("it is no JSON object")?;
    let known = ["id", "input_ids", "labels", "text", "prompt", "completion"];
    if let Some(key) = entries.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("`{key}` is none of {}", known.join(", ")));
    }
    let id = match &json["id"] {
        Value::Null => number.to_string(),
        Value::String(id) => id.clone(),
        Value::Number(id) => id.to_string(),
        other => return Err(format!("the id {other} is neither text nor number")),
    };
    let has = |key: &str| entries.contains_key(key);
    let forms = [
        has("input_ids"),
        has("text"),
        has("prompt") || has("completion"),
    ];
    if forms.iter().filter(|&&has| has).count() != 1 || (has("labels") && !forms[0]) {
        return Err(
            "it must have `input_ids` (and `labels`), or `text`, or `prompt` and \
                    `completion`"
                .into(),
        );
    }
    let (tokens, labels) = if forms[0] {
        let tokens = integers("input_ids", &json["input_ids"])?;
        let labels = match has("labels") {
            true => integers("labels", &json["labels"])?,
            false => tokens.clone(),
        };
        (tokens, labels)
    } else if forms[1] {
        let tokens = encoded(encode, "text", &json, true)?;
        (tokens.clone(), tokens)
    } else {
        let prompt = encoded(encode, "prompt", &json, true)?;
        let completion = encoded(encode, "completion", &json, false)?;
        let labels = prompt
            .iter()
            .map(|_| IGNORE)
            .chain(completion.iter().copied());
        let labels = labels.collect();
        ([prompt, completion].concat(), labels)
    };
    check(&tokens, &labels, limits)?;
    Ok(Sequence { id, tokens, labels })
}

fn check(tokens: &[i64], labels: &[i64], limits: Limits) -> Result<(), String> {
    let known = |token: &i64| usize::try_from(*token).is_ok_and(|t| t < limits.vocabulary);
    if tokens.len() != labels.len() {
        let (tokens, labels) = (tokens.len(), labels.len());
        return Err(format!("{labels} labels for {tokens} tokens"));
    }
    if tokens.len() > limits.context {
        let (found, most) = (tokens.len(), limits.context);
        return Err(format!(
            "{found} tokens are more than the model\'s {most} positions"
        ));
    }
    if let Some(token) = tokens.iter().find(|token| !known(token)) {
        return Err(format!(
            "token {token} is not among the model\'s {}",
            limits.vocabulary
        ));
    }
    if let Some(label) = labels
        .iter()
        .find(|&label| *label != IGNORE && !known(label))
    {
        return Err(format!("label {label} is neither a token nor {IGNORE}"));
    }
    match labels.iter().skip(1).all(|&label| label == IGNORE) {
        true => {
            Err("no label counts: the first has nothing before it that could predict it".into())
        }
        false => Ok(()),
    }
}

fn integers(name: &str, value: &Value) -> Result<Vec<i64>, String> {
    let list = value
        .as_array()
        .ok_or_else(|| format!("`{name}` is no list"))?;
    let integers: Option<Vec<i64>> = list.iter().map(Value::as_i64).collect();
    integers.ok_or_else(|| format!("`{name}` holds something other than integers"))
}

fn encoded(encode: &Encode, name: &str, json: &Value, special: bool) -> Result<Vec<i64>, String> {
    let text = json[name]
        .as_str()
        .ok_or_else(|| format!("`{name}` is no text"))?;
    encode(text, special).map_err(|reason| format!("`{name}`: {reason}"))
}

/// Batches of sequences of like length, the longest first, each of at most `tokens` with its padding
/// (or of one sequence).
pub fn batches(mut sequences: Vec<Sequence>, tokens: usize) -> Vec<Vec<Sequence>> {
    // The longest first: what does not fit into memory shows at once.
    sequences.sort_by_key(|sequence| std::cmp::Reverse(sequence.tokens.len()));
    let mut batches: Vec<Vec<Sequence>> = Vec::new();
    for sequence in sequences {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * batch[0].tokens.len() <= tokens => {
                batch.push(sequence);
            }
            _ => batches.push(vec![sequence]),
        }
    }
    batches
}
