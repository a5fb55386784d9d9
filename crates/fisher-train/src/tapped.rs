//! Burn's layers with taps.

use burn::module::{Param, ParamId};
use burn::nn::attention::{MhaOutput, MultiHeadAttention};
use burn::nn::conv::{Conv1d, Conv2d};
use burn::nn::transformer::{
    PositionWiseFeedForward, TransformerDecoder, TransformerDecoderLayer, TransformerEncoder,
    TransformerEncoderLayer,
};
use burn::nn::{Embedding, LayerNorm, Linear, RmsNorm};
use burn::tensor::activation::{quiet_softmax, softmax};
use burn::tensor::{Bool, DType, Int, Tensor, module};

use crate::tap::{Use, flat, listens, tap};

/// A layer that can be tapped: call `tapped` where you would call `forward`.
///
/// The output is the same. While gradients are collected in batches the call also notes what per-
/// sample gradients of the layer's parameters need; at any other time it *is* `forward`. Types and
/// records of the model stay as they are.
///
/// Samples are the first axis of every input. (A batch flattened to `[samples × positions, ..]`
/// will do if each sample has as many positions and they are neighbors; that is then looked into, at the
/// price of a second pass: see [`Capture`](crate::Capture).) A layer whose weights have low-rank adapters is left to the loop.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{LayerNorm, Linear};
/// use burn::tensor::Tensor;
/// use fisher_train::Tapped;
///
/// #[derive(Module, Debug)]
/// struct Block {
///     norm: LayerNorm,
///     linear: Linear,
/// }
///
/// impl Block {
///     fn forward(&self, x: Tensor<3>) -> Tensor<3> {
///         x.clone() + self.linear.tapped(self.norm.tapped(x)).tanh()
///     }
/// }
/// ```
pub trait Tapped<I> {
    /// What `forward` gives.
    type Output;

    /// `forward`, with a tap where one is listened for.
    fn tapped(&self, input: I) -> Self::Output;
}

/// The values of a parameter, whose gradient is not wanted. (`detach` alone keeps the flag.)
fn frozen<const D: usize>(parameter: &Param<Tensor<D>>) -> Tensor<D> {
    parameter.val().detach().set_require_grad(false)
}

/// Whether a parameter is made of others, as low-rank adapters make it: those want gradients, which
/// only reach them through it.
fn composed<const D: usize>(parameter: &Param<Tensor<D>>) -> bool {
    let value = parameter.val();
    value.is_tracked() && !value.is_require_grad()
}

/// Whether to tap a layer of these parameters.
fn taps<const D: usize>(weight: &Param<Tensor<D>>, bias: &Option<Param<Tensor<1>>>) -> bool {
    listens(&[Some(weight.id), id(bias)])
        && !composed(weight)
        && !bias.as_ref().is_some_and(composed)
}

fn id<const D: usize>(parameter: &Option<Param<Tensor<D>>>) -> Option<ParamId> {
    parameter.as_ref().map(|p| p.id)
}

impl<const D: usize> Tapped<Tensor<D>> for Linear {
    type Output = Tensor<D>;

    fn tapped(&self, input: Tensor<D>) -> Tensor<D> {
        if !taps(&self.weight, &self.bias) {
            return self.forward(input);
        }
        let output = module::linear(input.clone(), frozen(&self.weight), None);
        let bias = self.bias.as_ref().map(|bias| frozen(bias).unsqueeze());
        let mut uses = vec![(self.weight.id, Use::Input(flat(input.inner())))];
        uses.extend(id(&self.bias).map(|bias| (bias, Use::Shift)));
        tap(output, bias, uses, flat)
    }
}

/// `x Wᵀ` with a tap: an output head that shares the weight `[symbols, width]` of an embedding.
///
/// # Shapes
/// `[.., width]` to `[.., symbols]`.
pub fn tapped_transposed<const D: usize>(weight: &Param<Tensor<2>>, input: Tensor<D>) -> Tensor<D> {
    if !taps(weight, &None) {
        return module::linear(input, weight.val().transpose(), None);
    }
    let output = module::linear(input.clone(), frozen(weight).transpose(), None);
    let uses = vec![(weight.id, Use::Transposed(flat(input.inner())))];
    tap(output, None, uses, flat)
}

