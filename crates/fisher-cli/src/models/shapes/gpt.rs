//! GPT-2 and its time: layer norms, biases, and positions of several kinds.

use fisher_core::grouping::Fused;

use super::super::error::Result;
use super::super::fields::Fields;
use super::super::rope::RopeDefaults;
use super::super::shape::{Activation, Alibi, Gate, Longest, NormKind, Order, Shape};
use super::dialect::{Dialect, Inner, Rotations, kv_heads, rotate};
use super::llama::PLAIN;
use super::setting::Number;
use super::setting::Setting::{Field, Is};

/// What the older families share: as many key/value heads as heads, a bias everywhere, no gate.
pub(super) const OLD: Dialect = Dialect {
    kv_heads: Is(None),
    head_width: Is(None),
    norm: NormKind::Layer,
    epsilon: Field("layer_norm_epsilon", 1e-5),
    biases: [Is(true); 3],
    rotations: Rotations::None,
    gate: Gate::None,
    tied: Field("tie_word_embeddings", true),
    ..PLAIN
};

pub(crate) const GPT2: Dialect = Dialect {
    vocabulary: Number(&["vocab_size"], Some(50_257)),
    width: Number(&["n_embd"], Some(768)),
    heads: Number(&["n_head"], Some(12)),
    layers: Number(&["n_layer"], Some(12)),
    inner: Inner::FourWidths(Some("n_inner")),
    longest: Field("n_positions", 1024),
    fused: Some(Fused::Concatenated),
    activation: Field("activation_function", Activation::GeluTanh),
    then: |shape, longest, fields| {
        fields.maybe_number("n_ctx")?;
        if !fields.flag("scale_attn_weights", true)? {
            return Err(fields.unsupported("scale_attn_weights", "true"));
        }
        shape.embedding.positions = Some([longest.tokens, 0]);
        Ok(())
    },
    ..OLD
};

pub(crate) const GPTJ: Dialect = Dialect {
    width: Number(&["n_embd"], Some(4096)),
    heads: Number(&["n_head"], Some(16)),
    layers: Number(&["n_layer"], Some(28)),
    longest: Field("n_positions", 2048),
    order: Order::Parallel,
    biases: [Is(false), Is(false), Is(true)],
    fused: None,
    tied: Field("tie_word_embeddings", false),
    head_bias: true,
    then: |shape, longest, fields| {
        fields.maybe_number("n_ctx")?;
        let width = shape.attention.head_width;
        let turned = fields.number("rotary_dim", None)?;
        let rope = RopeDefaults {
            share: Some(turned as f64 / width as f64),
            ..RopeDefaults::neighbours(10_000.0)
        };
        rotate(shape, rope.read(fields, width, longest.tokens)?);
        Ok(())
    },
    ..GPT2
};

pub(crate) const OPT: Dialect = Dialect {
    inner: Inner::Number(Number(&["ffn_dim"], None)),
    epsilon: Is(1e-5),
    biases: [Field("enable_bias", true); 3],
    activation: Field("activation_function", Activation::Relu),
    then: |shape, longest, fields| {
        // The first two rows are of no position.
        shape.embedding.positions = Some([longest.tokens + 2, 2]);
        let narrow = fields.number("word_embed_proj_dim", Some(shape.width))?;
        shape.embedding.width = Some(narrow).filter(|narrow| *narrow != shape.width);
        let before = fields.flag("do_layer_norm_before", true)?;
        if !before {
            shape.order = Order::Sum;
        }
        shape.last_norm = before && !fields.flag("_remove_final_layer_norm", false)?;
        Ok(())
    },
    ..OLD
};

/// No position is too far where scores fall with distance.
const UNBOUNDED: Longest = Longest {
    tokens: usize::MAX,
    field: "none",
};

pub(crate) const BLOOM: Dialect = Dialect {
    width: Number(&["hidden_size", "n_embed"], None),
    heads: Number(&["n_head", "num_attention_heads"], None),
    layers: Number(&["n_layer", "num_hidden_layers"], None),
    inner: Inner::FourWidths(None),
    longest: Is(UNBOUNDED.tokens),
    fused: Some(Fused::Interleaved),
    activation: Is(Activation::GeluTanh),
    then: |shape, _, fields| {
        shape.embedding.norm = true;
        shape.attention.alibi = Some(Alibi::Scaled);
        if fields.flag("apply_residual_connection_post_layernorm", false)? {
            shape.order = Order::FromNorm;
        }
        // They say how it was trained.
        for field in [
            "seq_length",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "offset_alibi",
        ] {
            fields.get(field);
        }
        Ok(())
    },
    ..OLD
};

pub(crate) const FALCON: Dialect = Dialect {
    heads: Number(&["num_attention_heads", "n_head"], None),
    layers: Number(&["num_hidden_layers", "n_layer"], None),
    inner: Inner::FourWidths(Some("ffn_hidden_size")),
    biases: [Field("bias", false); 3],
    fused: Some(Fused::Interleaved),
    activation: Field("activation", Activation::Gelu),
    then: falcon,
    ..OLD
};

fn falcon(shape: &mut Shape, longest: &mut Longest, fields: &Fields) -> Result<()> {
    let heads = shape.attention.heads;
    let grouped = fields.flag("new_decoder_architecture", false)?;
    let kv = Number(&["num_kv_heads", "n_head_kv"], None).name(fields);
    let kv = kv_heads(fields, kv, None, heads)?;
    let single = fields.flag("multi_query", true)?;
    shape.attention.kv_heads = match (grouped, single) {
        (true, _) => kv,
        (false, true) => 1,
        (false, false) => heads,
    };
    let parallel = fields.flag("parallel_attn", true)?;
    let norms = fields.number("num_ln_in_parallel_attn", Some(if grouped { 2 } else { 1 }))?;
    shape.order = match (parallel, grouped, norms) {
        (true, true, 2) => Order::ParallelTwoNorms,
        (true, _, 1) => Order::Parallel,
        (false, false, _) => Order::Before,
        _ => {
            let supported = "what transformers has weights for: 2 only beside new_decoder_architecture and parallel_attn";
            return Err(fields.unsupported("num_ln_in_parallel_attn", supported));
        }
    };
    let width = shape.attention.head_width;
    let rope = RopeDefaults::PLAIN.read(fields, width, longest.tokens)?;
    if fields.flag("alibi", false)? {
        shape.attention.alibi = Some(Alibi::Rounded);
        *longest = UNBOUNDED;
    } else {
        rotate(shape, rope);
    }
    Ok(())
}
