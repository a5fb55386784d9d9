//! A transformer from its parts.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::module::linear;
use burn::tensor::{DType, Device, Int, Tensor};
use fisher_train::batch::SampleLoss;
use fisher_train::losses::SampleLosses;

use super::attention::{Attention, Positions};
use super::cast::cast;
use super::experts::Experts;
use super::mlp::Mlp;
use super::norm::Norm;
use super::projection::Projection;
use super::sequences::Sequences;
use super::shape::{LayerShape, Order, Output, Shape};

/// A transformer: a decoder with its output head, or an encoder with a head for classes.
#[derive(Module, Debug)]
pub struct Transformer {
    embedding: Embedding,
    positions: Option<Embedding>,
    types: Option<Embedding>,
    embedding_norm: Option<Norm>,
    project_in: Option<Linear>,
    layers: Vec<Layer>,
    norm: Option<Norm>,
    project_out: Option<Linear>,
    /// Before the head for classes.
    pooler: Option<Linear>,
    /// Absent where the embedding is the output head.
    head: Option<Linear>,
    #[module(skip)]
    shape: Shape,
}

#[derive(Module, Debug)]
struct Layer {
    attention_norms: Norms,
    attention: Attention,
    mlp_norms: Norms,
    mlp: Option<Mlp>,
    /// In the place of it.
    experts: Option<Experts>,
    #[module(skip)]
    order: Order,
    residual: f64,
}

/// The norms around a branch.
#[derive(Module, Debug)]
struct Norms {
    before: Option<Norm>,
    after: Option<Norm>,
    /// Of the sum of the branch and what it was added to.
    sum: Option<Norm>,
}

impl Shape {
    /// A model whose weights are still to be loaded.
    pub fn init(&self, device: &Device) -> Transformer {
        let table = |rows, width| EmbeddingConfig::new(rows, width).init(device);
        let norm = || self.norm.init(self.width, device);
        let linear = |input, output, bias| {
            let config = LinearConfig::new(input, output).with_bias(bias);
            config.init(device)
        };
        let outside = self.embedding.width;
        let narrow = outside.unwrap_or(self.width);
        let (pooler, head) = match self.output {
            Output::Classes { count, .. } => (
                Some(linear(self.width, self.width, true)),
                Some(linear(self.width, count, true)),
            ),
            Output::NextToken { tied, bias, .. } => {
                let head = || linear(narrow, self.vocabulary, bias);
                (None, (!tied).then(head))
            }
        };
        let positions = self.embedding.positions;
        let types = Some(self.embedding.types).filter(|types| *types > 0);
        Transformer {
            embedding: table(self.vocabulary, narrow),
            positions: positions.map(|[rows, _]| table(rows, self.width)),
            types: types.map(|rows| table(rows, self.width)),
            embedding_norm: self.embedding.norm.then(norm),
            project_in: outside.map(|narrow| linear(narrow, self.width, false)),
            layers: self
                .layers
                .iter()
                .map(|of| self.layer(*of, device))
                .collect(),
            norm: self.last_norm.then(norm),
            project_out: outside.map(|narrow| linear(self.width, narrow, false)),
            pooler,
            head,
            shape: self.clone(),
        }
    }

    fn layer(&self, of: LayerShape, device: &Device) -> Layer {
        let norm = |wanted: bool| wanted.then(|| self.norm.init(self.width, device));
        let norms = |first: bool| Norms {
            before: norm(match self.order {
                Order::Before | Order::FromNorm | Order::Both | Order::ParallelTwoNorms => true,
                Order::Parallel => first,
                Order::After | Order::Sum => false,
            }),
            after: norm(matches!(self.order, Order::After | Order::Both)),
            sum: norm(self.order == Order::Sum),
        };
        let experts = self.experts.filter(|_| of.experts);
        Layer {
            attention_norms: norms(true),
            attention: self.attention.init(self.width, of, device),
            mlp_norms: norms(false),
            mlp: experts
                .is_none()
                .then(|| self.mlp.init(self.width, self.inner, device)),
            experts: experts.map(|of| of.init(self.width, self.mlp, device)),
            order: self.order,
            residual: self.residual,
        }
    }
}

