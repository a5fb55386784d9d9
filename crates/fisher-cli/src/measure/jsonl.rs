//! Tasks as JSON lines.
//!
//! A line is one sample, in one of three forms, each with an optional `id` (a text or a whole number;
//! without it the number of the line, from 1):
//!
//! | | |
//! |---|---|
//! | `{"input_ids": [..], "labels": [..]}` | tokens; labels are optional, -100 does not count |
//! | `{"text": ".."}` | every token after the first counts |
//! | `{"prompt": "..", "completion": ".."}` | only the completion counts; each is encoded on its own |
//!
//! A `document` (a text or a whole number) says what a sample is a piece of: samples of one document,
//! template or user may depend on each other, and what is said of errors takes that into account.
//!
//! Labels stand at their tokens, as Hugging Face's do: label `t` is predicted from the tokens before
//! it. Do not shift them. An `attention_mask` may say that the last tokens are padding, which is left
//! out. Other keys are passed over.

use std::collections::HashSet;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use fisher_train::labels::IGNORE;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::text::Text;
use crate::models::{Longest, ModelConfig, Sequence};

/// `NAME=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFile {
    /// The task.
    pub name: String,
    /// Its samples.
    pub path: PathBuf,
}

impl FromStr for TaskFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(Self {
                name: name.into(),
                path: path.into(),
            }),
            _ => Err("a task is NAME=FILE, such as french=data/french.jsonl".into()),
        }
    }
}

/// Every `of`-th line, beginning with line `index`, from 0: `INDEX/OF`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which part.
    pub index: usize,
    /// Of how many.
    pub of: usize,
    /// The variable of the environment that said so, if one did.
    #[serde(skip)]
    pub source: Option<&'static str>,
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let parts = parts.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, of)) if index < of => Ok(Self {
                index,
                of,
                source: None,
            }),
            _ => Err("a part is INDEX/OF with INDEX from 0, such as 0/4 to 3/4, or auto".into()),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// A line that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadLine {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// The samples of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskData {
    /// The task.
    pub name: String,
    /// The samples, in the order of the file.
    pub samples: Vec<Sequence>,
    /// Their ids as they were written: texts or numbers.
    pub ids: Vec<Value>,
    /// Lines that were left out.
    pub bad: Vec<BadLine>,
}

/// What is wrong with a task's file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// A line that is no sample.
    #[error(
        "{}, line {line}: {reason} (--skip-bad leaves such lines out and counts them)",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },

    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// Nothing in it.
    #[error("{} has no samples for task `{task}` ({bad} bad lines)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The task.
        task: String,
        /// Lines that were left out.
        bad: usize,
    },
}

/// Reads tasks for one model.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Its tokenizer, or why there is none.
    pub text: Result<Text, String>,
    /// Leave bad lines out instead of stopping at the first.
    pub skip_bad: bool,
    /// Samples to read; all when absent.
    pub samples: Option<usize>,
    /// Only a part of the lines.
    pub part: Option<Part>,
}

/// A name as free text.
fn plain(name: &Value) -> String {
    name.as_str().map_or_else(|| name.to_string(), Into::into)
}

