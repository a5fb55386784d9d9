//! What a transformer is made of. A family is a way to read these from `config.json`.

use super::rope::Rope;

/// The parts of a transformer and how they are put together.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Tokens.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward layers.
    pub inner: usize,
    /// Layers, by what differs between them.
    pub layers: Vec<LayerShape>,
    /// How tokens come in.
    pub embedding: EmbeddingShape,
    /// All norms but those of queries and keys.
    pub norm: NormShape,
    /// Whether there is a norm after the last layer.
    pub last_norm: bool,
    /// How a layer's norms, attention and feed-forward part follow each other.
    pub order: Order,
    /// What a layer adds to the residual stream is multiplied by this.
    pub residual: f64,
    /// Attention.
    pub attention: AttentionShape,
    /// The feed-forward part.
    pub mlp: MlpShape,
    /// What takes its place in layers of experts.
    pub experts: Option<ExpertsShape>,
    /// What comes out.
    pub output: Output,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShape {
    /// Positions that a query sees, its own among them; all when absent.
    pub window: Option<usize>,
    /// Which of the rotations turns its queries and keys.
    pub rotation: Option<usize>,
    /// Whether its feed-forward part is made of experts.
    pub experts: bool,
}

impl LayerShape {
    /// One that sees all positions and turns none.
    pub const PLAIN: Self = Self {
        window: None,
        rotation: None,
        experts: false,
    };
}

/// How tokens come in.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingShape {
    /// Width of the table, where it is projected to the model's.
    pub width: Option<usize>,
    /// Its rows are multiplied by this.
    pub scale: f64,
    /// Learnt positions: rows of their table, and the row of the first position.
    pub positions: Option<[usize; 2]>,
    /// Types of tokens; all tokens are of the first.
    pub types: usize,
    /// A norm behind it.
    pub norm: bool,
}

impl EmbeddingShape {
    /// A table and nothing else.
    pub const PLAIN: Self = Self {
        width: None,
        scale: 1.0,
        positions: None,
        types: 0,
        norm: false,
    };
}

/// A norm over the last axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormShape {
    /// Which.
    pub kind: NormKind,
    /// `ε`, added to the variance or mean square.
    pub epsilon: f64,
}

/// Kinds of norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square, times γ.
    Rms,
    /// Root mean square, times 1 + γ.
    RmsPlusOne,
    /// Mean and variance, times γ, plus β.
    Layer,
    /// Mean and variance, times γ.
    LayerWithoutBias,
    /// Mean and variance alone.
    LayerAlone,
}

/// How a layer's parts follow each other. A branch is attention or the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `x + f(norm(x))`, one branch after the other.
    Before,
    /// `n + f(n)` with `n = norm(x)`, one branch after the other.
    FromNorm,
    /// `x + norm(f(x))`, one branch after the other.
    After,
    /// `x + norm(f(norm(x)))`, one branch after the other.
    Both,
    /// `norm(x + f(x))`, one branch after the other.
    Sum,
    /// `x + attention(n) + mlp(n)` with `n = norm(x)`.
    Parallel,
    /// `x + attention(norm(x)) + mlp(other norm(x))`.
    ParallelTwoNorms,
}

/// Attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head, not always `width / heads`.
    pub head_width: usize,
    /// Whether a position sees only those before it.
    pub causal: bool,
    /// How Q, K and V lie in one matrix, where they do.
    pub fused: Option<fisher_core::grouping::Fused>,
    /// Biases of Q, K and V.
    pub qkv_bias: bool,
    /// Bias of O.
    pub output_bias: bool,
    /// Scores are multiplied by this.
    pub scale: f64,
    /// Scores are `cap · tanh(score / cap)`.
    pub cap: Option<f64>,
    /// Queries, keys and values are kept within `±clip`.
    pub clip: Option<f64>,
    /// Norms of queries and keys.
    pub qk_norm: Option<(QkNorm, NormShape)>,
    /// Rotary positions.
    pub rotations: Vec<Rope>,
    /// Scores that fall with distance.
    pub alibi: Option<Alibi>,
}

/// What a norm of queries or keys is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// All heads at once, before they are split.
    Whole,
    /// Each head, with the same weights.
    Each,
    /// Each head, with weights of its own, in one `[heads, width]`.
    Own,
    /// Each head, with weights of its own, one parameter a head.
    OwnApart,
}

/// Scores that fall with distance (Press et al. 2022, ALiBi).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alibi {
    /// Added to scaled scores.
    Scaled,
    /// Rounded to bfloat16 and added before scores are scaled.
    Rounded,
}

/// The feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpShape {
    /// `down(act(up(x)))`, or with a gate `down(act(gate(x)) · up(x))`.
    pub gate: Gate,
    /// `act`.
    pub activation: Activation,
    /// Biases.
    pub bias: bool,
}

/// A feed-forward part of several, of which each token uses a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsShape {
    /// How many there are.
    pub count: usize,
    /// How many a token uses.
    pub chosen: usize,
    /// Width inside each.
    pub inner: usize,
    /// Width inside one that all tokens use.
    pub shared: Option<usize>,
    /// Whether the weights of those that are chosen add up to 1.
    pub renormalized: bool,
}

/// A gate of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// None.
    None,
    /// A matrix of its own.
    Apart,
    /// In one matrix with `up`, the gate first.
    Fused,
}

/// Element-wise functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`
    Silu,
    /// `x Φ(x)`
    Gelu,
    /// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `tanh(x)`
    Tanh,
}

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Output {
    /// Logits of the next token.
    NextToken {
        /// Whether the embedding is also the output head.
        tied: bool,
        /// A bias of the head.
        bias: bool,
        /// Logits are multiplied by this.
        scale: f64,
        /// And then `cap · tanh(logit / cap)`.
        cap: Option<f64>,
    },
    /// Logits of classes, from the first position by a layer with an activation and one without.
    Classes {
        /// Classes.
        count: usize,
        /// The first layer's.
        activation: Activation,
    },
}

/// How long a sequence may be, and which field says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Longest {
    /// Tokens.
    pub tokens: usize,
    /// The field of `config.json`.
    pub field: &'static str,
}