/// `x + W` with a tap, for a learned vector or table that is added as it is: positions, biases.
///
/// # Shapes
/// The parameter `[width]` is added to `[.., width]`.
pub fn tapped_shift<const D: usize>(weight: &Param<Tensor<1>>, input: Tensor<D>) -> Tensor<D> {
    if !taps(weight, &None) {
        return input + weight.val().unsqueeze();
    }
    let uses = vec![(weight.id, Use::Shift)];
    tap(input, Some(frozen(weight).unsqueeze()), uses, flat)
}

impl Tapped<Tensor<2, Int>> for Embedding {
    type Output = Tensor<3>;

    fn tapped(&self, input: Tensor<2, Int>) -> Tensor<3> {
        if !taps(&self.weight, &None) {
            return self.forward(input);
        }
        let output = module::embedding(frozen(&self.weight), input.clone());
        let rows = input.dims().iter().product::<usize>();
        let uses = vec![(self.weight.id, Use::Lookup(input.inner().reshape([rows])))];
        tap(output, None, uses, flat)
    }
}

impl<const D: usize> Tapped<Tensor<D>> for LayerNorm {
    type Output = Tensor<D>;

    fn tapped(&self, input: Tensor<D>) -> Tensor<D> {
        if !taps(&self.gamma, &self.beta) {
            return self.forward(input);
        }
        // The same layer without its parameters gives what they scale and shift.
        let mut bare = self.clone();
        let gamma = frozen(&self.gamma);
        bare.gamma = Param::initialized(ParamId::new(), gamma.ones_like());
        bare.beta = None;
        let normal = bare.forward(input);
        let output = normal.clone() * gamma.unsqueeze();
        let beta = self.beta.as_ref().map(|beta| frozen(beta).unsqueeze());
        let mut uses = vec![(self.gamma.id, Use::Scale(flat(normal.inner())))];
        uses.extend(id(&self.beta).map(|beta| (beta, Use::Shift)));
        tap(output, beta, uses, flat)
    }
}

impl<const D: usize> Tapped<Tensor<D>> for RmsNorm {
    type Output = Tensor<D>;

    fn tapped(&self, input: Tensor<D>) -> Tensor<D> {
        if !taps(&self.gamma, &None) {
            return self.forward(input);
        }
        let dtype = input.dtype();
        let squares = input.clone().cast(DType::F32).square();
        let rms = (squares.mean_dim(D - 1) + self.epsilon).sqrt();
        let normal = input / rms.cast(dtype);
        let output = normal.clone() * frozen(&self.gamma).unsqueeze();
        let uses = vec![(self.gamma.id, Use::Scale(flat(normal.inner())))];
        tap(output, None, uses, flat)
    }
}

