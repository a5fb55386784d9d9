//! The fields of `config.json`, read so that none is overlooked.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::Value;

use super::error::{Error, Result};

/// Fields that change nothing of what a model computes when it is evaluated, by name.
const HARMLESS: [&str; 59] = [
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "chunk_size_feed_forward",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "init_std",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "layerdrop",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_logits_to_keep",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "slow_but_exact",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// How the names of harmless fields begin: what libraries note for themselves.
const NOTES: [&str; 4] = ["_", "summary_", "transformers_", "unsloth_"];

/// How they end: what only counts in training, and tokens.
const ASIDE: [&str; 6] = [
    "_token_id",
    "_token_ids",
    "_pdrop",
    "_version",
    "dropout",
    "dropout_prob",
];

/// Fields that change what a model computes, and their values that do not.
const NEUTRAL: [(&str, &[&str]); 10] = [
    ("position_embedding_type", &["\"absolute\""]),
    ("scale_attn_by_inverse_layer_idx", &["false"]),
    ("is_causal", &["true"]),
    ("is_encoder_decoder", &["false"]),
    ("add_cross_attention", &["false"]),
    ("is_decoder", &["false", "true"]),
    ("pruned_heads", &["{}"]),
    ("rope_interleaved", &["false"]),
    ("use_bidirectional_attention", &["false"]),
    ("layer_norm_elementwise_affine", &["true"]),
];

/// The fields of a JSON object; null is absent. It remembers which were asked for.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    json: &'a Value,
    /// Where the object is, for messages.
    place: String,
    known: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    pub(super) fn of(json: &'a Value) -> Self {
        Self::inside(json, "")
    }

    /// The fields of an object inside another.
    pub(super) fn inside(json: &'a Value, place: &str) -> Self {
        Self {
            json,
            place: place.into(),
            known: RefCell::default(),
        }
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.known.borrow_mut().insert(field.into());
        self.json.get(field).filter(|value| !value.is_null())
    }

    /// Whether it is there and null.
    pub(super) fn is_null(&self, field: &str) -> bool {
        self.known.borrow_mut().insert(field.into());
        self.json.get(field).is_some_and(Value::is_null)
    }

    pub(super) fn unsupported(&self, field: &str, supported: &str) -> Error {
        Error::Field {
            field: format!("{}{field}", self.place),
            found: self
                .json
                .get(field)
                .map_or("nothing".into(), Value::to_string),
            supported: supported.into(),
        }
    }

    pub(super) fn absent(&self, field: &str, supported: &str) -> Result<()> {
        match self.get(field) {
            None => Ok(()),
            Some(_) => Err(self.unsupported(field, supported)),
        }
    }

    fn read<T>(
        &self,
        field: &str,
        default: Option<T>,
        what: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T> {
        let found = match self.get(field) {
            None => default,
            Some(value) => of(value),
        };
        found.ok_or_else(|| self.unsupported(field, what))
    }

    pub(super) fn text(&self, field: &str, default: Option<&str>) -> Result<String> {
        let default = default.map(str::to_owned);
        self.read(field, default, "a text", |v| v.as_str().map(Into::into))
    }

    /// A whole number above 0.
    pub(super) fn number(&self, field: &str, default: Option<usize>) -> Result<usize> {
        self.read(field, default, "a number above 0", |v| {
            whole(v).filter(|n| *n > 0)
        })
    }

    /// A whole number, 0 among them.
    pub(super) fn index(&self, field: &str, default: usize) -> Result<usize> {
        self.read(field, Some(default), "a whole number from 0", whole)
    }

    /// A list of whole numbers, empty where it is missing.
    pub(super) fn indices(&self, field: &str) -> Result<Vec<usize>> {
        let what = "a list of whole numbers from 0";
        self.read(field, Some(Vec::new()), what, |v| {
            v.as_array()?.iter().map(whole).collect()
        })
    }

    /// A whole number above 0 that may be missing.
    pub(super) fn maybe_number(&self, field: &str) -> Result<Option<usize>> {
        self.get(field)
            .map(|_| self.number(field, None))
            .transpose()
    }

    pub(super) fn real(&self, field: &str, default: f64) -> Result<f64> {
        self.read(field, Some(default), "a number above 0", positive)
    }

    pub(super) fn maybe_real(&self, field: &str) -> Result<Option<f64>> {
        self.get(field)
            .map(|_| self.read(field, None, "a number above 0", positive))
            .transpose()
    }

    pub(super) fn reals(&self, field: &str) -> Result<Vec<f64>> {
        self.read(field, None, "a list of numbers above 0", |v| {
            v.as_array()?.iter().map(positive).collect()
        })
    }

    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        self.read(field, Some(default), "true or false", Value::as_bool)
    }

    /// Which of some texts.
    pub(super) fn one_of<T: Copy>(
        &self,
        field: &str,
        known: &[(&str, T)],
        default: T,
    ) -> Result<T> {
        if self.get(field).is_none() {
            return Ok(default);
        }
        let found = self.text(field, None)?;
        let of = known.iter().find(|(text, _)| *text == found);
        let of = of.map(|(_, value)| *value);
        of.ok_or_else(|| {
            let known: Vec<&str> = known.iter().map(|(text, _)| *text).collect();
            self.unsupported(field, &known.join(", "))
        })
    }

    /// Nothing may be there that was not asked for, unless it is known to change nothing.
    pub(super) fn nothing_else(&self) -> Result<()> {
        let known = self.known.borrow();
        let object = self.json.as_object().into_iter().flatten();
        for (field, value) in object.filter(|(_, value)| !value.is_null()) {
            if known.contains(field) {
                continue;
            }
            if let Some((_, values)) = NEUTRAL.iter().find(|(name, _)| name == field) {
                if values.contains(&&*value.to_string()) {
                    continue;
                }
                return Err(self.unsupported(field, &values.join(" or ")));
            }
            let harmless = self.place.is_empty()
                && (HARMLESS.contains(&&**field)
                    || NOTES.iter().any(|start| field.starts_with(start))
                    || ASIDE.iter().any(|end| field.ends_with(end)));
            if !harmless {
                return Err(Error::UnknownField {
                    field: format!("{}{field}", self.place),
                    found: value.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|x| *x > 0.0)
}
