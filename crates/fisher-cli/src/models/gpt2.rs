//! GPT-2. Fields are named as in the checkpoint; its `Conv1D` is a linear layer whose weight is
//! `[in, out]` in the file, as Burn's is.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::module::linear;
use burn::tensor::{Device, Int, Tensor};
use fisher_train::batch::SampleLoss;
use fisher_train::losses::SampleLosses;

use super::attention::{causal_attention, split_heads};
use super::config::Gpt2Config;
use super::sequences::Sequences;

impl Gpt2Config {
    /// A model whose weights are still to be loaded.
    pub fn init(&self, device: &Device) -> Gpt2 {
        let linear = |input, output| LinearConfig::new(input, output).init(device);
        let norm = || {
            let config = LayerNormConfig::new(self.width).with_epsilon(self.epsilon);
            config.init(device)
        };
        let table = |rows| EmbeddingConfig::new(rows, self.width).init(device);
        let layer = |_| Layer {
            ln_1: norm(),
            attn: SelfAttention {
                c_attn: linear(self.width, 3 * self.width),
                c_proj: linear(self.width, self.width),
                heads: self.heads,
            },
            ln_2: norm(),
            mlp: Mlp {
                c_fc: linear(self.width, self.inner),
                c_proj: linear(self.inner, self.width),
            },
        };
        let head = LinearConfig::new(self.width, self.vocabulary).with_bias(false);
        Gpt2 {
            transformer: Decoder {
                wte: table(self.vocabulary),
                wpe: table(self.positions),
                h: (0..self.layers).map(layer).collect(),
                ln_f: norm(),
            },
            lm_head: (!self.tied).then(|| head.init(device)),
        }
    }
}

/// GPT-2 with its output head.
#[derive(Module, Debug)]
pub struct Gpt2 {
    transformer: Decoder,
    /// Absent where the embedding is the output head.
    lm_head: Option<Linear>,
}

#[derive(Module, Debug)]
struct Decoder {
    wte: Embedding,
    wpe: Embedding,
    h: Vec<Layer>,
    ln_f: LayerNorm,
}

#[derive(Module, Debug)]
struct Layer {
    ln_1: LayerNorm,
    attn: SelfAttention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct SelfAttention {
    /// Q, K and V, one after the other.
    c_attn: Linear,
    c_proj: Linear,
    heads: usize,
}

#[derive(Module, Debug)]
struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
}

impl Gpt2 {
    /// Logits of the next token.
    ///
    /// # Shapes
    /// `[samples, positions]` to `[samples, positions, vocabulary]`.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let decoder = &self.transformer;
        let [_, length] = tokens.dims();
        let positions = Tensor::<1, Int>::arange(0..length as i64, &tokens.device());
        let mut x = decoder.wte.forward(tokens) + decoder.wpe.forward(positions.unsqueeze());
        for layer in &decoder.h {
            x = x.clone() + layer.attn.forward(layer.ln_1.forward(x));
            x = x.clone() + layer.mlp.forward(layer.ln_2.forward(x));
        }
        let x = decoder.ln_f.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => linear(x, decoder.wte.weight.val().transpose(), None),
        }
    }
}

impl SelfAttention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let width = x.dims()[2];
        let fused = self.c_attn.forward(x);
        let part = |i| split_heads(fused.clone().narrow(2, i * width, width), self.heads);
        let context = causal_attention(part(0), part(1), part(2));
        self.c_proj.forward(context)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.c_proj.forward(gelu_new(self.c_fc.forward(x)))
    }
}

/// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`. The cube is a product: a power of a negative number is
/// undefined on some devices.
fn gelu_new(x: Tensor<3>) -> Tensor<3> {
    let cube = x.clone() * x.clone() * x.clone();
    let inner =
        (x.clone() + cube.mul_scalar(0.044_715)).mul_scalar((2.0 / std::f64::consts::PI).sqrt());
    (inner.tanh() + 1.0) * x.mul_scalar(0.5)
}

impl SampleLoss for Gpt2 {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        SampleLosses::next_token(self.forward(batch.tokens.clone()), batch.labels.clone())
    }
}
