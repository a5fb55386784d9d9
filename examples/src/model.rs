//! A small causal transformer of Burn's own layers.

use burn::config::Config;
use burn::module::Module;
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use fisher_train::batch::SampleLoss;
use fisher_train::losses::SampleLosses;

use crate::tasks::TaskBatch;

/// Configuration of a [`CausalTransformer`].
#[derive(Config, Debug)]
pub struct CausalTransformerConfig {
    /// Tokens.
    pub vocabulary: usize,
    /// Positions.
    pub context: usize,
    /// Width of the residual stream.
    #[config(default = 64)]
    pub d_model: usize,
    /// Width of the feed-forward layers.
    #[config(default = 128)]
    pub d_ff: usize,
    /// Attention heads a layer.
    #[config(default = 4)]
    pub heads: usize,
    /// Layers.
    #[config(default = 2)]
    pub layers: usize,
    /// Dropout.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// Whether the embedding of tokens is the head as well.
    #[config(default = false)]
    pub tied: bool,
}

impl CausalTransformerConfig {
    /// A model with random weights.
    pub fn init(&self, device: &Device) -> CausalTransformer {
        let transformer =
            TransformerEncoderConfig::new(self.d_model, self.d_ff, self.heads, self.layers)
                .with_norm_first(true)
                .with_dropout(self.dropout);
        let output = LinearConfig::new(self.d_model, self.vocabulary).with_bias(false);
        CausalTransformer {
            token: EmbeddingConfig::new(self.vocabulary, self.d_model).init(device),
            position: EmbeddingConfig::new(self.context, self.d_model).init(device),
            transformer: transformer.init(device),
            norm: LayerNormConfig::new(self.d_model).init(device),
            output: (!self.tied).then(|| output.init(device)),
        }
    }
}

/// Pre-norm decoder with learned positions.
#[derive(Module, Debug)]
pub struct CausalTransformer {
    token: Embedding,
    position: Embedding,
    transformer: TransformerEncoder,
    norm: LayerNorm,
    /// Absent where it is the embedding.
    output: Option<Linear>,
}

impl CausalTransformer {
    /// Logits of the next token, `[samples, positions]` to `[samples, positions, vocabulary]`.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [samples, length] = tokens.dims();
        let device = tokens.device();
        let positions = Tensor::<1, Int>::arange(0..length as i64, &device);
        let x = self.token.forward(tokens) + self.position.forward(positions.unsqueeze());
        let mask = generate_autoregressive_mask(samples, length, &device);
        let x = TransformerEncoderInput::new(x).mask_attn(mask);
        let x = self.transformer.forward(x);
        let x = self.norm.forward(x);
        match &self.output {
            Some(output) => output.forward(x),
            None => x.matmul(self.token.weight.val().transpose().unsqueeze()),
        }
    }
}

impl SampleLoss for CausalTransformer {
    type Batch = TaskBatch;

    fn sample_losses(&self, batch: &TaskBatch) -> SampleLosses {
        let logits = self.forward(batch.tokens.clone());
        SampleLosses::cross_entropy(logits, batch.labels.clone())
    }
}