impl Reader<'_> {
    /// Read a task.
    ///
    /// # Errors
    /// [`InputError::Io`]; [`InputError::Line`] for the first bad line, unless those are skipped;
    /// [`InputError::Empty`] when no sample is left.
    pub fn read(&self, task: &TaskFile) -> Result<TaskData, InputError> {
        let path = &task.path;
        let io = |source| InputError::Io {
            path: path.clone(),
            source,
        };
        let file = std::fs::File::open(path).map_err(io)?;
        let mut data = TaskData {
            name: task.name.clone(),
            samples: Vec::new(),
            ids: Vec::new(),
            bad: Vec::new(),
        };
        let mut seen = HashSet::new();
        for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
            let line = line.map_err(io)?;
            let ours = self.part.is_none_or(|p| number % p.of == p.index);
            if !ours || line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if self.samples.is_some_and(|n| data.samples.len() == n) {
                break;
            }
            let line_number = number + 1;
            let sample = self.sample(&line, line_number).and_then(|(id, sample)| {
                if seen.insert(sample.id.clone()) {
                    Ok((id, sample))
                } else {
                    Err(format!("the id {id} was there before"))
                }
            });
            match sample {
                Ok((id, sample)) => {
                    data.ids.push(id);
                    data.samples.push(sample);
                }
                Err(reason) if self.skip_bad => data.bad.push(BadLine {
                    line: line_number,
                    reason,
                }),
                Err(reason) => return Err(line_error(path, line_number, reason)),
            }
        }
        if data.samples.is_empty() {
            Err(InputError::Empty {
                path: path.clone(),
                task: task.name.clone(),
                bad: data.bad.len(),
            })
        } else {
            Ok(data)
        }
    }

    fn sample(&self, line: &[u8], number: usize) -> Result<(Value, Sequence), String> {
        let row: Value = serde_json::from_slice(line).map_err(|e| format!("not JSON: {e}"))?;
        let row = row.as_object().ok_or("not a JSON object")?;
        let get = |key: &str| row.get(key).filter(|value| !value.is_null());
        let name = |key: &str| match get(key) {
            Some(name) if name.is_string() || name.is_i64() || name.is_u64() => Ok(Some(name)),
            Some(other) => Err(format!(
                "the {key} {other} is neither a text nor a whole number"
            )),
            None => Ok(None),
        };
        let id = name("id")?.cloned().unwrap_or_else(|| number.into());
        let document = name("document")?.map(plain);
        let forms = ["input_ids", "text", "prompt"];
        let form: Vec<&str> = forms.into_iter().filter(|key| get(key).is_some()).collect();
        let (tokens, labels) = match *form {
            ["input_ids"] => {
                let (tokens, labels) = given(get("input_ids"), get("labels"))?;
                unpadded(tokens, labels, get("attention_mask"))?
            }
            ["text" | "prompt"] if get("labels").is_some() => {
                return Err("`labels` belong to `input_ids`, not to text".into());
            }
            ["text"] if get("completion").is_some() => {
                return Err("`completion` belongs to `prompt`, not to `text`".into());
            }
            ["text"] => {
                let tokens = self.encode(text(get("text"), "text")?, true)?;
                (tokens.clone(), tokens)
            }
            ["prompt"] => {
                let tokenizer = self.text.as_ref().map_err(Clone::clone)?;
                let mut tokens = tokenizer.encode_open(text(get("prompt"), "prompt")?)?;
                let completion = self.encode(text(get("completion"), "completion")?, false)?;
                let mut labels = vec![IGNORE; tokens.len()];
                labels.extend(&completion);
                tokens.extend(completion);
                (tokens, labels)
            }
            [] => {
                return Err(
                    "it has neither `input_ids`, nor `text`, nor `prompt` and `completion`".into(),
                );
            }
            _ => return Err(format!("it has {}: give one of them", form.join(" and "))),
        };
        let sequence = Sequence {
            id: plain(&id),
            document,
            tokens,
            labels,
        };
        self.check(&sequence)?;
        Ok((id, sequence))
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>, String> {
        self.text
            .as_ref()
            .map_err(Clone::clone)?
            .encode(text, special)
    }

    fn check(&self, sequence: &Sequence) -> Result<(), String> {
        let Sequence { tokens, labels, .. } = sequence;
        if tokens.len() != labels.len() {
            let (tokens, labels) = (tokens.len(), labels.len());
            return Err(format!("{labels} labels for {tokens} tokens"));
        }
        let Longest {
            tokens: longest,
            field,
        } = self.config.longest;
        if tokens.len() > longest {
            return Err(format!(
                "{} tokens are more than the model takes ({field} = {longest})",
                tokens.len()
            ));
        }
        let vocabulary = self.config.vocabulary() as i64;
        let known = |token: &i64| (0..vocabulary).contains(token);
        if let Some(token) = tokens.iter().find(|token| !known(token)) {
            return Err(format!(
                "token {token} is not in the vocabulary of {vocabulary}"
            ));
        }
        let mut labelled = labels.iter().filter(|label| **label != IGNORE);
        if let Some(label) = labelled.find(|label| !known(label)) {
            return Err(format!(
                "label {label} is neither {IGNORE} nor in the vocabulary of {vocabulary}"
            ));
        }
        match sequence.active() {
            0 => {
                Err("no token counts: after the first, every label is -100 or there is none".into())
            }
            _ => Ok(()),
        }
    }
}

fn line_error(path: &Path, line: usize, reason: String) -> InputError {
    InputError::Line {
        path: path.into(),
        line,
        reason,
    }
}

fn given(tokens: Option<&Value>, labels: Option<&Value>) -> Result<(Vec<i64>, Vec<i64>), String> {
    let numbers = |value: &Value, key: &str| {
        let values = value.as_array().into_iter().flatten().map(Value::as_i64);
        let numbers: Option<Vec<i64>> = values.collect();
        let numbers = numbers.filter(|_| value.is_array());
        numbers.ok_or_else(|| format!("`{key}` is not a list of whole numbers"))
    };
    let tokens = numbers(tokens.unwrap_or(&Value::Null), "input_ids")?;
    let labels = match labels {
        Some(labels) => numbers(labels, "labels")?,
        None => tokens.clone(),
    };
    Ok((tokens, labels))
}

/// Without the padding at the end that an attention mask tells.
fn unpadded(
    mut tokens: Vec<i64>,
    mut labels: Vec<i64>,
    mask: Option<&Value>,
) -> Result<(Vec<i64>, Vec<i64>), String> {
    let Some(mask) = mask else {
        return Ok((tokens, labels));
    };
    let (mask, _) =
        given(Some(mask), None).map_err(|_| "`attention_mask` is no list of 0 and 1")?;
    let active = mask.iter().take_while(|m| **m == 1).count();
    if mask.len() != tokens.len() || mask[active..].iter().any(|m| *m != 0) {
        return Err(
            "`attention_mask` must have a 1 for each token and then a 0 for each one of padding"
                .into(),
        );
    }
    tokens.truncate(active);
    labels.truncate(active);
    Ok((tokens, labels))
}

fn text<'a>(value: Option<&'a Value>, key: &str) -> Result<&'a str, String> {
    let text = value.and_then(Value::as_str);
    text.ok_or_else(|| format!("`{key}` is missing or no text"))
}

/// Batches of samples of like length, none of more than `tokens` tokens with its padding unless it
/// is one sample. Shortest first, so that the order is the same each time.
pub fn batches(samples: &[Sequence], tokens: usize) -> Vec<Vec<Sequence>> {
    let mut sorted: Vec<&Sequence> = samples.iter().collect();
    sorted.sort_by_key(|sample| sample.tokens.len());
    let mut batches: Vec<Vec<Sequence>> = Vec::new();
    for sample in sorted {
        match batches.last_mut() {
            // The longest so far is the newest.
            Some(batch) if (batch.len() + 1) * sample.tokens.len() <= tokens => {
                batch.push(sample.clone());
            }
            _ => batches.push(vec![sample.clone()]),
        }
    }
    batches
}
