//! From the fields of `config.json` to the parts of a transformer.

use fisher_core::grouping::Fused;

use super::super::error::Result;
use super::super::fields::Fields;
use super::super::rope::{Rope, RopeDefaults};
use super::super::shape::{
    Activation, AttentionShape, EmbeddingShape, Gate, LayerShape, Longest, MlpShape, NormKind,
    NormShape, Order, Output, QkNorm, Shape,
};
use super::setting::{Number, Setting};
use super::windows::Windows;

/// What a family calls its fields, what it has where they are missing, and how its parts are put
/// together.
#[derive(Debug)]
pub(crate) struct Dialect {
    pub(super) vocabulary: Number,
    pub(super) width: Number,
    pub(super) heads: Number,
    pub(super) layers: Number,
    pub(super) inner: Inner,
    /// Tokens of the longest sequence.
    pub(super) longest: Setting<usize>,
    /// Key/value heads: none are as many as heads.
    pub(super) kv_heads: Setting<Option<usize>>,
    /// None is the width by the number of heads.
    pub(super) head_width: Setting<Option<usize>>,
    pub(super) norm: NormKind,
    pub(super) epsilon: Setting<f64>,
    pub(super) order: Order,
    /// Of Q, K and V, of O, and of the feed-forward part.
    pub(super) biases: [Setting<bool>; 3],
    pub(super) fused: Option<Fused>,
    /// Norms of queries and keys, and whether they are there.
    pub(super) qk_norm: Option<(QkNorm, Setting<bool>)>,
    pub(super) windows: Option<Windows>,
    pub(super) rotations: Rotations,
    pub(super) gate: Gate,
    pub(super) activation: Setting<Activation>,
    /// Whether the embedding is the output head.
    pub(super) tied: Setting<bool>,
    pub(super) head_bias: bool,
    pub(super) logit_scale: Setting<f64>,
    /// What is the family's alone.
    pub(super) then: fn(&mut Shape, &mut Longest, &Fields) -> Result<()>,
}

/// The width inside the feed-forward layers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Inner {
    Number(Number),
    /// Four times the width, unless a field, if there is one, says otherwise.
    FourWidths(Option<&'static str>),
}

/// Rotary positions.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rotations {
    None,
    /// The same in all layers.
    One(RopeDefaults),
    /// Those of layers that see all, and the base of those with a window.
    Two(RopeDefaults, f64),
}

impl Dialect {
    /// What a `config.json` means, and the longest sequence.
    pub(crate) fn read(&self, fields: &Fields) -> Result<(Shape, Longest)> {
        let flag = |of: Setting<bool>| of.read(|field, default| fields.flag(field, default));
        let real = |of: Setting<f64>| of.read(|field, default| fields.real(field, default));
        let width = self.width.read(fields)?;
        let heads = self.heads.read(fields)?;
        let [kv_heads, head_width] = self.heads(fields, width, heads)?;
        let number = |field: &str, default| fields.number(field, Some(default));
        let mut longest = Longest {
            tokens: self.longest.read(number)?,
            field: match self.longest {
                Setting::Is(_) => "none",
                Setting::Field(field, _) => field,
            },
        };
        let [qkv_bias, output_bias, mlp_bias] = self.biases.map(flag);
        let norm = NormShape {
            kind: self.norm,
            epsilon: real(self.epsilon)?,
        };
        let qk_norm = match self.qk_norm {
            Some((over, there)) => flag(there)?.then_some((over, norm)),
            None => None,
        };
        let activation = |field: &str, default| activation(fields, field, default);
        let mut shape = Shape {
            vocabulary: self.vocabulary.read(fields)?,
            width,
            inner: match self.inner {
                Inner::Number(of) => of.read(fields)?,
                Inner::FourWidths(Some(field)) => number(field, 4 * width)?,
                Inner::FourWidths(None) => 4 * width,
            },
            layers: vec![LayerShape::PLAIN; self.layers.read(fields)?],
            embedding: EmbeddingShape::PLAIN,
            norm,
            last_norm: true,
            order: self.order,
            residual: 1.0,
            attention: AttentionShape {
                heads,
                kv_heads,
                head_width,
                causal: true,
                fused: self.fused,
                qkv_bias: qkv_bias?,
                output_bias: output_bias?,
                scale: (head_width as f64).powf(-0.5),
                cap: None,
                clip: None,
                qk_norm,
                rotations: Vec::new(),
                alibi: None,
            },
            mlp: MlpShape {
                gate: self.gate,
                activation: self.activation.read(activation)?,
                bias: mlp_bias?,
            },
            experts: None,
            output: Output::NextToken {
                tied: flag(self.tied)?,
                bias: self.head_bias,
                scale: real(self.logit_scale)?,
                cap: None,
            },
        };
        self.positions(&mut shape, &longest, fields)?;
        (self.then)(&mut shape, &mut longest, fields)?;
        Ok((shape, longest))
    }

    /// How many key/value heads, and the width of a head.
    fn heads(&self, fields: &Fields, width: usize, heads: usize) -> Result<[usize; 2]> {
        let kv = |field: &str, default| kv_heads(fields, field, default, heads).map(Some);
        let kv_heads = self.kv_heads.read(kv)?.unwrap_or(heads);
        let maybe = |field: &str, default| Ok(fields.maybe_number(field)?.or(default));
        let head_width = match self.head_width.read(maybe)? {
            Some(width) => width,
            None if width.is_multiple_of(heads) => width / heads,
            None => {
                let divisor = format!("a divisor of {} = {width}", self.width.name(fields));
                return Err(fields.unsupported(self.heads.name(fields), &divisor));
            }
        };
        Ok([kv_heads, head_width])
    }

    /// What each layer sees, and how it turns.
    fn positions(&self, shape: &mut Shape, longest: &Longest, fields: &Fields) -> Result<()> {
        if let Some(windows) = self.windows {
            windows.put(&mut shape.layers, fields)?;
        }
        let width = shape.attention.head_width;
        match self.rotations {
            Rotations::None => {}
            Rotations::One(rope) => rotate(shape, rope.read(fields, width, longest.tokens)?),
            Rotations::Two(rope, local) => {
                let both = rope.read_both(local, fields, width, longest.tokens)?;
                shape.attention.rotations = both.into();
                for layer in &mut shape.layers {
                    layer.rotation = Some(usize::from(layer.window.is_some()));
                }
            }
        }
        Ok(())
    }
}

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

pub(super) fn activation(fields: &Fields, field: &str, default: Activation) -> Result<Activation> {
    fields.one_of(field, &ACTIVATIONS, default)
}

/// Key/value heads. Null is not missing: it is as many as heads.
pub(super) fn kv_heads(
    fields: &Fields,
    field: &str,
    default: Option<usize>,
    heads: usize,
) -> Result<usize> {
    let default = default.filter(|_| !fields.is_null(field));
    let number = fields.number(field, default.or(Some(heads)))?;
    if heads.is_multiple_of(number) {
        Ok(number)
    } else {
        Err(fields.unsupported(field, "a divisor of the number of heads"))
    }
}

/// Turn all layers alike.
pub(super) fn rotate(shape: &mut Shape, rope: Rope) {
    shape.attention.rotations = vec![rope];
    shape.layers.iter_mut().for_each(|l| l.rotation = Some(0));
}
