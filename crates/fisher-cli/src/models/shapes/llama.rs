//! LLaMA, and those that differ from it in little.

use fisher_core::grouping::Fused;
use serde_json::Value;

use super::super::error::Result;
use super::super::fields::Fields;
use super::super::rope::RopeDefaults;
use super::super::shape::{Activation, Gate, NormKind, Order, Output, QkNorm};
use super::dialect::{Dialect, Inner, Rotations};
use super::setting::Number;
use super::setting::Setting::{self, Field, Is};
use super::windows::{ON_REQUEST, Sliding, Windows};

/// What most have in common.
pub(super) const PLAIN: Dialect = Dialect {
    vocabulary: Number(&["vocab_size"], None),
    width: Number(&["hidden_size"], None),
    heads: Number(&["num_attention_heads"], None),
    layers: Number(&["num_hidden_layers"], None),
    inner: Inner::Number(Number(&["intermediate_size"], None)),
    longest: Field("max_position_embeddings", 2048),
    kv_heads: Field("num_key_value_heads", None),
    head_width: Field("head_dim", None),
    norm: NormKind::Rms,
    epsilon: Field("rms_norm_eps", 1e-6),
    order: Order::Before,
    biases: [ATTENTION_BIAS, ATTENTION_BIAS, Is(false)],
    fused: None,
    qk_norm: None,
    windows: None,
    rotations: Rotations::One(RopeDefaults::PLAIN),
    gate: Gate::Apart,
    activation: Field("hidden_act", Activation::Silu),
    tied: Field("tie_word_embeddings", false),
    head_bias: false,
    logit_scale: Is(1.0),
    then: |_, _, _| Ok(()),
};

const ATTENTION_BIAS: Setting<bool> = Field("attention_bias", false);

pub(crate) const LLAMA: Dialect = Dialect {
    biases: [ATTENTION_BIAS, ATTENTION_BIAS, Field("mlp_bias", false)],
    ..PLAIN
};

pub(crate) const MISTRAL: Dialect = Dialect {
    longest: Field("max_position_embeddings", 131_072),
    kv_heads: Field("num_key_value_heads", Some(8)),
    biases: [Is(false); 3],
    windows: Some(Windows(Some(4096), Is(true), Sliding::All)),
    ..PLAIN
};

pub(crate) const GRANITE: Dialect = Dialect {
    then: |shape, _, fields| {
        shape.embedding.scale = fields.real("embedding_multiplier", 1.0)?;
        shape.residual = fields.real("residual_multiplier", 1.0)?;
        shape.attention.scale = fields.real("attention_multiplier", 1.0)?;
        let divisor = fields.real("logits_scaling", 1.0)?;
        if let Output::NextToken { scale, .. } = &mut shape.output {
            *scale = 1.0 / divisor;
        }
        Ok(())
    },
    ..LLAMA
};

pub(crate) const QWEN2: Dialect = Dialect {
    longest: Field("max_position_embeddings", 32_768),
    kv_heads: Field("num_key_value_heads", Some(32)),
    biases: [Is(true), Is(false), Is(false)],
    windows: Some(Windows(Some(4096), ON_REQUEST, Sliding::Beyond)),
    ..PLAIN
};

pub(crate) const QWEN3: Dialect = Dialect {
    head_width: Field("head_dim", Some(128)),
    biases: PLAIN.biases,
    qk_norm: Some((QkNorm::Each, Is(true))),
    ..QWEN2
};

pub(crate) const SMOLLM3: Dialect = Dialect {
    kv_heads: Field("num_key_value_heads", Some(4)),
    biases: LLAMA.biases,
    rotations: Rotations::One(RopeDefaults::theta(2_000_000.0)),
    tied: Field("tie_word_embeddings", true),
    then: |shape, _, fields| {
        let turned = turned(fields, shape.layers.len())?;
        for (layer, turned) in shape.layers.iter_mut().zip(turned) {
            layer.rotation = layer.rotation.filter(|_| turned);
        }
        Ok(())
    },
    ..QWEN2
};

/// Which layers turn queries and keys: those that `no_rope_layers` says, or all but every so many.
fn turned(fields: &Fields, layers: usize) -> Result<Vec<bool>> {
    let every = fields.number("no_rope_layer_interval", Some(4))?;
    let Some(list) = fields.get("no_rope_layers") else {
        return Ok((1..=layers).map(|layer| layer % every != 0).collect());
    };
    let of = |flag: &Value| match flag.as_u64() {
        Some(flag @ (0 | 1)) => Some(flag == 1),
        _ => None,
    };
    let list = list.as_array().filter(|list| list.len() == layers);
    let turned = list.and_then(|list| list.iter().map(of).collect());
    turned.ok_or_else(|| fields.unsupported("no_rope_layers", "a 1 or a 0 for each layer"))
}

pub(crate) const OLMO: Dialect = Dialect {
    norm: NormKind::LayerAlone,
    epsilon: Is(1e-5),
    then: |shape, _, fields| {
        shape.attention.clip = fields.maybe_real("clip_qkv")?;
        Ok(())
    },
    ..PLAIN
};

pub(crate) const OLMO2: Dialect = Dialect {
    epsilon: Field("rms_norm_eps", 1e-5),
    order: Order::After,
    qk_norm: Some((QkNorm::Whole, Is(true))),
    ..PLAIN
};

pub(crate) const OLMO3: Dialect = Dialect {
    windows: Some(Windows(Some(4096), Is(true), Sliding::AllButEvery(4))),
    rotations: Rotations::Two(RopeDefaults::theta(500_000.0), 500_000.0),
    ..OLMO2
};

pub(crate) const PHI3: Dialect = Dialect {
    longest: Field("max_position_embeddings", 4096),
    epsilon: Field("rms_norm_eps", 1e-5),
    fused: Some(Fused::Concatenated),
    windows: Some(Windows(None, Is(true), Sliding::All)),
    rotations: Rotations::One(RopeDefaults::share(1.0)),
    gate: Gate::Fused,
    then: |shape, _, fields| {
        // Only some types of positions read it.
        fields.get("original_max_position_embeddings");
        if shape.attention.qkv_bias {
            return Err(fields.unsupported("attention_bias", "false"));
        }
        Ok(())
    },
    ..PLAIN
};