/// The patches that each output position of a convolution sees, by a convolution with an identity:
/// so padding, stride and dilation are the layer's own. Grouped convolutions have no tap, and are
/// found to have none.
macro_rules! convolution {
    ($layer:ty, $rank:literal) => {
        impl Tapped<Tensor<$rank>> for $layer {
            type Output = Tensor<$rank>;

            fn tapped(&self, input: Tensor<$rank>) -> Tensor<$rank> {
                if self.groups != 1 || !taps(&self.weight, &self.bias) {
                    return self.forward(input);
                }
                let weight = frozen(&self.weight);
                let shape = weight.dims();
                let patch: usize = shape[1..].iter().product();
                let mut kernel = shape;
                kernel[0] = patch;

                let mut layer = self.clone();
                let device = weight.device().without_autodiff();
                let identity = Tensor::<2>::eye(patch, &device).cast(weight.dtype());
                layer.weight = Param::initialized(ParamId::new(), identity.reshape(kernel));
                layer.bias = None;
                // [samples, channels, ..] to [samples × positions, channels]
                let rows = |tensor: Tensor<$rank>| {
                    let [samples, channels, ..] = tensor.dims();
                    let positions = tensor.dims()[2..].iter().product::<usize>();
                    let flat = tensor.reshape([samples, channels, positions]);
                    flat.swap_dims(1, 2)
                        .reshape([samples * positions, channels])
                };
                let patches = rows(layer.forward(input.clone().inner()));

                layer.weight = Param::initialized(ParamId::new(), weight);
                let bias = self.bias.as_ref().map(|bias| {
                    let mut channels = [1; $rank];
                    channels[1] = shape[0];
                    frozen(bias).reshape(channels)
                });
                let mut uses = vec![(self.weight.id, Use::Transposed(patches))];
                uses.extend(id(&self.bias).map(|bias| (bias, Use::Shift)));
                tap(layer.forward(input), bias, uses, rows)
            }
        }
    };
}

convolution!(Conv1d, 3);
convolution!(Conv2d, 4);

/// The input of a tapped attention: as Burn's [`MhaInput`](burn::nn::attention::MhaInput), whose
/// fields cannot be read.
#[derive(Debug, Clone)]
pub struct TappedAttention {
    /// `[samples, queries, width]`
    pub query: Tensor<3>,
    /// `[samples, keys, width]`
    pub key: Tensor<3>,
    /// `[samples, keys, width]`
    pub value: Tensor<3>,
    /// `[samples, keys]`: true where there is padding.
    pub mask_pad: Option<Tensor<2, Bool>>,
    /// `[samples, queries, keys]`: true where not to look.
    pub mask_attn: Option<Tensor<3, Bool>>,
}

impl TappedAttention {
    /// Attention of a sequence to itself.
    pub fn to_itself(sequence: Tensor<3>) -> Self {
        Self {
            query: sequence.clone(),
            key: sequence.clone(),
            value: sequence,
            mask_pad: None,
            mask_attn: None,
        }
    }
}

impl Tapped<TappedAttention> for MultiHeadAttention {
    type Output = MhaOutput;

    fn tapped(&self, input: TappedAttention) -> MhaOutput {
        let [samples, queries, width] = input.query.dims();
        let heads = |x: Tensor<3>| {
            let [samples, positions, _] = x.dims();
            let split = [samples, positions, self.n_heads, self.d_k];
            x.reshape(split).swap_dims(1, 2)
        };
        let query = heads(self.query.tapped(input.query));
        let key = heads(self.key.tapped(input.key));
        let value = heads(self.value.tapped(input.value));

        let mut scores = query
            .matmul(key.transpose())
            .div_scalar((self.d_k as f32).sqrt());
        if let Some(mask) = input.mask_pad {
            let [samples, keys] = mask.dims();
            scores = scores.mask_fill(mask.reshape([samples, 1, 1, keys]), self.min_float);
        }
        if let Some(mask) = input.mask_attn {
            let [samples, queries, keys] = mask.dims();
            scores = scores.mask_fill(mask.reshape([samples, 1, queries, keys]), self.min_float);
        }
        let weights = match self.quiet_softmax {
            true => quiet_softmax(scores, 3),
            false => softmax(scores, 3),
        };
        let weights = self.dropout.forward(weights);
        let context = weights.clone().matmul(value);
        let context = context.swap_dims(1, 2).reshape([samples, queries, width]);
        MhaOutput {
            weights,
            context: self.output.tapped(context),
        }
    }
}

impl<const D: usize> Tapped<Tensor<D>> for PositionWiseFeedForward {
    type Output = Tensor<D>;

    fn tapped(&self, input: Tensor<D>) -> Tensor<D> {
        let x = self.activation.forward(self.linear_inner.tapped(input));
        self.linear_outer.tapped(self.dropout.forward(x))
    }
}

