//! LLaMA, and its kin Mistral and Qwen2. Fields are named as in the checkpoint.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::silu;
use burn::tensor::module::linear;
use burn::tensor::{Device, Int, Tensor};
use fisher_train::batch::SampleLoss;
use fisher_train::losses::SampleLosses;

use super::attention::{Rotation, causal_attention, split_heads};
use super::config::LlamaConfig;
use super::sequences::Sequences;

impl LlamaConfig {
    /// A model whose weights are still to be loaded.
    pub fn init(&self, device: &Device) -> Llama {
        let linear = |input, output, bias| {
            let config = LinearConfig::new(input, output).with_bias(bias);
            config.init(device)
        };
        let norm = || {
            let config = RmsNormConfig::new(self.width).with_epsilon(self.epsilon);
            config.init(device)
        };
        let (queries, keys) = (
            self.heads * self.head_width,
            self.kv_heads * self.head_width,
        );
        let layer = |_| Layer {
            input_layernorm: norm(),
            self_attn: SelfAttention {
                q_proj: linear(self.width, queries, self.qkv_bias),
                k_proj: linear(self.width, keys, self.qkv_bias),
                v_proj: linear(self.width, keys, self.qkv_bias),
                o_proj: linear(queries, self.width, self.output_bias),
                heads: self.heads,
                kv_heads: self.kv_heads,
            },
            post_attention_layernorm: norm(),
            mlp: Mlp {
                gate_proj: linear(self.width, self.inner, self.inner_bias),
                up_proj: linear(self.width, self.inner, self.inner_bias),
                down_proj: linear(self.inner, self.width, self.inner_bias),
            },
        };
        let embedding = EmbeddingConfig::new(self.vocabulary, self.width);
        Llama {
            model: Decoder {
                embed_tokens: embedding.init(device),
                layers: (0..self.layers).map(layer).collect(),
                norm: norm(),
            },
            lm_head: (!self.tied).then(|| linear(self.width, self.vocabulary, false)),
            head_width: self.head_width,
            theta: self.theta,
        }
    }
}

/// Decoder of the LLaMA family with its output head.
#[derive(Module, Debug)]
pub struct Llama {
    model: Decoder,
    /// Absent where the embedding is the output head.
    lm_head: Option<Linear>,
    head_width: usize,
    theta: f64,
}

#[derive(Module, Debug)]
struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

#[derive(Module, Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct SelfAttention {
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
    /// Logits of the next token.
    ///
    /// # Shapes
    /// `[samples, positions]` to `[samples, positions, vocabulary]`.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let positions = tokens.dims()[1];
        let device = self.model.embed_tokens.weight.val().device();
        let rotation = Rotation::new(positions, self.head_width, self.theta, &device);
        let mut x = self.model.embed_tokens.forward(tokens);
        for layer in &self.model.layers {
            let normal = layer.input_layernorm.forward(x.clone());
            x = x + layer.self_attn.forward(normal, &rotation);
            let normal = layer.post_attention_layernorm.forward(x.clone());
            x = x + layer.mlp.forward(normal);
        }
        let x = self.model.norm.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => linear(x, self.model.embed_tokens.weight.val().transpose(), None),
        }
    }
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>, rotation: &Rotation) -> Tensor<3> {
        let q = split_heads(self.q_proj.forward(x.clone()), self.heads);
        let k = split_heads(self.k_proj.forward(x.clone()), self.kv_heads);
        let v = split_heads(self.v_proj.forward(x), self.kv_heads);
        let context = causal_attention(rotation.turn(q), rotation.turn(k), v);
        self.o_proj.forward(context)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = silu(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}

impl SampleLoss for Llama {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        SampleLosses::next_token(self.forward(batch.tokens.clone()), batch.labels.clone())
    }
}
