//! Attention with grouped queries, and what positions mean to it.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use fisher_core::grouping::Fused;

use super::cast::cast;
use super::norm::HeadNorm;
use super::projection::Projection;
use super::rope::Rope;
use super::shape::{Alibi, AttentionShape, LayerShape};

/// A score that no softmax gives any weight; finite, since not every device keeps infinities.
const NEVER: f64 = -1e30;

/// Attention of one layer.
#[derive(Module, Debug)]
pub struct Attention {
    query: Option<Projection>,
    key: Option<Projection>,
    value: Option<Projection>,
    /// Q, K and V in one matrix.
    fused: Option<Projection>,
    output: Projection,
    query_norm: Option<HeadNorm>,
    key_norm: Option<HeadNorm>,
    #[module(skip)]
    shape: AttentionShape,
    #[module(skip)]
    layer: LayerShape,
}

impl AttentionShape {
    /// Attention of a model of this width whose weights are still to be loaded.
    pub fn init(&self, width: usize, layer: LayerShape, device: &Device) -> Attention {
        let linear = |input, output, bias| Projection::new([input, output], bias, device);
        let (queries, keys) = (
            self.heads * self.head_width,
            self.kv_heads * self.head_width,
        );
        let apart = |output| {
            let matrix = || linear(width, output, self.qkv_bias);
            self.fused.is_none().then(matrix)
        };
        let norm = |heads| {
            let of = self.qk_norm.as_ref();
            of.map(|(kind, norm)| kind.init(*norm, heads, self.head_width, device))
        };
        let fused = || linear(width, queries + 2 * keys, self.qkv_bias);
        Attention {
            query: apart(queries),
            key: apart(keys),
            value: apart(keys),
            fused: self.fused.is_some().then(fused),
            output: linear(queries, width, self.output_bias),
            query_norm: norm(self.heads),
            key_norm: norm(self.kv_heads),
            shape: self.clone(),
            layer,
        }
    }
}

impl Attention {
    /// A projection by its field.
    pub(super) fn projection(&mut self, field: &str) -> Option<&mut Projection> {
        match field {
            "query" => self.query.as_mut(),
            "key" => self.key.as_mut(),
            "value" => self.value.as_mut(),
            "fused" => self.fused.as_mut(),
            "output" => Some(&mut self.output),
            _ => None,
        }
    }

    /// `[samples, positions, width]` to the same.
    pub fn forward(&self, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let shape = &self.shape;
        let [q, k, v] = self.projected(x).map(|x| match shape.clip {
            Some(clip) => x.clamp(-clip, clip),
            None => x,
        });
        let q = heads(q, shape.heads, self.query_norm.as_ref());
        let k = heads(k, shape.kv_heads, self.key_norm.as_ref());
        let v = heads(v, shape.kv_heads, None);
        let rotation = self.layer.rotation;
        let [q, k] = match rotation.and_then(|of| positions.rotations.get(of)) {
            Some(rotation) => [rotation.turn(q), rotation.turn(k)],
            None => [q, k],
        };
        let context = self.attend(q, k, v, positions);
        self.output.forward(context)
    }

    /// Q, K and V, `[samples, positions, heads·width]`.
    fn projected(&self, x: Tensor<3>) -> [Tensor<3>; 3] {
        let AttentionShape {
            heads,
            kv_heads,
            head_width,
            ..
        } = self.shape;
        if let (Some(query), Some(key), Some(value)) = (&self.query, &self.key, &self.value) {
            return [
                query.forward(x.clone()),
                key.forward(x.clone()),
                value.forward(x),
            ];
        }
        let both = match &self.fused {
            Some(fused) => fused.forward(x),
            None => x,
        };
        let [samples, positions, _] = both.dims();
        // Runs of heads: all at once, or those of a key/value head after those of another.
        let runs = match self.shape.fused {
            Some(Fused::Interleaved) => kv_heads,
            _ => 1,
        };
        let [queries, keys] = [heads, kv_heads].map(|heads| heads / runs * head_width);
        let both: Tensor<4> = both.reshape([samples, positions, runs, queries + 2 * keys]);
        let part = |start, length| {
            let part = both.clone().narrow(3, start, length);
            part.reshape([samples, positions, runs * length])
        };
        [
            part(0, queries),
            part(queries, keys),
            part(queries + keys, keys),
        ]
    }

