//! `config.json` of a checkpoint.

use std::path::Path;

use fisher_core::AttentionConfig;
use serde_json::Value;

use super::DecoderError;

/// What a checkpoint's `config.json` says of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub enum DecoderConfig {
    /// LLaMA, Mistral, Qwen2.
    Llama(LlamaConfig),
    /// GPT-2.
    Gpt2(Gpt2Config),
}

/// Rotary positions, RMS norms, SwiGLU.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    pub(crate) vocabulary: usize,
    pub(crate) width: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) theta: f64,
    pub(crate) epsilon: f64,
    /// Of query, key and value; of the output.
    pub(crate) biases: [bool; 2],
    pub(crate) mlp_bias: bool,
    pub(crate) tied: bool,
    pub(crate) context: usize,
}

/// Learned positions, layer norms, fused projections.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    pub(crate) vocabulary: usize,
    pub(crate) width: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) epsilon: f64,
    pub(crate) context: usize,
}

impl DecoderConfig {
    /// Read `config.json` of `folder`.
    ///
    /// # Errors
    /// [`DecoderError`], naming the field that is missing or not supported.
    pub fn read(folder: &Path) -> Result<Self, DecoderError> {
        let path = folder.join("config.json");
        let io = |reason: String| DecoderError::Read {
            path: path.clone(),
            reason,
        };
        let text = std::fs::read(&path).map_err(|e| io(e.to_string()))?;
        let json: Value = serde_json::from_slice(&text).map_err(|e| io(e.to_string()))?;
        let fields = Fields(&json);
        fields.unless(
            "quantization_config",
            Value::is_null,
            "none: weights as they are",
        )?;
        match fields.text("model_type")? {
            model @ ("llama" | "mistral" | "qwen2") => fields.llama(model).map(Self::Llama),
            "gpt2" => fields.gpt2().map(Self::Gpt2),
            other => Err(DecoderError::Unsupported {
                field: "model_type".into(),
                found: other.into(),
                expected: "llama, mistral, qwen2 or gpt2".into(),
            }),
        }
    }

    /// How attention is split into heads.
    pub fn attention(&self) -> AttentionConfig {
        match self {
            Self::Llama(config) => AttentionConfig::new(config.heads)
                .with_kv_heads(Some(config.kv_heads))
                .with_d_k(Some(config.head_width))
                .with_d_v(Some(config.head_width)),
            Self::Gpt2(config) => AttentionConfig::new(config.heads),
        }
    }

    /// The longest sequence it can take.
    pub fn context(&self) -> usize {
        match self {
            Self::Llama(config) => config.context,
            Self::Gpt2(config) => config.context,
        }
    }

    /// The number of tokens it knows.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Llama(config) => config.vocabulary,
            Self::Gpt2(config) => config.vocabulary,
        }
    }
}

struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> &'a Value {
        name.split('.').fold(self.0, |value, key| &value[key])
    }

    fn missing(name: &str, expected: &str, found: &Value) -> DecoderError {
        DecoderError::Unsupported {
            field: name.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    fn text(&self, name: &str) -> Result<&'a str, DecoderError> {
        let value = self.get(name);
        value
            .as_str()
            .ok_or_else(|| Self::missing(name, "a text", value))
    }

    fn number(&self, name: &str, default: Option<usize>) -> Result<usize, DecoderError> {
        match (self.get(name), default) {
            (Value::Null, Some(default)) => Ok(default),
            (value, _) => {
                let number = value.as_u64().filter(|&n| n > 0 && n < 1 << 31);
                let number = number.ok_or_else(|| Self::missing(name, "a number above 0", value));
                Ok(number? as usize)
            }
        }
    }

    fn float(&self, name: &str, default: f64) -> Result<f64, DecoderError> {
        match self.get(name) {
            Value::Null => Ok(default),
            value => value
                .as_f64()
                .ok_or_else(|| Self::missing(name, "a number", value)),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, DecoderError> {
        match self.get(name) {
            Value::Null => Ok(default),
            value => value
                .as_bool()
                .ok_or_else(|| Self::missing(name, "true or false", value)),
        }
    }

    /// An error unless `fits`.
    fn unless(
        &self,
        name: &str,
        fits: impl Fn(&Value) -> bool,
        expected: &str,
    ) -> Result<(), DecoderError> {
        let value = self.get(name);
        match fits(value) {
            true => Ok(()),
            false => Err(Self::missing(name, expected, value)),
        }
    }

    fn one_of(&self, name: &str, choices: &[&str]) -> Result<(), DecoderError> {
        let fits = |value: &Value| value.as_str().is_some_and(|text| choices.contains(&text));
        self.unless(name, fits, &choices.join(" or "))
    }

    fn llama(&self, model: &str) -> Result<LlamaConfig, DecoderError> {
        self.one_of("hidden_act", &["silu"])?;
        self.unless("rope_scaling", Value::is_null, "none")?;
        let plain = |value: &Value| value.is_null() || value == "default";
        self.unless("rope_parameters.rope_type", plain, "default")?;
        self.unless(
            "rope_parameters.partial_rotary_factor",
            |value| value.as_f64().unwrap_or(1.0) == 1.0,
            "1, or none",
        )?;
        let (width, heads) = (
            self.number("hidden_size", None)?,
            self.number("num_attention_heads", None)?,
        );
        let kv_heads = self.number("num_key_value_heads", Some(heads))?;
        if !heads.is_multiple_of(kv_heads) {
            let found = self.get("num_key_value_heads");
            let expected = format!("a divisor of the {heads} heads");
            return Err(Self::missing("num_key_value_heads", &expected, found));
        }
        let head_width = self.number("head_dim", Some(width / heads))?;
        if !head_width.is_multiple_of(2) {
            let found = self.get("head_dim");
            return Err(Self::missing("head_dim", "an even number", found));
        }
        let qwen = model == "qwen2";
        let mut context = self.number("max_position_embeddings", None)?;
        // A window changes attention only of sequences longer than it.
        if self.flag("use_sliding_window", !qwen)? && !self.get("sliding_window").is_null() {
            context = context.min(self.number("sliding_window", None)?);
        }
        let theta = self.float("rope_theta", 10_000.0)?;
        let bias = self.flag("attention_bias", false)?;
        Ok(LlamaConfig {
            vocabulary: self.number("vocab_size", None)?,
            width,
            inner: self.number("intermediate_size", None)?,
            layers: self.number("num_hidden_layers", None)?,
            heads,
            kv_heads,
            head_width,
            theta: self.float("rope_parameters.rope_theta", theta)?,
            epsilon: self.float("rms_norm_eps", 1e-6)?,
            biases: [qwen || bias, bias && !qwen],
            mlp_bias: self.flag("mlp_bias", false)?,
            tied: self.flag("tie_word_embeddings", false)?,
            context,
        })
    }

    fn gpt2(&self) -> Result<Gpt2Config, DecoderError> {
        self.one_of("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
        let absent_or =
            |wanted: bool| move |value: &Value| value.as_bool().unwrap_or(wanted) == wanted;
        self.unless("scale_attn_weights", absent_or(true), "true")?;
        self.unless("scale_attn_by_inverse_layer_idx", absent_or(false), "false")?;
        self.unless("add_cross_attention", absent_or(false), "false")?;
        self.unless("tie_word_embeddings", absent_or(true), "true")?;
        let (width, heads) = (self.number("n_embd", None)?, self.number("n_head", None)?);
        if !width.is_multiple_of(heads) {
            let expected = format!("a divisor of n_embd, {width}");
            return Err(Self::missing("n_head", &expected, self.get("n_head")));
        }
        Ok(Gpt2Config {
            vocabulary: self.number("vocab_size", None)?,
            width,
            inner: self.number("n_inner", Some(4 * width))?,
            layers: self.number("n_layer", None)?,
            heads,
            epsilon: self.float("layer_norm_epsilon", 1e-5)?,
            context: self.number("n_positions", None)?,
        })
    }
}
