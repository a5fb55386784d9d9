//! A small causal transformer of Burn's own layers.

use burn::config::Config;
use burn::module::Module;
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use fisher_train::{SampleLoss, SampleLosses, Tapped, TappedSequence};

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
}

impl CausalTransformerConfig {
    /// A model with random weights.
    pub fn init(&self, device: &Device) -> CausalTransformer {
        let transformer =
            TransformerEncoderConfig::new(self.d_model, self.d_ff, self.heads, self.layers)
                .with_norm_first(true)
                .with_dropout(self.dropout);
        CausalTransformer {
            token: EmbeddingConfig::new(self.vocabulary, self.d_model).init(device),
            position: EmbeddingConfig::new(self.context, self.d_model).init(device),
            transformer: transformer.init(device),
            norm: LayerNormConfig::new(self.d_model).init(device),
            output: LinearConfig::new(self.d_model, self.vocabulary)
                .with_bias(false)
                .init(device),
        }
    }
}

/// Pre-norm decoder with learned positions. Its layers are called by `tapped`, which is `forward`
/// but for collection.
#[derive(Module, Debug)]
pub struct CausalTransformer {
    token: Embedding,
    position: Embedding,
    transformer: TransformerEncoder,
    norm: LayerNorm,
    output: Linear,
}

impl CausalTransformer {
    /// Logits of the next token, `[samples, positions]` to `[samples, positions, vocabulary]`.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [samples, length] = tokens.dims();
        let device = tokens.device();
        // One row of positions a sample: taps want samples as the first axis of all they see.
        let positions = Tensor::<1, Int>::arange(0..length as i64, &device);
        let positions = positions.unsqueeze::<2>().expand([samples, length]);
        let x = self.token.tapped(tokens) + self.position.tapped(positions);
        let x = self.transformer.tapped(TappedSequence {
            tensor: x,
            mask_pad: None,
            mask_attn: Some(generate_autoregressive_mask(samples, length, &device)),
        });
        self.output.tapped(self.norm.tapped(x))
    }
}

impl SampleLoss for CausalTransformer {
    type Batch = TaskBatch;

    fn sample_losses(&self, batch: &TaskBatch) -> SampleLosses {
        let logits = self.forward(batch.tokens.clone());
        SampleLosses::cross_entropy(logits, batch.labels.clone())
    }
}
