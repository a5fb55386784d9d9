//! What the `config.json` of each family means. Defaults are those of transformers.

use fisher_core::grouping::Fused;

use super::error::Result;
use super::fields::Fields;
use super::rope::RopeDefaults;
use super::shape::{
    Activation, Alibi, AttentionShape, EmbeddingShape, ExpertsShape, Gate, LayerShape, Longest,
    MlpShape, NormKind, NormShape, Order, Output, QkNorm, Shape,
};

const ACTIVATIONS: [(&str, Activation); 8] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_python", Activation::Gelu),
    ("relu", Activation::Relu),
];

/// What a family has where its `config.json` says nothing.
struct Defaults {
    longest: usize,
    kv_heads: Option<usize>,
    head_width: Option<usize>,
    tied: bool,
    norm: NormKind,
    /// The field of ε, and its value.
    epsilon: (&'static str, f64),
    activation: (&'static str, &'static str),
    gate: Gate,
    order: Order,
    /// Rotary positions, where all layers have the same.
    rope: Option<RopeDefaults>,
}

const LLAMA: Defaults = Defaults {
    longest: 2048,
    kv_heads: None,
    head_width: None,
    tied: false,
    norm: NormKind::Rms,
    epsilon: ("rms_norm_eps", 1e-6),
    activation: ("hidden_act", "silu"),
    gate: Gate::Apart,
    order: Order::Before,
    rope: Some(RopeDefaults::PLAIN),
};

/// The norms of Phi, GPT-NeoX and their like.
const LAYER: Defaults = Defaults {
    norm: NormKind::Layer,
    epsilon: ("layer_norm_eps", 1e-5),
    ..LLAMA
};

type Known = Result<(Shape, Longest)>;

fn longest(fields: &Fields, field: &'static str, default: usize) -> Result<Longest> {
    Ok(Longest {
        tokens: fields.number(field, Some(default))?,
        field,
    })
}

/// The field of a number of key/value heads, and what it is.
fn kv_heads(fields: &Fields, field: &str, default: usize, heads: usize) -> Result<usize> {
    // Null is not missing.
    let default = if fields.is_null(field) {
        heads
    } else {
        default
    };
    let kv_heads = fields.number(field, Some(default))?;
    if heads.is_multiple_of(kv_heads) {
        Ok(kv_heads)
    } else {
        Err(fields.unsupported(field, "a divisor of the number of heads"))
    }
}

fn head_width(fields: &Fields, field: &str, width: usize, heads: usize) -> Result<usize> {
    if width.is_multiple_of(heads) {
        Ok(width / heads)
    } else {
        Err(fields.unsupported(field, "a divisor of the width"))
    }
}

fn activation(fields: &Fields, (field, default): (&str, &str)) -> Result<Activation> {
    fields.one_of(field, &ACTIVATIONS, default)
}

/// LLaMA's fields: everything of its kin that they share. Rotation 0 turns all layers, which see all.
fn llama_like(fields: &Fields, of: &Defaults) -> Known {
    let width = fields.number("hidden_size", None)?;
    let heads = fields.number("num_attention_heads", None)?;
    let kv = of.kv_heads.unwrap_or(heads);
    let kv_heads = kv_heads(fields, "num_key_value_heads", kv, heads)?;
    let head_width = match (fields.maybe_number("head_dim")?, of.head_width) {
        (Some(width), _) | (None, Some(width)) => width,
        (None, None) => head_width(fields, "num_attention_heads", width, heads)?,
    };
    let longest = longest(fields, "max_position_embeddings", of.longest)?;
    let layers = fields.number("num_hidden_layers", None)?;
    let rotations = of.rope.iter();
    let rotations = rotations.map(|rope| rope.read(fields, head_width, longest.tokens));
    let rotations: Result<Vec<_>> = rotations.collect();
    let shape = Shape {
        vocabulary: fields.number("vocab_size", None)?,
        width,
        inner: fields.number("intermediate_size", None)?,
        layers: vec![
            LayerShape {
                window: None,
                rotation: Some(0),
                experts: false,
            };
            layers
        ],
        embedding: EmbeddingShape::PLAIN,
        norm: NormShape {
            kind: of.norm,
            epsilon: fields.real(of.epsilon.0, of.epsilon.1)?,
        },
        last_norm: true,
        order: of.order,
        residual: 1.0,
        attention: AttentionShape {
            heads,
            kv_heads,
            head_width,
            causal: true,
            fused: None,
            qkv_bias: false,
            output_bias: false,
            scale: (head_width as f64).powf(-0.5),
            cap: None,
            clip: None,
            qk_norm: None,
            rotations: rotations?,
            alibi: None,
        },
        mlp: MlpShape {
            gate: of.gate,
            activation: activation(fields, of.activation)?,
            bias: false,
        },
        experts: None,
        output: Output::NextToken {
            tied: fields.flag("tie_word_embeddings", of.tied)?,
            bias: false,
            scale: 1.0,
            cap: None,
        },
    };
    Ok((shape, longest))
}

/// Biases of Q, K, V and O by one field.
fn attention_bias(shape: &mut Shape, fields: &Fields) -> Result<()> {
    let bias = fields.flag("attention_bias", false)?;
    (shape.attention.qkv_bias, shape.attention.output_bias) = (bias, bias);
    Ok(())
}

/// Layers with a window: those that `layer_types` or else `rule` says.
fn windows(
    shape: &mut Shape,
    fields: &Fields,
    window: Option<usize>,
    rule: impl Fn(usize) -> bool,
) -> Result<()> {
    let types = fields.get("layer_types");
    let sliding: Vec<bool> = match types {
        None => (0..shape.layers.len()).map(rule).collect(),
        Some(types) => {
            let of = |kind: &serde_json::Value| match kind.as_str() {
                Some("sliding_attention") => Some(true),
                Some("full_attention") => Some(false),
                _ => None,
            };
            let list = types.as_array().map(Vec::as_slice).unwrap_or_default();
            let types: Option<Vec<bool>> = list.iter().map(of).collect();
            let types = types.filter(|types| types.len() == shape.layers.len());
            types.ok_or_else(|| {
                let supported = "full_attention or sliding_attention for each layer";
                fields.unsupported("layer_types", supported)
            })?
        }
    };
    for (layer, sliding) in shape.layers.iter_mut().zip(sliding) {
        layer.window = window.filter(|_| sliding);
    }
    Ok(())
}

/// The width of windows: `default` where the field is missing, none where it is null or 0.
fn window(fields: &Fields, default: Option<usize>) -> Result<Option<usize>> {
    let field = "sliding_window";
    if fields.is_null(field) || fields.get(field) == Some(&0.into()) {
        return Ok(None);
    }
    Ok(fields.maybe_number(field)?.or(default))
}

/// A window that is only used where another field says so, from layer `max_window_layers` on.
fn window_on_request(shape: &mut Shape, fields: &Fields) -> Result<()> {
    let from = fields.get("max_window_layers");
    let from = from.and_then(serde_json::Value::as_u64).unwrap_or(28) as usize;
    let slides = fields.flag("use_sliding_window", false)?;
    let width = window(fields, Some(4096))?.filter(|_| slides);
    windows(shape, fields, width, |layer| layer >= from)
}

fn tied(shape: &Shape) -> bool {
    matches!(shape.output, Output::NextToken { tied: true, .. })
}

pub(super) fn llama(fields: &Fields) -> Known {
    let (mut shape, longest) = llama_like(fields, &LLAMA)?;
    attention_bias(&mut shape, fields)?;
    shape.mlp.bias = fields.flag("mlp_bias", false)?;
    Ok((shape, longest))
}

pub(super) fn mistral(fields: &Fields) -> Known {
    let defaults = Defaults {
        longest: 131_072,
        kv_heads: Some(8),
        ..LLAMA
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    let width = window(fields, Some(4096))?;
    windows(&mut shape, fields, width, |_| true)?;
    Ok((shape, longest))
}

const QWEN: Defaults = Defaults {
    longest: 32_768,
    kv_heads: Some(32),
    ..LLAMA
};

pub(super) fn qwen2(fields: &Fields) -> Known {
    let (mut shape, longest) = llama_like(fields, &QWEN)?;
    shape.attention.qkv_bias = true;
    window_on_request(&mut shape, fields)?;
    Ok((shape, longest))
}

pub(super) fn qwen3(fields: &Fields) -> Known {
    let defaults = Defaults {
        head_width: Some(128),
        ..QWEN
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    attention_bias(&mut shape, fields)?;
    shape.attention.qk_norm = Some((QkNorm::Each, shape.norm));
    window_on_request(&mut shape, fields)?;
    Ok((shape, longest))
}

pub(super) fn mixtral(fields: &Fields) -> Known {
    let defaults = Defaults {
        longest: 131_072,
        kv_heads: Some(8),
        epsilon: ("rms_norm_eps", 1e-5),
        rope: Some(RopeDefaults::theta(1_000_000.0)),
        ..LLAMA
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    let width = window(fields, None)?;
    windows(&mut shape, fields, width, |_| true)?;
    shape.experts = Some(ExpertsShape {
        count: fields.number("num_local_experts", Some(8))?,
        chosen: fields.number("num_experts_per_tok", Some(2))?,
        inner: shape.inner,
        shared: None,
        renormalized: true,
    });
    shape.layers.iter_mut().for_each(|l| l.experts = true);
    trained_only(fields);
    Ok((shape, longest))
}

/// What only counts in training.
fn trained_only(fields: &Fields) {
    for field in ["router_aux_loss_coef", "router_jitter_noise"] {
        fields.get(field);
    }
}

/// Qwen's experts: in every `decoder_sparse_step`-th layer but those of `mlp_only_layers`.
fn qwen_experts(
    shape: &mut Shape,
    fields: &Fields,
    [count, chosen, inner]: [usize; 3],
    shared: Option<usize>,
) -> Result<()> {
    let name = named(fields, ["num_experts", "num_local_experts"]);
    shape.experts = Some(ExpertsShape {
        count: fields.number(name, Some(count))?,
        chosen: fields.number("num_experts_per_tok", Some(chosen))?,
        inner: fields.number("moe_intermediate_size", Some(inner))?,
        shared,
        renormalized: fields.flag("norm_topk_prob", false)?,
    });
    let every = fields.number("decoder_sparse_step", Some(1))?;
    let dense = fields
        .get("mlp_only_layers")
        .and_then(serde_json::Value::as_array);
    let dense: Vec<u64> = dense
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_u64)
        .collect();
    for (l, layer) in shape.layers.iter_mut().enumerate() {
        layer.experts = (l + 1) % every == 0 && !dense.contains(&(l as u64));
    }
    trained_only(fields);
    Ok(())
}

pub(super) fn qwen2_moe(fields: &Fields) -> Known {
    let defaults = Defaults {
        longest: 32_768,
        kv_heads: Some(16),
        ..LLAMA
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    shape.attention.qkv_bias = fields.flag("qkv_bias", true)?;
    let slides = fields.flag("use_sliding_window", false)?;
    let until = fields
        .get("max_window_layers")
        .and_then(serde_json::Value::as_u64);
    let until = until.unwrap_or(28) as usize;
    let width = window(fields, None)?.filter(|_| slides);
    windows(&mut shape, fields, width, |l| l < until && l % 2 == 0)?;
    let shared = fields.number("shared_expert_intermediate_size", Some(5632))?;
    qwen_experts(&mut shape, fields, [60, 4, 1408], Some(shared))?;
    Ok((shape, longest))
}

pub(super) fn qwen3_moe(fields: &Fields) -> Known {
    let defaults = Defaults {
        longest: 32_768,
        kv_heads: Some(4),
        ..LLAMA
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    attention_bias(&mut shape, fields)?;
    shape.attention.qk_norm = Some((QkNorm::Each, shape.norm));
    let slides = fields.flag("use_sliding_window", false)?;
    fields.get("max_window_layers");
    let width = window(fields, None)?.filter(|_| slides);
    windows(&mut shape, fields, width, |_| true)?;
    qwen_experts(&mut shape, fields, [128, 8, 768], None)?;
    Ok((shape, longest))
}

pub(super) fn smollm3(fields: &Fields) -> Known {
    let defaults = Defaults {
        longest: 32_768,
        kv_heads: Some(4),
        tied: true,
        rope: Some(RopeDefaults::theta(2_000_000.0)),
        ..LLAMA
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    attention_bias(&mut shape, fields)?;
    shape.mlp.bias = fields.flag("mlp_bias", false)?;
    window_on_request(&mut shape, fields)?;
    let every = fields.number("no_rope_layer_interval", Some(4))?;
    let layers = shape.layers.len();
    let turned: Vec<bool> = match fields.get("no_rope_layers") {
        None => (1..=layers).map(|layer| layer % every != 0).collect(),
        Some(list) => {
            let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
            let of = |flag: &serde_json::Value| match flag.as_u64() {
                Some(flag @ (0 | 1)) => Some(flag == 1),
                _ => None,
            };
            let turned: Option<Vec<bool>> = list.iter().map(of).collect();
            let turned = turned.filter(|turned| turned.len() == layers);
            let supported = "a 1 or a 0 for each layer";
            turned.ok_or_else(|| fields.unsupported("no_rope_layers", supported))?
        }
    };
    for (layer, turned) in shape.layers.iter_mut().zip(turned) {
        layer.rotation = turned.then_some(0);
    }
    Ok((shape, longest))
}

pub(super) fn granite(fields: &Fields) -> Known {
    let (mut shape, longest) = llama(fields)?;
    shape.embedding.scale = fields.real("embedding_multiplier", 1.0)?;
    shape.residual = fields.real("residual_multiplier", 1.0)?;
    shape.attention.scale = fields.real("attention_multiplier", 1.0)?;
    shape.output = Output::NextToken {
        tied: tied(&shape),
        bias: false,
        scale: 1.0 / fields.real("logits_scaling", 1.0)?,
        cap: None,
    };
    Ok((shape, longest))
}

const GEMMA: Defaults = Defaults {
    longest: 8192,
    head_width: Some(256),
    tied: true,
    norm: NormKind::RmsPlusOne,
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    ..LLAMA
};

fn gemma_like(fields: &Fields, defaults: &Defaults) -> Known {
    let (mut shape, longest) = llama_like(fields, defaults)?;
    attention_bias(&mut shape, fields)?;
    shape.embedding.scale = (shape.width as f64).sqrt();
    Ok((shape, longest))
}

pub(super) fn gemma(fields: &Fields) -> Known {
    let defaults = Defaults {
        kv_heads: Some(16),
        ..GEMMA
    };
    let (mut shape, longest) = gemma_like(fields, &defaults)?;
    // Its first files say `gelu` and mean the other one.
    shape.mlp.activation = Activation::GeluTanh;
    let other = fields.get("hidden_activation");
    if other.is_some() && activation(fields, ("hidden_activation", ""))? != shape.mlp.activation {
        return Err(fields.unsupported("hidden_activation", "the same as hidden_act"));
    }
    Ok((shape, longest))
}

const GEMMA2: Defaults = Defaults {
    kv_heads: Some(4),
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    order: Order::Both,
    ..GEMMA
};

/// Caps, and the scale of scores. A cap that is null is none.
fn capped(shape: &mut Shape, fields: &Fields, caps: [Option<f64>; 2]) -> Result<()> {
    let cap = |field: &str, default: Option<f64>| -> Result<Option<f64>> {
        let default = default.filter(|_| !fields.is_null(field));
        Ok(fields.maybe_real(field)?.or(default))
    };
    shape.attention.cap = cap("attn_logit_softcapping", caps[0])?;
    shape.output = Output::NextToken {
        tied: tied(shape),
        bias: false,
        scale: 1.0,
        cap: cap("final_logit_softcapping", caps[1])?,
    };
    shape.attention.scale = fields.real("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    // Not read by newer versions for what it says: hidden_activation counts.
    fields.get("hidden_act");
    Ok(())
}

pub(super) fn gemma2(fields: &Fields) -> Known {
    let (mut shape, longest) = gemma_like(fields, &GEMMA2)?;
    capped(&mut shape, fields, [Some(50.0), Some(30.0)])?;
    let width = window(fields, Some(4096))?;
    windows(&mut shape, fields, width, |layer| layer % 2 == 0)?;
    Ok((shape, longest))
}

pub(super) fn gemma3(fields: &Fields) -> Known {
    let rope = RopeDefaults::theta(1_000_000.0);
    let defaults = Defaults {
        longest: 131_072,
        rope: None,
        ..GEMMA2
    };
    let (mut shape, longest) = gemma_like(fields, &defaults)?;
    capped(&mut shape, fields, [None, None])?;
    // It is read and not used.
    shape.attention.cap = None;
    shape.attention.qk_norm = Some((QkNorm::Each, shape.norm));
    let every = fields.number("_sliding_window_pattern", Some(6))?;
    let every = fields.number("sliding_window_pattern", Some(every))?;
    let width = window(fields, Some(4096))?;
    windows(&mut shape, fields, width, |layer| (layer + 1) % every != 0)?;
    two_rotations(&mut shape, fields, rope, 10_000.0, longest.tokens)?;
    Ok((shape, longest))
}

/// Rotation 0 for layers that see all, rotation 1 for those with a window.
fn two_rotations(
    shape: &mut Shape,
    fields: &Fields,
    rope: RopeDefaults,
    local: f64,
    longest: usize,
) -> Result<()> {
    let rotations = rope.read_both(local, fields, shape.attention.head_width, longest)?;
    shape.attention.rotations = rotations.into();
    for layer in &mut shape.layers {
        layer.rotation = Some(usize::from(layer.window.is_some()));
    }
    Ok(())
}

pub(super) fn olmo(fields: &Fields) -> Known {
    let defaults = Defaults {
        norm: NormKind::LayerAlone,
        epsilon: ("", 1e-5),
        ..LLAMA
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    attention_bias(&mut shape, fields)?;
    shape.attention.clip = fields.maybe_real("clip_qkv")?;
    Ok((shape, longest))
}

const OLMO2: Defaults = Defaults {
    epsilon: ("rms_norm_eps", 1e-5),
    order: Order::After,
    ..LLAMA
};

pub(super) fn olmo2(fields: &Fields) -> Known {
    let (mut shape, longest) = llama_like(fields, &OLMO2)?;
    attention_bias(&mut shape, fields)?;
    shape.attention.qk_norm = Some((QkNorm::Whole, shape.norm));
    Ok((shape, longest))
}

pub(super) fn olmo3(fields: &Fields) -> Known {
    let defaults = Defaults {
        rope: None,
        ..OLMO2
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    attention_bias(&mut shape, fields)?;
    shape.attention.qk_norm = Some((QkNorm::Whole, shape.norm));
    let width = window(fields, Some(4096))?;
    windows(&mut shape, fields, width, |layer| (layer + 1) % 4 != 0)?;
    let rope = RopeDefaults::theta(500_000.0);
    two_rotations(&mut shape, fields, rope, 500_000.0, longest.tokens)?;
    Ok((shape, longest))
}

pub(super) fn phi(fields: &Fields) -> Known {
    let defaults = Defaults {
        activation: ("hidden_act", "gelu_new"),
        gate: Gate::None,
        order: Order::Parallel,
        rope: Some(RopeDefaults::share(0.5)),
        ..LAYER
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    (shape.attention.qkv_bias, shape.attention.output_bias) = (true, true);
    shape.mlp.bias = true;
    if fields.flag("qk_layernorm", false)? {
        shape.attention.qk_norm = Some((QkNorm::Each, shape.norm));
    }
    shape.output = Output::NextToken {
        tied: tied(&shape),
        bias: true,
        scale: 1.0,
        cap: None,
    };
    Ok((shape, longest))
}

pub(super) fn phi3(fields: &Fields) -> Known {
    let defaults = Defaults {
        longest: 4096,
        epsilon: ("rms_norm_eps", 1e-5),
        gate: Gate::Fused,
        rope: Some(RopeDefaults::share(1.0)),
        ..LLAMA
    };
    // Other types of positions read it.
    fields.get("original_max_position_embeddings");
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    attention_bias(&mut shape, fields)?;
    if shape.attention.qkv_bias {
        return Err(fields.unsupported("attention_bias", "false"));
    }
    shape.attention.fused = Some(Fused::Concatenated);
    let width = window(fields, None)?;
    windows(&mut shape, fields, width, |_| true)?;
    Ok((shape, longest))
}

pub(super) fn stablelm(fields: &Fields) -> Known {
    let defaults = Defaults {
        longest: 4096,
        kv_heads: Some(32),
        rope: Some(RopeDefaults::share(0.25)),
        ..LAYER
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    shape.attention.qkv_bias = fields.flag("use_qkv_bias", false)?;
    if fields.flag("qk_layernorm", false)? {
        let norm = NormShape {
            kind: NormKind::LayerWithoutBias,
            ..shape.norm
        };
        shape.attention.qk_norm = Some((QkNorm::OwnApart, norm));
    }
    if fields.flag("use_parallel_residual", false)? {
        shape.order = Order::Parallel;
    }
    Ok((shape, longest))
}

pub(super) fn starcoder2(fields: &Fields) -> Known {
    let defaults = Defaults {
        longest: 4096,
        kv_heads: Some(2),
        tied: true,
        epsilon: ("norm_epsilon", 1e-5),
        activation: ("hidden_act", "gelu_pytorch_tanh"),
        gate: Gate::None,
        ..LAYER
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    let bias = fields.flag("use_bias", true)?;
    (shape.attention.qkv_bias, shape.attention.output_bias) = (bias, bias);
    shape.mlp.bias = bias;
    let width = window(fields, None)?;
    windows(&mut shape, fields, width, |_| true)?;
    Ok((shape, longest))
}

const COHERE: Defaults = Defaults {
    longest: 8192,
    tied: true,
    norm: NormKind::LayerWithoutBias,
    order: Order::Parallel,
    rope: Some(RopeDefaults::neighbours(500_000.0)),
    ..LAYER
};

fn cohere_like(fields: &Fields, defaults: &Defaults) -> Known {
    let (mut shape, longest) = llama_like(fields, defaults)?;
    attention_bias(&mut shape, fields)?;
    shape.output = Output::NextToken {
        tied: tied(&shape),
        bias: false,
        scale: fields.real("logit_scale", 0.0625)?,
        cap: None,
    };
    Ok((shape, longest))
}

pub(super) fn cohere(fields: &Fields) -> Known {
    let (mut shape, longest) = cohere_like(fields, &COHERE)?;
    if fields.flag("use_qk_norm", false)? {
        shape.attention.qk_norm = Some((QkNorm::Own, shape.norm));
    }
    Ok((shape, longest))
}

pub(super) fn cohere2(fields: &Fields) -> Known {
    let defaults = Defaults {
        rope: Some(RopeDefaults::neighbours(10_000.0)),
        ..COHERE
    };
    let (mut shape, longest) = cohere_like(fields, &defaults)?;
    let every = fields.number("_sliding_window_pattern", Some(4))?;
    let every = fields.number("sliding_window_pattern", Some(every))?;
    let width = window(fields, Some(4096))?;
    windows(&mut shape, fields, width, |layer| (layer + 1) % every != 0)?;
    // Layers that see all know no positions.
    for layer in &mut shape.layers {
        layer.rotation = layer.rotation.filter(|_| layer.window.is_some());
    }
    Ok((shape, longest))
}

pub(super) fn gpt_neox(fields: &Fields) -> Known {
    let theta = fields.real("rotary_emb_base", 10_000.0)?;
    let share = fields.real("rotary_pct", 0.25)?;
    let defaults = Defaults {
        activation: ("hidden_act", "gelu"),
        gate: Gate::None,
        rope: Some(RopeDefaults {
            theta,
            share: Some(share),
            neighbours: false,
        }),
        ..LAYER
    };
    let (mut shape, longest) = llama_like(fields, &defaults)?;
    shape.attention.fused = Some(Fused::Interleaved);
    let bias = fields.flag("attention_bias", true)?;
    (shape.attention.qkv_bias, shape.attention.output_bias) = (bias, bias);
    shape.mlp.bias = true;
    if fields.flag("use_parallel_residual", true)? {
        shape.order = Order::ParallelTwoNorms;
    }
    Ok((shape, longest))
}

/// What the older families share: learnt positions or none, layer norms, a bias everywhere.
struct Old {
    vocabulary: usize,
    width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    epsilon: f64,
    activation: Activation,
    tied: bool,
}

impl Old {
    fn shape(self, head_width: usize) -> Shape {
        Shape {
            vocabulary: self.vocabulary,
            width: self.width,
            inner: self.inner,
            layers: vec![
                LayerShape {
                    window: None,
                    rotation: None,
                    experts: false,
                };
                self.layers
            ],
            embedding: EmbeddingShape::PLAIN,
            norm: NormShape {
                kind: NormKind::Layer,
                epsilon: self.epsilon,
            },
            last_norm: true,
            order: Order::Before,
            residual: 1.0,
            attention: AttentionShape {
                heads: self.heads,
                kv_heads: self.heads,
                head_width,
                causal: true,
                fused: None,
                qkv_bias: true,
                output_bias: true,
                scale: (head_width as f64).powf(-0.5),
                cap: None,
                clip: None,
                qk_norm: None,
                rotations: Vec::new(),
                alibi: None,
            },
            mlp: MlpShape {
                gate: Gate::None,
                activation: self.activation,
                bias: true,
            },
            experts: None,
            output: Output::NextToken {
                tied: self.tied,
                bias: false,
                scale: 1.0,
                cap: None,
            },
        }
    }
}

/// GPT-2's fields.
fn gpt_like(fields: &Fields, [width, layers, heads, longest_]: [usize; 4], tied: bool) -> Known {
    let width = fields.number("n_embd", Some(width))?;
    let heads = fields.number("n_head", Some(heads))?;
    let longest = longest(fields, "n_positions", longest_)?;
    fields.maybe_number("n_ctx")?;
    let old = Old {
        vocabulary: fields.number("vocab_size", Some(50_257))?,
        width,
        inner: fields.number("n_inner", Some(4 * width))?,
        layers: fields.number("n_layer", Some(layers))?,
        heads,
        epsilon: fields.real("layer_norm_epsilon", 1e-5)?,
        activation: activation(fields, ("activation_function", "gelu_new"))?,
        tied: fields.flag("tie_word_embeddings", tied)?,
    };
    let head_width = head_width(fields, "n_head", width, heads)?;
    Ok((old.shape(head_width), longest))
}

pub(super) fn gpt2(fields: &Fields) -> Known {
    let (mut shape, longest) = gpt_like(fields, [768, 12, 12, 1024], true)?;
    if !fields.flag("scale_attn_weights", true)? {
        return Err(fields.unsupported("scale_attn_weights", "true"));
    }
    shape.attention.fused = Some(Fused::Concatenated);
    shape.embedding.positions = Some([longest.tokens, 0]);
    Ok((shape, longest))
}

pub(super) fn gptj(fields: &Fields) -> Known {
    let (mut shape, longest) = gpt_like(fields, [4096, 28, 16, 2048], false)?;
    let (width, turned) = (
        shape.attention.head_width,
        fields.number("rotary_dim", None)?,
    );
    let rope = RopeDefaults {
        share: Some(turned as f64 / width as f64),
        ..RopeDefaults::neighbours(10_000.0)
    };
    shape.attention.rotations = vec![rope.read(fields, width, longest.tokens)?];
    shape.layers.iter_mut().for_each(|l| l.rotation = Some(0));
    (shape.attention.qkv_bias, shape.attention.output_bias) = (false, false);
    shape.order = Order::Parallel;
    shape.output = Output::NextToken {
        tied: tied(&shape),
        bias: true,
        scale: 1.0,
        cap: None,
    };
    Ok((shape, longest))
}

pub(super) fn opt(fields: &Fields) -> Known {
    let width = fields.number("hidden_size", None)?;
    let heads = fields.number("num_attention_heads", None)?;
    let longest = longest(fields, "max_position_embeddings", 2048)?;
    let old = Old {
        vocabulary: fields.number("vocab_size", None)?,
        width,
        inner: fields.number("ffn_dim", None)?,
        layers: fields.number("num_hidden_layers", None)?,
        heads,
        epsilon: 1e-5,
        activation: activation(fields, ("activation_function", "relu"))?,
        tied: fields.flag("tie_word_embeddings", true)?,
    };
    let mut shape = old.shape(head_width(fields, "num_attention_heads", width, heads)?);
    let bias = fields.flag("enable_bias", true)?;
    (shape.attention.qkv_bias, shape.attention.output_bias) = (bias, bias);
    shape.mlp.bias = bias;
    // The first two rows are of no position.
    shape.embedding.positions = Some([longest.tokens + 2, 2]);
    let narrow = fields.number("word_embed_proj_dim", Some(width))?;
    shape.embedding.width = Some(narrow).filter(|narrow| *narrow != width);
    let before = fields.flag("do_layer_norm_before", true)?;
    if !before {
        shape.order = Order::Sum;
    }
    shape.last_norm = before && !fields.flag("_remove_final_layer_norm", false)?;
    Ok((shape, longest))
}

/// No position is too far where scores fall with distance.
const UNBOUNDED: Longest = Longest {
    tokens: usize::MAX,
    field: "none",
};

/// The first of several names that a field had over time.
fn named<'a>(fields: &Fields, names: [&'a str; 2]) -> &'a str {
    let there = |name: &&str| fields.get(name).is_some();
    names.into_iter().find(there).unwrap_or(names[0])
}

pub(super) fn bloom(fields: &Fields) -> Known {
    let width = fields.number(named(fields, ["hidden_size", "n_embed"]), None)?;
    let heads = fields.number(named(fields, ["n_head", "num_attention_heads"]), None)?;
    let layers = named(fields, ["n_layer", "num_hidden_layers"]);
    let old = Old {
        vocabulary: fields.number("vocab_size", None)?,
        width,
        inner: 4 * width,
        layers: fields.number(layers, None)?,
        heads,
        epsilon: fields.real("layer_norm_epsilon", 1e-5)?,
        activation: Activation::GeluTanh,
        tied: fields.flag("tie_word_embeddings", true)?,
    };
    let mut shape = old.shape(head_width(fields, "n_head", width, heads)?);
    shape.embedding.norm = true;
    shape.attention.fused = Some(Fused::Interleaved);
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
    Ok((shape, UNBOUNDED))
}

pub(super) fn falcon(fields: &Fields) -> Known {
    let width = fields.number("hidden_size", None)?;
    let heads = named(fields, ["num_attention_heads", "n_head"]);
    let heads = fields.number(heads, None)?;
    let layers = named(fields, ["num_hidden_layers", "n_layer"]);
    let kv = named(fields, ["num_kv_heads", "n_head_kv"]);
    let old = Old {
        vocabulary: fields.number("vocab_size", None)?,
        width,
        inner: fields.number("ffn_hidden_size", Some(4 * width))?,
        layers: fields.number(layers, None)?,
        heads,
        epsilon: fields.real("layer_norm_epsilon", 1e-5)?,
        activation: activation(fields, ("activation", "gelu"))?,
        tied: fields.flag("tie_word_embeddings", true)?,
    };
    let head_width = head_width(fields, "num_attention_heads", width, heads)?;
    let mut shape = old.shape(head_width);
    let bias = fields.flag("bias", false)?;
    (shape.attention.qkv_bias, shape.attention.output_bias) = (bias, bias);
    shape.mlp.bias = bias;
    let grouped = fields.flag("new_decoder_architecture", false)?;
    let kv = kv_heads(fields, kv, heads, heads)?;
    let single = fields.flag("multi_query", true)?;
    shape.attention.kv_heads = match (grouped, single) {
        (true, _) => kv,
        (false, true) => 1,
        (false, false) => heads,
    };
    shape.attention.fused = Some(Fused::Interleaved);
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
    let longest = longest(fields, "max_position_embeddings", 2048)?;
    let rope = RopeDefaults::PLAIN.read(fields, head_width, longest.tokens)?;
    if fields.flag("alibi", false)? {
        shape.attention.alibi = Some(Alibi::Rounded);
        return Ok((shape, UNBOUNDED));
    }
    shape.attention.rotations = vec![rope];
    shape.layers.iter_mut().for_each(|l| l.rotation = Some(0));
    Ok((shape, longest))
}

/// BERT's fields: an encoder with a head for classes. Its first `unused` positions are of none.
fn bert_like(fields: &Fields, unused: usize) -> Known {
    let width = fields.number("hidden_size", Some(768))?;
    let heads = fields.number("num_attention_heads", Some(12))?;
    let rows = fields.number("max_position_embeddings", Some(512))?;
    let old = Old {
        vocabulary: fields.number("vocab_size", None)?,
        width,
        inner: fields.number("intermediate_size", Some(3072))?,
        layers: fields.number("num_hidden_layers", Some(12))?,
        heads,
        epsilon: fields.real("layer_norm_eps", 1e-12)?,
        activation: activation(fields, ("hidden_act", "gelu"))?,
        // Of a head for words, which is not there.
        tied: fields.flag("tie_word_embeddings", true)?,
    };
    let mut shape = old.shape(head_width(fields, "num_attention_heads", width, heads)?);
    shape.attention.causal = false;
    shape.embedding.positions = Some([rows, unused]);
    shape.embedding.types = fields.number("type_vocab_size", Some(2))?;
    shape.embedding.norm = true;
    shape.order = Order::Sum;
    shape.last_norm = false;
    shape.output = classes(fields, Activation::Tanh)?;
    if fields.flag("is_decoder", false)? {
        return Err(fields.unsupported("is_decoder", "false"));
    }
    let longest = Longest {
        tokens: rows.saturating_sub(unused),
        field: "max_position_embeddings",
    };
    Ok((shape, longest))
}

/// Classes, of which every sample has one.
fn classes(fields: &Fields, activation: Activation) -> Result<Output> {
    let names = fields
        .get("id2label")
        .and_then(serde_json::Value::as_object);
    let count = fields.number("num_labels", Some(names.map_or(2, |names| names.len())))?;
    let architecture = fields.get("architectures");
    let first = architecture.and_then(|all| all.get(0)?.as_str());
    if first.is_some_and(|name| !name.ends_with("ForSequenceClassification")) {
        return Err(fields.unsupported("architectures", "a ..ForSequenceClassification"));
    }
    let kind = fields.text("problem_type", Some("single_label_classification"))?;
    if count < 2 || kind != "single_label_classification" {
        let supported = "single_label_classification of two classes or more";
        return Err(fields.unsupported("problem_type", supported));
    }
    Ok(Output::Classes { count, activation })
}

pub(super) fn bert(fields: &Fields) -> Known {
    bert_like(fields, 0)
}

pub(super) fn distilbert(fields: &Fields) -> Known {
    let width = fields.number("dim", Some(768))?;
    let heads = fields.number("n_heads", Some(12))?;
    let longest = longest(fields, "max_position_embeddings", 512)?;
    let old = Old {
        vocabulary: fields.number("vocab_size", None)?,
        width,
        inner: fields.number("hidden_dim", Some(4 * width))?,
        layers: fields.number("n_layers", Some(6))?,
        heads,
        epsilon: 1e-12,
        activation: activation(fields, ("activation", "gelu"))?,
        tied: fields.flag("tie_word_embeddings", true)?,
    };
    let mut shape = old.shape(head_width(fields, "n_heads", width, heads)?);
    shape.attention.causal = false;
    // How the table was begun; it is in the file all the same.
    fields.get("sinusoidal_pos_embds");
    shape.embedding.positions = Some([longest.tokens, 0]);
    shape.embedding.norm = true;
    shape.order = Order::Sum;
    shape.last_norm = false;
    shape.output = classes(fields, Activation::Relu)?;
    Ok((shape, longest))
}

pub(super) fn roberta(fields: &Fields) -> Known {
    let padding = fields
        .get("pad_token_id")
        .and_then(serde_json::Value::as_u64);
    bert_like(fields, padding.unwrap_or(1) as usize + 1)
}
