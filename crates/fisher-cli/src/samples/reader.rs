//! Tasks as JSON lines.
//!
//! A line is one sample, in one of these forms, each with an optional `id` (a text or a whole number;
//! without it the number of the line, from 1):
//!
//! | | |
//! |---|---|
//! | `{"input_ids": [..], "labels": [..]}` | tokens; labels are optional, -100 does not count |
//! | `{"text": ".."}` | every token after the first counts |
//! | `{"prompt": "..", "completion": ".."}` | only the completion counts |
//! | `{"messages": [{"role": "..", "content": ".."}, ..]}` | only what the assistant says counts |
//! | `{"text": "..", "label": ..}` | for a classifier: the class, by number or by its name in config.json |
//!
//! Text is encoded whole, with the tokens that the tokenizer adds before and behind it (`<s>` and the
//! like), which count like all others: that at the end of a text or a completion is to be predicted too. A prompt
//! and its completion are one text; a token that has part in both counts. A chat becomes a text by the
//! folder's template, which has its own `<s>`, so none is added; what the assistant says is what the
//! template writes for such a turn after the words that ask for one, up to the token that ends it. `tools`
//! and `chat_template_kwargs` of a line go to the template.
//!
//! A `document` (a text or a whole number) says what a sample is a piece of: samples of one document,
//! template or user may depend on each other, and what is said of errors takes that into account.
//!
//! Labels stand at their tokens, as Hugging Face's do: label `t` is predicted from the tokens before
//! it. Do not shift them. An `attention_mask` may say that the last tokens are padding, which is left
//! out. Other keys are passed over.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use fisher_train::labels::IGNORE;
use serde_json::{Map, Value};

use super::chat::{Chat, Conversation};
use super::classes::Classes;
use super::error::InputError;
use super::form::Form;
use super::lines::{hint, lines};
use super::numbers::{given, unpadded};
use super::task::{BadLine, Part, TaskData, TaskFile};
use super::text::Text;
use crate::models::{Longest, ModelConfig, Sequence};

/// Reads tasks for one model.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Its tokenizer, or why there is none.
    pub text: Result<Text, String>,
    /// Its template of chats, or why there is none.
    pub chat: Result<Chat, String>,
    /// Its classes, if it is a classifier.
    pub classes: Option<Classes>,
    /// Leave bad lines out instead of stopping at the first.
    pub skip_bad: bool,
    /// Samples to read; all when absent.
    pub samples: Option<usize>,
    /// Only a part of the lines.
    pub part: Option<Part>,
}

/// A sample as it stands in a line.
struct Line {
    id: Value,
    form: Form,
    sequence: Sequence,
}

impl<'a> Reader<'a> {
    /// Reads all samples, by the tokenizer and the template of the model's folder, and stops at a bad
    /// line.
    pub fn new(config: &'a ModelConfig, folder: &Path) -> Self {
        Self {
            config,
            text: Text::read(folder),
            chat: Chat::read(folder),
            classes: config.class_count().and_then(|count| {
                let names = config.classes.iter().cloned().zip(0..);
                Classes::new(count, names.collect()).ok()
            }),
            skip_bad: false,
            samples: None,
            part: None,
        }
    }

    /// Read a task.
    ///
    /// # Errors
    /// [`InputError::Io`] or [`InputError::NotLines`] when the file is not of lines;
    /// [`InputError::Line`] for the first bad line, unless those are skipped; [`InputError::Empty`] when
    /// no sample is left.
    pub fn read(&self, task: &TaskFile) -> Result<TaskData, InputError> {
        let path = &task.path;
        let mut data = TaskData {
            name: task.name.clone(),
            samples: Vec::new(),
            ids: Vec::new(),
            forms: BTreeSet::new(),
            bad: Vec::new(),
        };
        let mut seen = HashSet::new();
        for line in lines(path)? {
            let (number, line) = line.map_err(|source| InputError::Io {
                path: path.clone(),
                source,
            })?;
            let ours = self.part.is_none_or(|p| (number - 1) % p.of == p.index);
            if !ours || line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if self.samples.is_some_and(|n| data.samples.len() == n) {
                break;
            }
            let sample = self.sample(&line, number).and_then(|line| {
                if seen.insert(line.sequence.id.clone()) {
                    Ok(line)
                } else {
                    Err(format!("the id {} was there before", line.id))
                }
            });
            match sample {
                Ok(line) => {
                    data.ids.push(line.id);
                    data.forms.insert(line.form);
                    data.samples.push(line.sequence);
                }
                Err(reason) if self.skip_bad => data.bad.push(BadLine {
                    line: number,
                    reason,
                }),
                Err(reason) => {
                    return Err(InputError::Line {
                        path: path.clone(),
                        line: number,
                        reason,
                    });
                }
            }
        }
        if data.samples.is_empty() {
            let first = data.bad.first();
            Err(InputError::Empty {
                path: path.clone(),
                task: task.name.clone(),
                bad: data.bad.len(),
                first: first.map(|bad| format!("line {}: {}", bad.line, bad.reason)),
            })
        } else {
            Ok(data)
        }
    }