/// A sequence with its masks, for tapped encoders.
#[derive(Debug, Clone)]
pub struct TappedSequence {
    /// `[samples, positions, width]`
    pub tensor: Tensor<3>,
    /// `[samples, positions]`: true where there is padding.
    pub mask_pad: Option<Tensor<2, Bool>>,
    /// `[samples, positions, positions]`: true where not to look.
    pub mask_attn: Option<Tensor<3, Bool>>,
}

/// A norm between two residual blocks: the residual stream, and the input of the next block.
fn between(norm_first: bool, norm: &LayerNorm, x: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let normal = norm.tapped(x.clone());
    match norm_first {
        true => (x, normal),
        false => (normal.clone(), normal),
    }
}

impl Tapped<TappedSequence> for TransformerEncoderLayer {
    type Output = Tensor<3>;

    fn tapped(&self, input: TappedSequence) -> Tensor<3> {
        let x = input.tensor;
        let inner = match self.norm_first {
            true => self.norm_2.tapped(x.clone()),
            false => x.clone(),
        };
        let attention = TappedAttention {
            mask_pad: input.mask_pad,
            mask_attn: input.mask_attn,
            ..TappedAttention::to_itself(inner)
        };
        let x = x + self.dropout.forward(self.mha.tapped(attention).context);
        let (x, inner) = between(self.norm_first, &self.norm_1, x);
        let x = x + self.dropout.forward(self.pwff.tapped(inner));
        match self.norm_first {
            true => x,
            false => self.norm_2.tapped(x),
        }
    }
}

impl Tapped<TappedSequence> for TransformerEncoder {
    type Output = Tensor<3>;

    fn tapped(&self, input: TappedSequence) -> Tensor<3> {
        let masks = input.clone();
        self.layers.iter().fold(input.tensor, |tensor, layer| {
            layer.tapped(TappedSequence {
                tensor,
                ..masks.clone()
            })
        })
    }
}

/// A sequence, what it was encoded from, and their masks, for tapped decoders.
#[derive(Debug, Clone)]
pub struct TappedDecoding {
    /// The sequence that is decoded.
    pub target: TappedSequence,
    /// What the encoder gave, `[samples, positions, width]`, and its masks.
    pub memory: TappedSequence,
}

impl Tapped<TappedDecoding> for TransformerDecoderLayer {
    type Output = Tensor<3>;

    fn tapped(&self, input: TappedDecoding) -> Tensor<3> {
        let TappedDecoding { target, memory } = input;
        let x = target.tensor;
        let inner = match self.norm_first {
            true => self.norm_3.tapped(x.clone()),
            false => x.clone(),
        };
        let attention = TappedAttention {
            mask_pad: target.mask_pad,
            mask_attn: target.mask_attn,
            ..TappedAttention::to_itself(inner)
        };
        let x = x + self
            .dropout
            .forward(self.self_attn.tapped(attention).context);
        let (x, inner) = between(self.norm_first, &self.norm_1, x);
        let attention = TappedAttention {
            query: inner,
            key: memory.tensor.clone(),
            value: memory.tensor,
            mask_pad: memory.mask_pad,
            mask_attn: memory.mask_attn,
        };
        let x = x + self
            .dropout
            .forward(self.cross_attn.tapped(attention).context);
        let (x, inner) = between(self.norm_first, &self.norm_2, x);
        let x = x + self.dropout.forward(self.pwff.tapped(inner));
        match self.norm_first {
            true => x,
            false => self.norm_3.tapped(x),
        }
    }
}

impl Tapped<TappedDecoding> for TransformerDecoder {
    type Output = Tensor<3>;

    fn tapped(&self, input: TappedDecoding) -> Tensor<3> {
        let TappedDecoding { target, memory } = input;
        self.layers
            .iter()
            .fold(target.tensor.clone(), |tensor, layer| {
                layer.tapped(TappedDecoding {
                    target: TappedSequence {
                        tensor,
                        ..target.clone()
                    },
                    memory: memory.clone(),
                })
            })
    }
}
