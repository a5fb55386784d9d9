//! Like LLaMA, with layer norms: Phi, StableLM, StarCoder2, Cohere, GPT-NeoX.

use fisher_core::grouping::Fused;

use super::super::rope::RopeDefaults;
use super::super::shape::{Activation, Gate, NormKind, Order, QkNorm};
use super::dialect::{Dialect, Rotations, rotate};
use super::llama::PLAIN;
use super::setting::Setting::{Field, Is};
use super::windows::{Sliding, Windows};

const LAYER_NORMS: Dialect = Dialect {
    norm: NormKind::Layer,
    epsilon: Field("layer_norm_eps", 1e-5),
    ..PLAIN
};

pub(crate) const PHI: Dialect = Dialect {
    order: Order::Parallel,
    biases: [Is(true); 3],
    qk_norm: Some((QkNorm::Each, Field("qk_layernorm", false))),
    rotations: Rotations::One(RopeDefaults::share(0.5)),
    gate: Gate::None,
    activation: Field("hidden_act", Activation::GeluTanh),
    head_bias: true,
    ..LAYER_NORMS
};

pub(crate) const STABLELM: Dialect = Dialect {
    longest: Field("max_position_embeddings", 4096),
    kv_heads: Field("num_key_value_heads", Some(32)),
    biases: [Field("use_qkv_bias", false), Is(false), Is(false)],
    qk_norm: Some((QkNorm::OwnApart, Field("qk_layernorm", false))),
    rotations: Rotations::One(RopeDefaults::share(0.25)),
    then: |shape, _, fields| {
        if let Some((_, norm)) = &mut shape.attention.qk_norm {
            norm.kind = NormKind::LayerWithoutBias;
        }
        if fields.flag("use_parallel_residual", false)? {
            shape.order = Order::Parallel;
        }
        Ok(())
    },
    ..LAYER_NORMS
};

pub(crate) const STARCODER2: Dialect = Dialect {
    longest: Field("max_position_embeddings", 4096),
    kv_heads: Field("num_key_value_heads", Some(2)),
    epsilon: Field("norm_epsilon", 1e-5),
    biases: [Field("use_bias", true); 3],
    windows: Some(Windows(None, Is(true), Sliding::All)),
    gate: Gate::None,
    activation: Field("hidden_act", Activation::GeluTanh),
    tied: Field("tie_word_embeddings", true),
    ..LAYER_NORMS
};

pub(crate) const COHERE: Dialect = Dialect {
    longest: Field("max_position_embeddings", 8192),
    norm: NormKind::LayerWithoutBias,
    order: Order::Parallel,
    qk_norm: Some((QkNorm::Own, Field("use_qk_norm", false))),
    rotations: Rotations::One(RopeDefaults::neighbours(500_000.0)),
    tied: Field("tie_word_embeddings", true),
    logit_scale: Field("logit_scale", 0.0625),
    ..LAYER_NORMS
};

pub(crate) const COHERE2: Dialect = Dialect {
    qk_norm: None,
    windows: Some(Windows(Some(4096), Is(true), Sliding::Pattern(4))),
    rotations: Rotations::One(RopeDefaults::neighbours(10_000.0)),
    then: |shape, _, _| {
        // Layers that see all know no positions.
        for layer in &mut shape.layers {
            layer.rotation = layer.rotation.filter(|_| layer.window.is_some());
        }
        Ok(())
    },
    ..COHERE
};

pub(crate) const GPT_NEOX: Dialect = Dialect {
    biases: [
        Field("attention_bias", true),
        Field("attention_bias", true),
        Is(true),
    ],
    fused: Some(Fused::Interleaved),
    rotations: Rotations::None,
    gate: Gate::None,
    activation: Field("hidden_act", Activation::Gelu),
    then: |shape, longest, fields| {
        let rope = RopeDefaults {
            theta: fields.real("rotary_emb_base", 10_000.0)?,
            ..RopeDefaults::share(fields.real("rotary_pct", 0.25)?)
        };
        let width = shape.attention.head_width;
        rotate(shape, rope.read(fields, width, longest.tokens)?);
        if fields.flag("use_parallel_residual", true)? {
            shape.order = Order::ParallelTwoNorms;
        }
        Ok(())
    },
    ..LAYER_NORMS
};