    fn sample(&self, line: &[u8], number: usize) -> Result<Line, String> {
        let row: Value = serde_json::from_slice(line)
            .map_err(|e| format!("not JSON: {}{}", in_line(&e), hint(line)))?;
        let row = row.as_object().ok_or("not a JSON object")?;
        let id = name(row, "id")?.cloned().unwrap_or_else(|| number.into());
        let document = name(row, "document")?.map(plain);
        let form = Form::of(row)?;
        let class = self.class(row, form)?;
        let (tokens, mut labels) = match form {
            Form::Tokens => {
                let (tokens, labels) = given(get(row, "input_ids"), get(row, "labels"))?;
                unpadded(tokens, labels, get(row, "attention_mask"))?
            }
            Form::Text => {
                let tokens = self.tokenizer()?.tokens(text(row, "text")?, true)?.ids;
                (tokens.clone(), tokens)
            }
            Form::Completion => {
                let (prompt, completion) = (text(row, "prompt")?, text(row, "completion")?);
                let (tokens, labels) = self.tokenizer()?.completed(prompt, completion)?;
                (tokens.ids, labels)
            }
            Form::Chat => {
                // Once more, since templates read objects in the order in which they are written.
                let chat: Conversation = serde_json::from_slice(line)
                    .map_err(|e| format!("`messages` cannot be made sense of: {}", in_line(&e)))?;
                let rendered = self.chat.as_ref().map_err(Clone::clone)?.render(&chat)?;
                let tokens = self.tokenizer()?.tokens(&rendered.text, false)?;
                let labels = tokens.labels(&rendered.turns)?;
                (tokens.ids, labels)
            }
        };
        if class.is_some() {
            labels.fill(IGNORE);
        }
        let sequence = Sequence {
            id: plain(&id),
            document,
            tokens,
            labels,
            class,
        };
        self.check(&sequence, form)?;
        Ok(Line { id, form, sequence })
    }

    fn tokenizer(&self) -> Result<&Text, String> {
        self.text.as_ref().map_err(Clone::clone)
    }

    /// The class of a sample, which a classifier's samples have and no others.
    fn class(&self, row: &Map<String, Value>, form: Form) -> Result<Option<usize>, String> {
        match (&self.classes, get(row, "label")) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err("this model is no classifier: leave `label` out".into()),
            (Some(_), _)
                if !matches!(form, Form::Text | Form::Tokens) || row.contains_key("labels") =>
            {
                Err("this model is a classifier: give `text` (or `input_ids`) and `label`".into())
            }
            (Some(_), _) if get(row, "text_pair").is_some() => {
                Err("pairs of texts (`text_pair`) are not read".into())
            }
            (Some(_), None) => Err("this model is a classifier: give the class as `label`".into()),
            (Some(classes), Some(label)) => classes.number(label).map(Some),
        }
    }

    fn check(&self, sequence: &Sequence, form: Form) -> Result<(), String> {
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
                "{} tokens are more than the {longest} that the model takes ({field})",
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
        if sequence.active() > 0 && !tokens.is_empty() {
            return Ok(());
        }
        let nothing = match (form, tokens.len()) {
            (Form::Tokens, 0) => "`input_ids` is empty",
            (Form::Tokens, 1) => "there is one, and the first is not predicted",
            (_, 0) => "the text is empty",
            (_, 1) => "the text is empty or a single token, and the first is not predicted",
            (Form::Completion, _) => "nothing of the completion is left to predict: is it empty?",
            (Form::Chat, _) => "nothing that the assistant says is left to predict: is it empty?",
            _ => "every label after the first is -100",
        };
        Err(format!("no token counts: {nothing}"))
    }
}

/// An error without the number of the line, which is 1: a line of the file is read by itself.
fn in_line(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let place = format!(" at line {line} column {column}");
    error
        .to_string()
        .replace(&place, &format!(" at column {column}"))
}

/// A name as free text.
fn plain(name: &Value) -> String {
    name.as_str().map_or_else(|| name.to_string(), Into::into)
}

/// What a line has under a key; null is nothing.
fn get<'a>(row: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    row.get(key).filter(|value| !value.is_null())
}

/// A text or a whole number.
fn name<'a>(row: &'a Map<String, Value>, key: &str) -> Result<Option<&'a Value>, String> {
    match get(row, key) {
        Some(name) if name.is_string() || name.is_i64() || name.is_u64() => Ok(Some(name)),
        Some(other) => Err(format!(
            "the {key} {other} is neither a text nor a whole number"
        )),
        None => Ok(None),
    }
}

fn text<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    let text = get(row, key).and_then(Value::as_str);
    text.ok_or_else(|| format!("`{key}` is missing or no text"))
}