impl Transformer {
    /// Logits of the next token at every position, or of classes at the first alone.
    ///
    /// # Shapes
    /// - tokens: `[samples, positions]`
    /// - lengths, of the sequences without their padding at the end: `[samples, 1]`
    /// - output: `[samples, positions, vocabulary]`, or `[samples, 1, classes]`
    pub fn forward(&self, tokens: Tensor<2, Int>, lengths: &Tensor<2, Int>) -> Tensor<3> {
        let shape = &self.shape;
        let [_, length] = tokens.dims();
        let positions = Positions::new(&shape.attention, &shape.layers, length, lengths);
        let mut x = self.embedded(tokens);
        for layer in &self.layers {
            x = layer.forward(x, &positions);
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(x);
        }
        if let Some(project) = &self.project_out {
            x = project.forward(x);
        }
        if let (Some(pooler), Output::Classes { activation, .. }) = (&self.pooler, shape.output) {
            x = activation.forward(pooler.forward(x.narrow(1, 0, 1)));
        }
        let logits = match &self.head {
            Some(head) => head.forward(x),
            None => linear(x, self.embedding.weight.val().transpose(), None),
        };
        let logits = cast(logits, DType::F32);
        match shape.output {
            Output::Classes { .. } => logits,
            Output::NextToken { scale, cap, .. } => {
                let logits = scaled(logits, scale);
                match cap {
                    Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
                    None => logits,
                }
            }
        }
    }

    fn embedded(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let shape = &self.shape.embedding;
        let [_, length] = tokens.dims();
        let device = tokens.device();
        let mut x = scaled(self.embedding.forward(tokens), shape.scale);
        if let Some(project) = &self.project_in {
            x = project.forward(x);
        }
        if let (Some(table), Some([_, first])) = (&self.positions, shape.positions) {
            let rows = first as i64..(first + length) as i64;
            x = x + table.forward(Tensor::<1, Int>::arange(rows, &device).unsqueeze());
        }
        if let Some(types) = &self.types {
            x = x + types.forward(Tensor::<2, Int>::zeros([1, length], &device));
        }
        match &self.embedding_norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }
}

impl Transformer {
    /// The projection of a layer at a path of the module, such as `layers.0.attention.query`.
    pub(super) fn projection(&mut self, path: &str) -> Option<&mut Projection> {
        let (layer, inside) = path.strip_prefix("layers.")?.split_once('.')?;
        let layer = self.layers.get_mut(layer.parse::<usize>().ok()?)?;
        match inside.split_once('.')? {
            ("attention", field) => layer.attention.projection(field),
            ("mlp", field) => layer.mlp.as_mut()?.projection(field),
            _ => None,
        }
    }
}

impl Layer {
    fn forward(&self, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let (start, normal) = self.attention_norms.begin(&x, self.order);
        let attended = self.attention.forward(normal.clone(), positions);
        let attended = scaled(self.attention_norms.end(attended), self.residual);
        let parallel = matches!(self.order, Order::Parallel | Order::ParallelTwoNorms);
        let (x, input) = if parallel {
            let input = match &self.mlp_norms.before {
                Some(norm) => norm.forward(x.clone()),
                None => normal,
            };
            (x + attended, input)
        } else {
            let x = self.attention_norms.sum(start + attended);
            self.mlp_norms.begin(&x, self.order)
        };
        let inside = match (&self.mlp, &self.experts) {
            (Some(mlp), _) => mlp.forward(input),
            (_, Some(experts)) => experts.forward(input),
            _ => input,
        };
        let inside = scaled(self.mlp_norms.end(inside), self.residual);
        self.mlp_norms.sum(x + inside)
    }
}

impl Norms {
    /// What a branch is added to, and what it is of.
    fn begin(&self, x: &Tensor<3>, order: Order) -> (Tensor<3>, Tensor<3>) {
        let normal = match &self.before {
            Some(norm) => norm.forward(x.clone()),
            None => x.clone(),
        };
        match order {
            Order::FromNorm => (normal.clone(), normal),
            _ => (x.clone(), normal),
        }
    }

    /// A branch as it is added.
    fn end(&self, branch: Tensor<3>) -> Tensor<3> {
        match &self.after {
            Some(norm) => norm.forward(branch),
            None => branch,
        }
    }

    fn sum(&self, sum: Tensor<3>) -> Tensor<3> {
        match &self.sum {
            Some(norm) => norm.forward(sum),
            None => sum,
        }
    }
}

fn scaled(x: Tensor<3>, by: f64) -> Tensor<3> {
    if by == 1.0 { x } else { x.mul_scalar(by) }
}

impl SampleLoss for Transformer {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let logits = self.forward(batch.tokens.clone(), &batch.lengths);
        match &batch.classes {
            Some(classes) => SampleLosses::classification(logits.squeeze_dim(1), classes.clone()),
            None => SampleLosses::next_token(logits, batch.labels.clone()),
        }
    }
}
