//! LLaMA, Mistral and Qwen2.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor};
use fisher_train::{Tapped, tapped_transposed};

use super::attention::attend;
use super::config::LlamaConfig;

/// Decoder with rotary positions, grouped queries and SwiGLU.
#[derive(Module, Debug)]
pub struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// Absent where it is the embedding.
    lm_head: Option<Linear>,
    head_width: usize,
    theta: f64,
}

#[derive(Module, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
}

#[derive(Module, Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Llama {
    /// A model with random weights.
    pub(crate) fn init(config: &LlamaConfig, device: &Device) -> Self {
        let linear = |input, output, bias| {
            LinearConfig::new(input, output)
                .with_bias(bias)
                .init(device)
        };
        let norm = || {
            RmsNormConfig::new(config.width)
                .with_epsilon(config.epsilon)
                .init(device)
        };
        let (width, inner) = (config.width, config.inner);
        let queries = config.heads * config.head_width;
        let keys = config.kv_heads * config.head_width;
        let [in_bias, out_bias] = config.biases;
        let layer = |_| Layer {
            input_layernorm: norm(),
            self_attn: Attention {
                q_proj: linear(width, queries, in_bias),
                k_proj: linear(width, keys, in_bias),
                v_proj: linear(width, keys, in_bias),
                o_proj: linear(queries, width, out_bias),
                heads: config.heads,
                kv_heads: config.kv_heads,
            },
            post_attention_layernorm: norm(),
            mlp: Mlp {
                gate_proj: linear(width, inner, config.mlp_bias),
                up_proj: linear(width, inner, config.mlp_bias),
                down_proj: linear(inner, width, config.mlp_bias),
            },
        };
        Self {
            embed_tokens: EmbeddingConfig::new(config.vocabulary, width).init(device),
            layers: (0..config.layers).map(layer).collect(),
            norm: norm(),
            lm_head: (!config.tied).then(|| linear(width, config.vocabulary, false)),
            head_width: config.head_width,
            theta: config.theta,
        }
    }

    /// `[samples, positions]` to `[samples, positions, vocabulary]`.
    pub(crate) fn logits(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let rotation = Rotation::new(
            tokens.dims()[1],
            self.head_width,
            self.theta,
            &tokens.device(),
        );
        let mut x = self.embed_tokens.tapped(tokens);
        for layer in &self.layers {
            let inner = layer.input_layernorm.tapped(x.clone());
            x = x + layer.self_attn.forward(inner, &rotation);
            let inner = layer.post_attention_layernorm.tapped(x.clone());
            let gate = silu(layer.mlp.gate_proj.tapped(inner.clone()));
            x = x + layer
                .mlp
                .down_proj
                .tapped(gate * layer.mlp.up_proj.tapped(inner));
        }
        let x = self.norm.tapped(x);
        match &self.lm_head {
            Some(head) => head.tapped(x),
            None => tapped_transposed(&self.embed_tokens.weight, x),
        }
    }
}

impl Attention {
    fn forward(&self, x: Tensor<3>, rotation: &Rotation) -> Tensor<3> {
        let heads = |x: Tensor<3>, heads: usize| {
            let [samples, positions, width] = x.dims();
            let split = [samples, positions, heads, width / heads];
            x.reshape(split).swap_dims(1, 2)
        };
        let query = rotation.apply(heads(self.q_proj.tapped(x.clone()), self.heads));
        let key = rotation.apply(heads(self.k_proj.tapped(x.clone()), self.kv_heads));
        let value = heads(self.v_proj.tapped(x), self.kv_heads);
        // Each key/value head serves as many query heads, which are neighbours.
        let shared = self.heads / self.kv_heads;
        let share = |x: Tensor<4>| {
            let [samples, heads, positions, width] = x.dims();
            x.reshape([samples, heads, 1, positions, width])
                .repeat_dim(2, shared)
                .reshape([samples, heads * shared, positions, width])
        };
        self.o_proj.tapped(attend(query, share(key), share(value)))
    }
}

/// Rotary positions: the halves of a head's width turn against each other.
struct Rotation {
    /// `[1, 1, positions, width / 2]`
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotation {
    fn new(positions: usize, width: usize, theta: f64, device: &Device) -> Self {
        let half = width / 2;
        let angle = |at: usize| {
            let (position, k) = (at / half, at % half);
            position as f64 * theta.powf(-2.0 * k as f64 / width as f64)
        };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..positions * half)
                .map(|at| f(angle(at)) as f32)
                .collect();
            Tensor::<1>::from_floats(values.as_slice(), device).reshape([1, 1, positions, half])
        };
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }

    fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let first = a.clone() * cos.clone() - b.clone() * sin.clone();
        Tensor::cat(vec![first, b * cos + a * sin], 3)
    }
}
