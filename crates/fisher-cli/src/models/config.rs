//! `config.json` of a Hugging Face folder.

use std::path::Path;

use serde_json::Value;

use super::error::{Error, Result};

/// The shape of a decoder of the LLaMA family: LLaMA, Mistral, Qwen2.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Tokens.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward layers.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head, not always `width / heads`.
    pub head_width: usize,
    /// Base of the rotation's wave lengths.
    pub theta: f64,
    /// `ε` of the norms.
    pub epsilon: f64,
    /// Biases of Q, K and V.
    pub qkv_bias: bool,
    /// Bias of O.
    pub output_bias: bool,
    /// Biases of the feed-forward layers.
    pub inner_bias: bool,
    /// Whether the embedding is also the output head.
    pub tied: bool,
}

/// The shape of a GPT-2.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// Tokens.
    pub vocabulary: usize,
    /// Positions that were learnt.
    pub positions: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward layers.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// `ε` of the norms.
    pub epsilon: f64,
    /// Whether the embedding is also the output head.
    pub tied: bool,
}

/// What a folder says its model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type`.
    pub kind: String,
    /// The architecture.
    pub architecture: Architecture,
    /// The longest sequence that the model takes.
    pub longest: Longest,
}

/// An architecture that is supported.
#[derive(Debug, Clone, PartialEq)]
pub enum Architecture {
    /// LLaMA, Mistral, Qwen2.
    Llama(LlamaConfig),
    /// GPT-2.
    Gpt2(Gpt2Config),
}

/// How long a sequence may be, and which field says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Longest {
    /// Tokens.
    pub tokens: usize,
    /// The field of `config.json`.
    pub field: &'static str,
}

/// Fields that change what the model computes in other families, and the values that change nothing.
const NEUTRAL: [(&str, &[f64]); 7] = [
    ("partial_rotary_factor", &[1.0]),
    ("attention_multiplier", &[]),
    ("embedding_multiplier", &[1.0]),
    ("residual_multiplier", &[1.0]),
    ("logits_scaling", &[1.0]),
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
];

impl ModelConfig {
    /// Read `config.json` in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`] when there is none, [`Error::Architecture`] when the
    /// architecture is not supported, [`Error::Field`] when a field is missing or asks for
    /// something that is not supported.
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
        let fields = Fields(json);
        let kind = fields.text("model_type", None)?;
        fields.absent(
            "quantization_config",
            "weights as float32, float16 or bfloat16",
        )?;
        for (field, neutral) in NEUTRAL {
            let value = fields.get(field).and_then(Value::as_f64);
            if value.is_some_and(|value| !neutral.contains(&value)) {
                return Err(fields.unsupported(field, "only without it"));
            }
        }
        let kind = &*kind;
        let (architecture, longest) = match kind {
            "llama" | "mistral" | "qwen2" => llama(kind, &fields)?,
            "gpt2" => gpt2(&fields)?,
            other => {
                return Err(Error::Architecture {
                    found: other.into(),
                });
            }
        };
        Ok(Self {
            kind: kind.into(),
            architecture,
            longest,
        })
    }

    /// Query heads, key/value heads and the width of a head.
    pub fn heads(&self) -> [usize; 3] {
        match &self.architecture {
            Architecture::Llama(c) => [c.heads, c.kv_heads, c.head_width],
            Architecture::Gpt2(c) => [c.heads, c.heads, c.width / c.heads],
        }
    }

    /// Tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        match &self.architecture {
            Architecture::Llama(c) => c.vocabulary,
            Architecture::Gpt2(c) => c.vocabulary,
        }
    }
}

fn llama(kind: &str, fields: &Fields) -> Result<(Architecture, Longest)> {
    fields.only("hidden_act", &["silu", "swish"], "silu")?;
    let width = fields.number("hidden_size", None)?;
    let heads = fields.number("num_attention_heads", None)?;
    let head_width = match fields.get("head_dim") {
        Some(_) => fields.number("head_dim", None)?,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            return Err(fields.unsupported("num_attention_heads", "a divisor of hidden_size"));
        }
    };
    let kv_heads = fields.number("num_key_value_heads", Some(heads))?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.unsupported("num_key_value_heads", "a divisor of num_attention_heads"));
    }
    if !head_width.is_multiple_of(2) {
        return Err(fields.unsupported("head_dim", "an even number, for rotary positions"));
    }
    let bias = fields.flag("attention_bias", false)?;
    let config = LlamaConfig {
        vocabulary: fields.number("vocab_size", None)?,
        width,
        inner: fields.number("intermediate_size", None)?,
        layers: fields.number("num_hidden_layers", None)?,
        heads,
        kv_heads,
        head_width,
        theta: rotary_theta(fields)?,
        epsilon: fields.real("rms_norm_eps", 1e-6)?,
        qkv_bias: kind == "qwen2" || (kind == "llama" && bias),
        output_bias: kind == "llama" && bias,
        inner_bias: kind == "llama" && fields.flag("mlp_bias", false)?,
        tied: fields.flag("tie_word_embeddings", false)?,
    };
    Ok((Architecture::Llama(config), longest(kind, fields)?))
}

