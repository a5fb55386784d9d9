//! A task: a name and a file of samples.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::form::Form;
use crate::models::Sequence;

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
    /// The forms in which they stand there.
    pub forms: BTreeSet<Form>,
    /// Lines that were left out.
    pub bad: Vec<BadLine>,
}
