//! GPT-2.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use fisher_train::{Tapped, tapped_transposed};

use super::attention::attend;
use super::config::Gpt2Config;

/// Decoder with learned positions and one projection for queries, keys and values.
#[derive(Module, Debug)]
pub struct Gpt2 {
    /// Also the output head.
    wte: Embedding,
    wpe: Embedding,
    h: Vec<Block>,
    ln_f: LayerNorm,
}

#[derive(Module, Debug)]
struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Attention {
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
    /// A model with random weights.
    pub(crate) fn init(config: &Gpt2Config, device: &Device) -> Self {
        let width = config.width;
        let linear = |input, output| LinearConfig::new(input, output).init(device);
        let norm = || {
            LayerNormConfig::new(width)
                .with_epsilon(config.epsilon)
                .init(device)
        };
        let block = |_| Block {
            ln_1: norm(),
            attn: Attention {
                c_attn: linear(width, 3 * width),
                c_proj: linear(width, width),
                heads: config.heads,
            },
            ln_2: norm(),
            mlp: Mlp {
                c_fc: linear(width, config.inner),
                c_proj: linear(config.inner, width),
            },
        };
        Self {
            wte: EmbeddingConfig::new(config.vocabulary, width).init(device),
            wpe: EmbeddingConfig::new(config.context, width).init(device),
            h: (0..config.layers).map(block).collect(),
            ln_f: norm(),
        }
    }

    /// `[samples, positions]` to `[samples, positions, vocabulary]`.
    pub(crate) fn logits(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [samples, length] = tokens.dims();
        let positions = Tensor::<1, Int>::arange(0..length as i64, &tokens.device());
        let positions = positions.unsqueeze::<2>().expand([samples, length]);
        let mut x = self.wte.tapped(tokens) + self.wpe.tapped(positions);
        for block in &self.h {
            x = x.clone() + block.attn.forward(block.ln_1.tapped(x));
            let inner = block.mlp.c_fc.tapped(block.ln_2.tapped(x.clone()));
            x = x + block.mlp.c_proj.tapped(gelu_new(inner));
        }
        tapped_transposed(&self.wte.weight, self.ln_f.tapped(x))
    }
}

impl Attention {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [samples, positions, width] = x.dims();
        let fused = self.c_attn.tapped(x);
        let part = |index: usize| {
            let split = [samples, positions, self.heads, width / self.heads];
            let part = fused.clone().narrow(2, index * width, width);
            part.reshape(split).swap_dims(1, 2)
        };
        self.c_proj.tapped(attend(part(0), part(1), part(2)))
    }
}

/// The approximation by tanh that GPT-2 was trained with.
fn gelu_new(x: Tensor<3>) -> Tensor<3> {
    let cube = x.clone() * x.clone().square();
    let inner =
        (x.clone() + cube.mul_scalar(0.044_715)).mul_scalar((2.0 / std::f64::consts::PI).sqrt());
    x.mul_scalar(0.5) * (inner.tanh() + 1.0)
}