/// Positions, or a sliding window where that is shorter: inside the window it makes no difference.
fn longest(kind: &str, fields: &Fields) -> Result<Longest> {
    let field = "max_position_embeddings";
    let positions = Longest {
        tokens: fields.number(field, None)?,
        field,
    };
    let types = fields.get("layer_types").and_then(Value::as_array);
    let mut types = types.into_iter().flatten().map(Value::as_str);
    if types.any(|t| !matches!(t, Some("full_attention" | "sliding_attention"))) {
        return Err(fields.unsupported("layer_types", "full_attention and sliding_attention"));
    }
    let slides = match kind {
        "mistral" => true,
        "qwen2" => fields.flag("use_sliding_window", false)?,
        _ => false,
    };
    let field = "sliding_window";
    // Not there is 4096, as in transformers; null is none.
    if !slides || fields.0.get(field).is_some_and(Value::is_null) {
        return Ok(positions);
    }
    let window = fields.number(field, Some(4096))?;
    Ok(if window < positions.tokens {
        Longest {
            tokens: window,
            field,
        }
    } else {
        positions
    })
}

/// From `rope_theta`, or from `rope_parameters` as newer files have it. Nothing scaled.
fn rotary_theta(fields: &Fields) -> Result<f64> {
    let mut theta = fields.real("rope_theta", 10_000.0)?;
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(value) = fields.get(name) else {
            continue;
        };
        let plain = |(key, value): (&String, &Value)| match &**key {
            _ if value.is_null() => true,
            "rope_type" | "type" => value.is_string(),
            "rope_theta" | "partial_rotary_factor" => value.is_number(),
            _ => false,
        };
        if !value
            .as_object()
            .is_some_and(|inside| inside.iter().all(plain))
        {
            return Err(fields.unsupported(name, "rotary positions of type `default`, not scaled"));
        }
        let inside = Fields(value);
        let kind = ["rope_type", "type"].map(|key| inside.get(key).and_then(Value::as_str));
        if kind.iter().flatten().any(|kind| *kind != "default") {
            return Err(fields.unsupported(name, "rotary positions of type `default`"));
        }
        let factor = inside.real("partial_rotary_factor", 1.0)?;
        if factor != 1.0 {
            return Err(fields.unsupported(name, "a partial_rotary_factor of 1"));
        }
        theta = inside.real("rope_theta", theta)?;
    }
    Ok(theta)
}

fn gpt2(fields: &Fields) -> Result<(Architecture, Longest)> {
    fields.only(
        "activation_function",
        &["gelu_new", "gelu_pytorch_tanh"],
        "gelu_new",
    )?;
    for (field, wanted) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ] {
        if fields.flag(field, wanted)? != wanted {
            return Err(fields.unsupported(field, if wanted { "true" } else { "false" }));
        }
    }
    let width = fields.number("n_embd", Some(768))?;
    let heads = fields.number("n_head", Some(12))?;
    if !width.is_multiple_of(heads) {
        return Err(fields.unsupported("n_head", "a divisor of n_embd"));
    }
    let field = "n_positions";
    let positions = fields.number(field, Some(1024))?;
    let config = Gpt2Config {
        vocabulary: fields.number("vocab_size", Some(50_257))?,
        positions,
        width,
        inner: fields.number("n_inner", Some(4 * width))?,
        layers: fields.number("n_layer", Some(12))?,
        heads,
        epsilon: fields.real("layer_norm_epsilon", 1e-5)?,
        tied: fields.flag("tie_word_embeddings", true)?,
    };
    let longest = Longest {
        tokens: positions,
        field,
    };
    Ok((Architecture::Gpt2(config), longest))
}

/// The fields of a JSON object; null is absent.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn unsupported(&self, field: &str, supported: &str) -> Error {
        Error::Field {
            field: field.into(),
            found: self.0.get(field).map_or("nothing".into(), Value::to_string),
            supported: supported.into(),
        }
    }

    fn absent(&self, field: &str, supported: &str) -> Result<()> {
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

    fn text(&self, field: &str, default: Option<&str>) -> Result<String> {
        let default = default.map(str::to_owned);
        self.read(field, default, "a text", |v| v.as_str().map(Into::into))
    }

    fn number(&self, field: &str, default: Option<usize>) -> Result<usize> {
        let of = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.read(field, default, "a number above 0", |v| {
            of(v).filter(|n| *n > 0)
        })
    }

    fn real(&self, field: &str, default: f64) -> Result<f64> {
        let positive = |v: &Value| v.as_f64().filter(|x| *x > 0.0);
        self.read(field, Some(default), "a number above 0", positive)
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        self.read(field, Some(default), "true or false", Value::as_bool)
    }

    fn only(&self, field: &str, supported: &[&str], default: &str) -> Result<()> {
        let found = self.text(field, Some(default))?;
        if supported.contains(&&*found) {
            Ok(())
        } else {
            Err(self.unsupported(field, supported[0]))
        }
    }
}
