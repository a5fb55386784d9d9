//! Families with a feed-forward part of several experts.

use super::super::error::Result;
use super::super::fields::Fields;
use super::super::rope::RopeDefaults;
use super::super::shape::{ExpertsShape, QkNorm, Shape};
use super::dialect::{Dialect, Rotations};
use super::llama::PLAIN;
use super::setting::Number;
use super::setting::Setting::{Field, Is};
use super::windows::{ON_REQUEST, Sliding, Windows};

pub(crate) const MIXTRAL: Dialect = Dialect {
    longest: Field("max_position_embeddings", 131_072),
    kv_heads: Field("num_key_value_heads", Some(8)),
    epsilon: Field("rms_norm_eps", 1e-5),
    biases: [Is(false); 3],
    windows: Some(Windows(None, Is(true), Sliding::All)),
    rotations: Rotations::One(RopeDefaults::theta(1_000_000.0)),
    then: |shape, _, fields| {
        shape.experts = Some(ExpertsShape {
            count: fields.number("num_local_experts", Some(8))?,
            chosen: fields.number("num_experts_per_tok", Some(2))?,
            inner: shape.inner,
            shared: None,
            renormalized: true,
        });
        shape.layers.iter_mut().for_each(|l| l.experts = true);
        trained_only(fields);
        Ok(())
    },
    ..PLAIN
};

pub(crate) const QWEN2_MOE: Dialect = Dialect {
    longest: Field("max_position_embeddings", 32_768),
    kv_heads: Field("num_key_value_heads", Some(16)),
    biases: [Field("qkv_bias", true), Is(false), Is(false)],
    windows: Some(Windows(None, ON_REQUEST, Sliding::EvenBelow)),
    then: |shape, _, fields| {
        let shared = fields.number("shared_expert_intermediate_size", Some(5632))?;
        qwen_experts(shape, fields, [60, 4, 1408], Some(shared))
    },
    ..PLAIN
};

pub(crate) const QWEN3_MOE: Dialect = Dialect {
    longest: Field("max_position_embeddings", 32_768),
    kv_heads: Field("num_key_value_heads", Some(4)),
    qk_norm: Some((QkNorm::Each, Is(true))),
    windows: Some(Windows(None, ON_REQUEST, Sliding::All)),
    then: |shape, _, fields| {
        // Its windows are of all layers.
        fields.get("max_window_layers");
        qwen_experts(shape, fields, [128, 8, 768], None)
    },
    ..PLAIN
};

/// Qwen's experts: in every `decoder_sparse_step`-th layer but those of `mlp_only_layers`.
fn qwen_experts(
    shape: &mut Shape,
    fields: &Fields,
    [count, chosen, inner]: [usize; 3],
    shared: Option<usize>,
) -> Result<()> {
    shape.experts = Some(ExpertsShape {
        count: Number(&["num_experts", "num_local_experts"], Some(count)).read(fields)?,
        chosen: fields.number("num_experts_per_tok", Some(chosen))?,
        inner: fields.number("moe_intermediate_size", Some(inner))?,
        shared,
        renormalized: fields.flag("norm_topk_prob", false)?,
    });
    let every = fields.number("decoder_sparse_step", Some(1))?;
    let dense = fields.indices("mlp_only_layers")?;
    for (l, layer) in shape.layers.iter_mut().enumerate() {
        layer.experts = (l + 1) % every == 0 && !dense.contains(&l);
    }
    trained_only(fields);
    Ok(())
}

/// What only counts in training.
fn trained_only(fields: &Fields) {
    for field in ["router_aux_loss_coef", "router_jitter_noise"] {
        fields.get(field);
    }
}
