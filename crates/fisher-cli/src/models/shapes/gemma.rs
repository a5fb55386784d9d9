//! Gemma: embeddings that are scaled, norms by 1 + γ, later caps.

use super::super::error::Result;
use super::super::fields::Fields;
use super::super::rope::RopeDefaults;
use super::super::shape::{Activation, NormKind, Order, Output, QkNorm, Shape};
use super::dialect::{Dialect, Rotations, activation};
use super::llama::PLAIN;
use super::setting::Setting::{Field, Is};
use super::windows::{Sliding, Windows};

pub(crate) const GEMMA: Dialect = Dialect {
    longest: Field("max_position_embeddings", 8192),
    kv_heads: Field("num_key_value_heads", Some(16)),
    head_width: Field("head_dim", Some(256)),
    norm: NormKind::RmsPlusOne,
    activation: Field("hidden_act", Activation::GeluTanh),
    tied: Field("tie_word_embeddings", true),
    then: |shape, _, fields| {
        scale_embedding(shape);
        // Its first files say `gelu` and mean the other one.
        shape.mlp.activation = Activation::GeluTanh;
        let newer = activation(fields, "hidden_activation", Activation::GeluTanh)?;
        if newer != shape.mlp.activation {
            return Err(fields.unsupported("hidden_activation", "the same as hidden_act"));
        }
        Ok(())
    },
    ..PLAIN
};

pub(crate) const GEMMA2: Dialect = Dialect {
    kv_heads: Field("num_key_value_heads", Some(4)),
    order: Order::Both,
    windows: Some(Windows(Some(4096), Is(true), Sliding::Even)),
    activation: Field("hidden_activation", Activation::GeluTanh),
    then: |shape, _, fields| {
        scale_embedding(shape);
        cap(shape, fields, [Some(50.0), Some(30.0)])
    },
    ..GEMMA
};

pub(crate) const GEMMA3: Dialect = Dialect {
    longest: Field("max_position_embeddings", 131_072),
    qk_norm: Some((QkNorm::Each, Is(true))),
    windows: Some(Windows(Some(4096), Is(true), Sliding::Pattern(6))),
    rotations: Rotations::Two(RopeDefaults::theta(1_000_000.0), 10_000.0),
    then: |shape, _, fields| {
        scale_embedding(shape);
        cap(shape, fields, [None, None])?;
        // It is read and not used.
        shape.attention.cap = None;
        Ok(())
    },
    ..GEMMA2
};

fn scale_embedding(shape: &mut Shape) {
    shape.embedding.scale = (shape.width as f64).sqrt();
}

/// Caps of scores and logits, and the scale of scores. A cap that is null is none.
fn cap(shape: &mut Shape, fields: &Fields, defaults: [Option<f64>; 2]) -> Result<()> {
    let read = |field: &str, default: Option<f64>| -> Result<Option<f64>> {
        let default = default.filter(|_| !fields.is_null(field));
        Ok(fields.maybe_real(field)?.or(default))
    };
    shape.attention.cap = read("attn_logit_softcapping", defaults[0])?;
    let of_logits = read("final_logit_softcapping", defaults[1])?;
    if let Output::NextToken { cap, .. } = &mut shape.output {
        *cap = of_logits;
    }
    shape.attention.scale = fields.real("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    // Not read by newer versions for what it says: hidden_activation counts.
    fields.get("hidden_act");
    Ok(())
}
