//! `config.json` of a Hugging Face folder.

use std::path::Path;

use serde_json::Value;

use super::error::{Error, Result};
use super::families::Family;
use super::fields::Fields;
use super::outcomes::Outcomes;
use super::shape::{Longest, Output, Shape};

/// What a folder says its model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type`.
    pub kind: String,
    /// What it is made of.
    pub shape: Shape,
    /// The longest sequence that the model takes.
    pub longest: Longest,
    /// Names of classes, in their order; none where it predicts tokens, or where they have no names.
    pub classes: Vec<String>,
}

impl ModelConfig {
    /// Read `config.json` in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`] when there is none, [`Error::Architecture`] when the
    /// architecture is not supported, [`Error::Field`] when a field is missing or asks for
    /// something that is not supported, [`Error::UnknownField`] when it is not known what a field
    /// changes.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| Error::json(&path, e))?;
        Self::parse(&json)
    }

    /// Make sense of a `config.json`.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(json: &Value) -> Result<Self> {
        let fields = Fields::of(json);
        let kind = fields.text("model_type", None)?;
        let family = Family::of(&kind)?;
        fields.absent(
            "quantization_config",
            "weights as float32, float16 or bfloat16",
        )?;
        let (shape, longest) = family.dialect.read(&fields)?;
        fields.nothing_else()?;
        let classes = match shape.output {
            Output::Classes { count, .. } => names(json, count),
            Output::NextToken { .. } => Vec::new(),
        };
        Ok(Self {
            kind,
            shape,
            longest,
            classes,
        })
    }

    /// Query heads, key/value heads and the width of a head.
    pub fn heads(&self) -> [usize; 3] {
        let attention = &self.shape.attention;
        [attention.heads, attention.kv_heads, attention.head_width]
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.shape.layers.len()
    }

    /// Tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    /// What it chooses among.
    pub fn outcomes(&self) -> Outcomes {
        match self.shape.output {
            Output::Classes { count, .. } => Outcomes::Classes(count),
            Output::NextToken { .. } => Outcomes::Tokens(self.vocabulary()),
        }
    }

    /// How many classes it tells apart, if it does.
    pub fn class_count(&self) -> Option<usize> {
        match self.outcomes() {
            Outcomes::Classes(count) => Some(count),
            Outcomes::Tokens(_) => None,
        }
    }
}

/// `id2label`, where it names all of them.
fn names(json: &Value, classes: usize) -> Vec<String> {
    let name = |class: usize| json["id2label"][class.to_string()].as_str().map(Into::into);
    let names: Option<Vec<String>> = (0..classes).map(name).collect();
    names.unwrap_or_default()
}