    /// `softmax(q kᵀ · scale) v`. Query head `h` reads key/value head `⌊h / (H / H_kv)⌋`.
    ///
    /// # Shapes
    /// - q: `[samples, H, positions, d]`
    /// - k, v: `[samples, H_kv, positions, d]`
    /// - output: `[samples, positions, H·d]`
    fn attend(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, positions: &Positions) -> Tensor<3> {
        let [samples, heads, length, width] = q.dims();
        let kv_heads = k.dims()[1];
        // The queries of one kv head as more rows of it: keys and values are not repeated.
        let rows = [samples, kv_heads, heads / kv_heads * length];
        let rows = |columns| [rows[0], rows[1], rows[2], columns];
        let dtype = q.dtype();
        let scores = q.reshape(rows(width)).matmul(k.transpose());
        let scores = cast(scores, DType::F32);
        let mut scores = scores
            .reshape([samples, heads, length, length])
            .mul_scalar(self.shape.scale);
        if let Some(cap) = self.shape.cap {
            scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
        }
        if let Some(alibi) = &positions.alibi {
            scores = scores + alibi.clone();
        }
        if let Some(mask) = positions.masks.get(&self.layer.window) {
            scores = scores.mask_fill(mask.clone(), NEVER);
        }
        cast(softmax(scores, 3), dtype)
            .reshape(rows(length))
            .matmul(v)
            .reshape([samples, heads, length, width])
            .swap_dims(1, 2)
            .reshape([samples, length, heads * width])
    }
}

/// `[samples, positions, heads·d]` to `[samples, heads, positions, d]`, with norms on the way.
fn heads(x: Tensor<3>, heads: usize, norm: Option<&HeadNorm>) -> Tensor<4> {
    let x = match norm {
        Some(norm) => norm.before(x),
        None => x,
    };
    let [samples, positions, width] = x.dims();
    let x = x.reshape([samples, positions, heads, width / heads]);
    let x = x.swap_dims(1, 2);
    match norm {
        Some(norm) => norm.after(x),
        None => x,
    }
}

/// What positions mean to the attention of a batch, the same for all layers.
#[derive(Debug)]
pub struct Positions {
    rotations: Vec<Rotation>,
    /// By window: true where a query does not see a key.
    masks: BTreeMap<Option<usize>, Tensor<4, Bool>>,
    alibi: Option<Tensor<4>>,
}

impl Positions {
    /// Of a batch of sequences of `lengths`, `[samples, 1]`, padded to `positions`.
    pub fn new(
        shape: &AttentionShape,
        layers: &[LayerShape],
        positions: usize,
        lengths: &Tensor<2, Int>,
    ) -> Self {
        let device = lengths.device().without_autodiff();
        let rotations = shape.rotations.iter();
        let rotations = rotations.map(|rope| Rotation::new(rope, positions, lengths, &device));
        let windows = layers.iter().map(|layer| layer.window);
        let mask = |window| {
            let mask = if shape.causal {
                causal(positions, window, &device)
            } else {
                padding(positions, lengths, &device)
            };
            (window, mask)
        };
        Self {
            rotations: rotations.collect(),
            masks: windows.map(mask).collect(),
            alibi: shape
                .alibi
                .map(|alibi| alibi.scores(shape, positions, &device)),
        }
    }
}

/// A position sees itself and those before it, in a window the last so many. Padding at the end needs
/// no mask: nothing before it looks there.
fn causal(positions: usize, window: Option<usize>, device: &Device) -> Tensor<4, Bool> {
    let window = window.unwrap_or(positions);
    let hidden = |k: usize| {
        let (query, key) = (k / positions, k % positions);
        key > query || key + window <= query
    };
    let hidden: Vec<bool> = (0..positions * positions).map(hidden).collect();
    Tensor::from_data(
        TensorData::new(hidden, [1, 1, positions, positions]),
        device,
    )
}

/// All positions see all others but padding.
fn padding(positions: usize, lengths: &Tensor<2, Int>, device: &Device) -> Tensor<4, Bool> {
    let keys = Tensor::<1, Int>::arange(0..positions as i64, device).unsqueeze::<2>();
    let hidden = keys.greater_equal(lengths.clone());
    hidden.unsqueeze_dims(&[1, 1])
}

