//! The losses of a batch's samples, in one unit.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{DType, Int, Tensor};

/// The label of a position that does not count.
pub const IGNORE: i64 = -100;

/// The token-sum loss `L_i = Σ_t −log p(y_it | ..)` of every sample and its active tokens `T_i`.
///
/// # Shapes
/// `[samples]`
#[derive(Debug, Clone)]
pub struct SampleLosses {
    sums: Tensor<1>,
    tokens: Vec<u64>,
}

impl SampleLosses {
    /// Losses that are sums over each sample's active tokens.
    ///
    /// # Panics
    /// When the numbers of losses and of token counts differ.
    pub fn token_sum(losses: Tensor<1>, tokens: Vec<u64>) -> Self {
        assert_eq!(losses.dims()[0], tokens.len(), "one token count per loss");
        Self {
            sums: losses,
            tokens,
        }
    }

    /// Losses that are means over each sample's active tokens: multiplied by `T_i`, once, here.
    ///
    /// # Panics
    /// When the numbers of losses and of token counts differ.
    pub fn token_mean(losses: Tensor<1>, tokens: Vec<u64>) -> Self {
        let counts: Vec<f32> = tokens.iter().map(|&t| t as f32).collect();
        let device = losses.device();
        let counts = Tensor::<1>::from_data(counts.as_slice(), (&device, DType::F32));
        // Half precision would round the counts.
        let dtype = match losses.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        Self::token_sum(losses.cast(dtype) * counts.cast(dtype), tokens)
    }

    /// Cross-entropy of `logits` against labels that stand at the position that predicts them:
    /// `labels[i, t]` is what `logits[i, t]` should say. Positions labelled [`IGNORE`] do not
    /// count. Nothing is shifted.
    ///
    /// # Shapes
    /// - logits: `[samples, positions, vocabulary]`
    /// - labels: `[samples, positions]`
    pub fn cross_entropy(logits: Tensor<3>, labels: Tensor<2, Int>) -> Self {
        let [samples, positions, _] = logits.dims();
        let ignored = labels.clone().equal_scalar(IGNORE);
        let index = labels.mask_fill(ignored.clone(), 0);
        let negative = log_softmax(logits, 2)
            .gather(2, index.reshape([samples, positions, 1]))
            .reshape([samples, positions])
            .neg()
            .mask_fill(ignored.clone(), 0.0);
        let active = ignored.bool_not().int().sum_dim(1).into_data();
        let tokens = active.iter::<i64>().map(i64::unsigned_abs).collect();
        Self::token_sum(negative.sum_dim(1).reshape([samples]), tokens)
    }

    /// Cross-entropy of a causal language model whose labels are its inputs: position `t` is
    /// scored against label `t + 1`, so the last logits and the first label count for nothing.
    /// Do not shift the labels before.
    ///
    /// # Shapes
    /// - logits: `[samples, positions, vocabulary]`
    /// - labels: `[samples, positions]`
    pub fn next_token(logits: Tensor<3>, labels: Tensor<2, Int>) -> Self {
        let [samples, positions, _] = logits.dims();
        if positions < 2 {
            // Nothing is predicted: no active token.
            return Self::token_sum(Tensor::zeros([samples], &logits.device()), vec![0; samples]);
        }
        Self::cross_entropy(
            logits.narrow(1, 0, positions - 1),
            labels.narrow(1, 1, positions - 1),
        )
    }

    /// Cross-entropy of a classifier; every sample has one active token.
    ///
    /// # Shapes
    /// - logits: `[samples, classes]`
    /// - labels: `[samples]`
    pub fn classification(logits: Tensor<2>, labels: Tensor<1, Int>) -> Self {
        Self::cross_entropy(logits.unsqueeze_dim(1), labels.unsqueeze_dim(1))
    }

    /// The losses, `[samples]`.
    pub fn sums(&self) -> &Tensor<1> {
        &self.sums
    }

    /// The active tokens of every sample.
    pub fn tokens(&self) -> &[u64] {
        &self.tokens
    }
}

/// Labels drawn from the model's own predictions, for a Monte-Carlo Fisher
/// ([`FisherKind::MonteCarlo`](fisher_core::FisherKind::MonteCarlo)).
///
/// Each label that counts is replaced by a draw from `softmax(logits)` at its position; ignored
/// positions stay ignored. The draws are the device's: seed it (`device.seed(..)`) before each
/// batch, by what the batch is, if a collection is to be resumed to the same result.
///
/// Draw them before the batch is collected, from a forward pass of its own, and put them into it: a
/// loss that draws anew each time is another one in the batch and alone.
///
/// # Shapes
/// - logits: `[samples, positions, vocabulary]`
/// - labels: `[samples, positions]`, aligned as for [`SampleLosses::cross_entropy`]
pub fn draw_labels(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<2, Int> {
    let [samples, positions, vocabulary] = logits.dims();
    let probabilities = softmax(logits.inner(), 2).reshape([samples * positions, vocabulary]);
    let drawn = probabilities.categorical(1).reshape([samples, positions]);
    let ignored = labels.equal_scalar(IGNORE);
    drawn.mask_fill(ignored, IGNORE)
}