impl Alibi {
    /// What is added to scaled scores, `[1, heads, 1, positions]`: a slope times the key's position. The
    /// slopes of heads are those of the next smaller power of two, then every other one of twice it.
    fn scores(self, shape: &AttentionShape, positions: usize, device: &Device) -> Tensor<4> {
        let heads = shape.heads;
        let power = 1 << heads.ilog2();
        let slope = |head: usize| {
            let steps = |of: usize| 2f64.powf(-8.0 / of as f64);
            match head.checked_sub(power) {
                None => steps(power).powi(head as i32 + 1),
                Some(more) => steps(2 * power).powi(2 * more as i32 + 1),
            }
        };
        let score = |k: usize| {
            let (slope, position) = (slope(k / positions), (k % positions) as f64);
            match self {
                Self::Scaled => slope * position,
                Self::Rounded => rounded(rounded(slope) * position) * shape.scale,
            }
        };
        let scores: Vec<f32> = (0..heads * positions).map(|k| score(k) as f32).collect();
        Tensor::from_data(TensorData::new(scores, [1, heads, 1, positions]), device)
    }
}

/// To bfloat16 and back: 8 bits of mantissa, ties to even.
fn rounded(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    let even = 0x7fff + (bits >> 16 & 1);
    f64::from(f32::from_bits((bits + even) & 0xffff_0000))
}

/// Rotary positions of a batch.
#[derive(Debug, Clone)]
struct Rotation {
    /// `[1 or samples, 1, positions, pairs]`
    cos: Tensor<4>,
    sin: Tensor<4>,
    neighbours: bool,
}

impl Rotation {
    fn new(rope: &Rope, positions: usize, lengths: &Tensor<2, Int>, device: &Device) -> Self {
        let pairs = rope.frequencies.len();
        let table = |frequencies: &[f64], of: fn(f64) -> f64| {
            let value =
                |k: usize| (rope.factor * of((k / pairs) as f64 * frequencies[k % pairs])) as f32;
            let values: Vec<f32> = (0..positions * pairs).map(value).collect();
            let data = TensorData::new(values, [1, 1, positions, pairs]);
            Tensor::<4>::from_data(data, device)
        };
        let of = |function: fn(f64) -> f64| {
            let short = table(&rope.frequencies, function);
            match &rope.beyond {
                Some((trained, frequencies)) if *trained < positions => {
                    let long = lengths.clone().greater_elem(*trained as i64).float();
                    let long: Tensor<4> = long.unsqueeze_dims(&[2, 3]);
                    short.clone() + long * (table(frequencies, function) - short)
                }
                _ => short,
            }
        };
        Self {
            cos: of(f64::cos),
            sin: of(f64::sin),
            neighbours: rope.neighbours,
        }
    }

    /// Turn queries or keys, `[samples, heads, positions, d]`; what is beyond the pairs stays.
    fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        let dtype = x.dtype();
        let x = cast(x, DType::F32);
        let [samples, heads, positions, width] = x.dims();
        let pairs = self.cos.dims()[3];
        let turned = x.clone().narrow(3, 0, 2 * pairs);
        let turned = if self.neighbours {
            let shape = [samples, heads, positions, pairs];
            let apart: Tensor<5> = turned.reshape([samples, heads, positions, pairs, 2]);
            let [first, second] = [0, 1].map(|at| apart.clone().narrow(4, at, 1).reshape(shape));
            let turned = self.both(first, second).map(|x| x.unsqueeze_dim::<5>(4));
            let turned = Tensor::cat(turned.into(), 4);
            turned.reshape([samples, heads, positions, 2 * pairs])
        } else {
            let [first, second] = [0, pairs].map(|at| turned.clone().narrow(3, at, pairs));
            Tensor::cat(self.both(first, second).into(), 3)
        };
        let turned = if 2 * pairs == width {
            turned
        } else {
            let rest = x.narrow(3, 2 * pairs, width - 2 * pairs);
            Tensor::cat(vec![turned, rest], 3)
        };
        cast(turned, dtype)
    }

    fn both(&self, first: Tensor<4>, second: Tensor<4>) -> [Tensor<4>; 2] {
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        [
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ]
    }
}
