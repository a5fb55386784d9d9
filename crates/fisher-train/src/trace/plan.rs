//! How the per-sample gradients of a parameter follow from a trace: where its gradient sums over the samples,
//! the sum is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::backend::Shape;
use burn::backend::capture::TensorId;
use burn::backend::ir::{
    BaseOperationIr, FloatOperationIr, MatmulOpIr, ModuleOperationIr, NumericOperationIr,
    OperationIr, ScalarIr, SwapDimsOpIr, TensorIr,
};
use burn::tensor::ops::ConvOptions;

use super::samples::{Places, Samples, adds, convolution, name};

/// What gives the gradients of one parameter.
#[derive(Debug, Clone)]
pub(crate) enum Recipe {
    /// The sum over all its uses.
    Uses(Vec<Use>),
    /// What makes the gradient of the batch, done for each sample alone.
    Tail(Tail),
}

/// A use of a parameter whose gradient is a sum over samples.
#[derive(Debug, Clone)]
pub(crate) enum Use {
    /// `g_i = L_iᵀ R_i`
    Product { left: Side, right: Side },
    /// Row `ids_it` of a table got `δ_it`.
    Lookup { ids: TensorIr, delta: TensorIr },
    /// A convolution's weight: products of the patches of `x` that each output saw with its `δ`.
    Patches(Patches),
    /// Sums over the axes `over`, the samples of `axis` apart.
    Sum {
        terms: TensorIr,
        axis: usize,
        over: Vec<usize>,
    },
}

/// A convolution over a line or a plane, without groups.
#[derive(Debug, Clone)]
pub(crate) struct Patches {
    /// `[samples, channels, ..]`
    pub(crate) x: TensorIr,
    /// `[samples, outputs, ..]`
    pub(crate) delta: TensorIr,
    /// A line is a plane of width one.
    pub(crate) kernel: [usize; 2],
    pub(crate) options: ConvOptions<2>,
}

impl Patches {
    /// `None` for other convolutions.
    fn of(op: &ModuleOperationIr) -> Option<Self> {
        match op {
            ModuleOperationIr::Conv1dWeightBackward(op) => Some(Self {
                x: op.x.clone(),
                delta: op.output_grad.clone(),
                kernel: [op.weight.shape[2], 1],
                options: ConvOptions::new_with_padding(
                    [op.options.stride[0], 1],
                    [op.options.padding[0], (0, 0)],
                    [op.options.dilation[0], 1],
                    op.options.groups,
                ),
            }),
            ModuleOperationIr::Conv2dWeightBackward(op) => Some(Self {
                x: op.x.clone(),
                delta: op.output_grad.clone(),
                kernel: [op.weight.shape[2], op.weight.shape[3]],
                options: op.options.clone().into(),
            }),
            _ => None,
        }
        .filter(|patches| patches.options.groups == 1 && patches.are_smaller())
    }

    /// Than the gradients themselves.
    fn are_smaller(&self) -> bool {
        let positions: usize = self.delta.shape.iter().skip(2).product();
        let outputs = self.delta.shape[1];
        let inputs = self.x.shape[1] * self.kernel[0] * self.kernel[1];
        positions * (inputs + outputs) < inputs * outputs
    }
}

/// A side of a product.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) tensor: TensorIr,
    /// Where samples are. All axes but the last (or, `swapped`, the last but one) are positions.
    pub(crate) axis: usize,
    pub(crate) swapped: bool,
}

impl Side {
    /// The axis that is no position.
    pub(crate) fn column(&self) -> usize {
        let rank = self.tensor.shape.num_dims();
        if self.swapped { rank - 2 } else { rank - 1 }
    }

    pub(crate) fn columns(&self) -> usize {
        self.tensor.shape[self.column()]
    }
}

/// Operations from a sum over the samples to a parameter's gradient, linear in that sum.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    /// In order.
    pub(crate) operations: Vec<usize>,
    /// Tensors to cut to one sample, along this axis.
    pub(crate) cuts: BTreeMap<TensorId, (TensorIr, usize)>,
    /// Tensors that every sample shares.
    pub(crate) shared: BTreeMap<TensorId, TensorIr>,
    pub(crate) gradient: TensorIr,
}

impl Recipe {
    /// Whether it gives the gradients of a parameter of these sides as factors, without one of them.
    pub(crate) fn is_factored(&self, sides: [usize; 2], matrix: bool) -> bool {
        let Self::Uses(uses) = self else { return false };
        uses.iter().all(|part| match part {
            Use::Product { left, right } => matrix && [left.columns(), right.columns()] == sides,
            Use::Lookup { .. } | Use::Patches(_) => true,
            Use::Sum { .. } => false,
        })
    }

    /// The tensors that have to be computed for it.
    pub(crate) fn tensors(&self) -> Vec<&TensorIr> {
        match self {
            Self::Uses(uses) => uses.iter().flat_map(Use::tensors).collect(),
            Self::Tail(tail) => {
                let cuts = tail.cuts.values().map(|(tensor, _)| tensor);
                cuts.chain(tail.shared.values()).collect()
            }
        }
    }
}

impl Use {
    fn tensors(&self) -> Vec<&TensorIr> {
        match self {
            Self::Product { left, right } => vec![&left.tensor, &right.tensor],
            Self::Lookup { ids, delta } => vec![ids, delta],
            Self::Patches(patches) => vec![&patches.x, &patches.delta],
            Self::Sum { terms, .. } => vec![terms],
        }
    }
}

/// Finds recipes in the operations of a trace.
pub(crate) struct Planner<'a> {
    operations: &'a [OperationIr],
    places: &'a Places,
    producers: HashMap<TensorId, usize>,
}

type Found<T> = Result<T, String>;

impl<'a> Planner<'a> {
    pub(crate) fn new(operations: &'a [OperationIr], places: &'a Places) -> Self {
        let mut producers = HashMap::new();
        for (index, operation) in operations.iter().enumerate() {
            // What is initialized has values, and no operation that makes it.
            if !matches!(operation, OperationIr::Init(_)) {
                producers.extend(operation.outputs().map(|output| (output.id, index)));
            }
        }
        Self {
            operations,
            places,
            producers,
        }
    }

    /// How to get the per-sample gradients whose sum is `gradient`; or why there is no way.
    pub(crate) fn recipe(&self, gradient: TensorId) -> Found<Recipe> {
        let mut uses = Vec::new();
        if self.uses(gradient, false, &mut uses).is_some() {
            return Ok(Recipe::Uses(uses));
        }
        self.tail(gradient).map(Recipe::Tail)
    }

    fn producer(&self, id: TensorId) -> Option<&'a OperationIr> {
        self.producers.get(&id).map(|&at| &self.operations[at])
    }

    fn axis(&self, tensor: &TensorIr) -> Option<usize> {
        match self.places.get(tensor) {
            Samples::Axis(axis) => Some(axis),
            _ => None,
        }
    }

    /// Whether two tensors that are summed together over these axes have the samples there. One of them may be the same
    /// for all samples, as a first state of zeros is.
    fn meet(
        &self,
        (left, at_left): (&TensorIr, usize),
        (right, at_right): (&TensorIr, usize),
    ) -> bool {
        match (self.places.get(left), self.places.get(right)) {
            (Samples::Axis(l), Samples::Axis(r)) => l == at_left && r == at_right,
            (Samples::None, Samples::Axis(r)) => r == at_right,
            (Samples::Axis(l), Samples::None) => l == at_left,
            _ => false,
        }
    }

    /// The uses that a gradient is the sum of, if it is nothing but their sum.
    fn uses(&self, id: TensorId, transposed: bool, uses: &mut Vec<Use>) -> Option<()> {
        match self.producer(id)? {
            OperationIr::NumericFloat(_, NumericOperationIr::Add(op)) => {
                self.uses(op.lhs.id, transposed, uses)?;
                self.uses(op.rhs.id, transposed, uses)
            }
            OperationIr::BaseFloat(BaseOperationIr::Reshape(op))
                if same_but_ones(&op.input.shape, &op.out.shape) =>
            {
                self.uses(op.input.id, transposed, uses)
            }
            OperationIr::BaseFloat(BaseOperationIr::SwapDims(op))
                if swaps_last_two(op) && leading_ones(&op.input.shape) =>
            {
                self.uses(op.input.id, !transposed, uses)
            }
            OperationIr::Module(op) => self.of_module(op, transposed, uses),
            OperationIr::Float(_, FloatOperationIr::Matmul(op))
                if leading_ones(&op.lhs.shape) && leading_ones(&op.rhs.shape) =>
            {
                let rank = op.out.shape.num_dims();
                let apart = self.meet((&op.lhs, rank - 1), (&op.rhs, rank - 2));
                apart.then(|| uses.push(self.product(op, rank - 2, transposed)))
            }
            OperationIr::NumericFloat(_, NumericOperationIr::SumDim(op)) => {
                self.sum(&op.input, &[op.axis], transposed, uses)
            }
            OperationIr::NumericFloat(_, NumericOperationIr::SumDims(op)) => {
                self.sum(&op.input, &op.axes, transposed, uses)
            }
            _ => None,
        }
    }

    fn of_module(
        &self,
        op: &ModuleOperationIr,
        transposed: bool,
        uses: &mut Vec<Use>,
    ) -> Option<()> {
        match op {
            ModuleOperationIr::LinearWeightBackward(op) => {
                let axis = self.axis(&op.output_grad)?;
                let fits = self.meet((&op.x, axis), (&op.output_grad, axis))
                    && axis + 1 < op.x.shape.num_dims();
                let side = |tensor: &TensorIr| Side {
                    tensor: tensor.clone(),
                    axis,
                    swapped: false,
                };
                let sides = (side(&op.x), side(&op.output_grad));
                fits.then(|| uses.push(product(sides, transposed)))
            }
            ModuleOperationIr::LinearBiasBackward(op) if !transposed => {
                let rank = op.output_grad.shape.num_dims();
                self.terms(&op.output_grad, (0..rank - 1).collect(), uses)
            }
            ModuleOperationIr::EmbeddingBackward(op) if !transposed => {
                let delta = self.lookups(&op.out_grad)?;
                let shared = self.places.get(&op.indices) == Samples::None;
                let fits = op.indices.shape.num_dims() == 2
                    && delta.shape.num_dims() == 3
                    && self.axis(&delta)? == 0
                    && (shared || self.axis(&op.indices)? == 0);
                let ids = op.indices.clone();
                fits.then(|| uses.push(Use::Lookup { ids, delta }))
            }
            op if !transposed => match convolution(op)? {
                (None, gradient) => {
                    let rank = gradient.shape.num_dims();
                    let over = (0..rank).filter(|&axis| axis != 1).collect();
                    self.terms(gradient, over, uses)
                }
                (Some(x), gradient) => {
                    let first = self.axis(x)? == 0 && self.axis(gradient)? == 0;
                    let patches = Patches::of(op).filter(|_| first)?;
                    uses.push(Use::Patches(patches));
                    Some(())
                }
            },
            _ => None,
        }
    }

    /// The gradient of what was looked up, with its samples: behind rows that are looked up once for all samples,
    /// such as positions, they have been summed.
    fn lookups(&self, gradient: &TensorIr) -> Option<TensorIr> {
        if self.axis(gradient).is_some() {
            return Some(gradient.clone());
        }
        match self.producer(gradient.id)? {
            OperationIr::NumericFloat(_, NumericOperationIr::SumDims(op)) if op.axes == [0] => {
                Some(op.input.clone())
            }
            OperationIr::NumericFloat(_, NumericOperationIr::SumDim(op)) if op.axis == 0 => {
                Some(op.input.clone())
            }
            _ => None,
        }
    }

    /// A sum over the axes `over`, samples among them.
    fn sum(
        &self,
        input: &TensorIr,
        over: &[usize],
        transposed: bool,
        uses: &mut Vec<Use>,
    ) -> Option<()> {
        let axis = self.axis(input)?;
        let leading = input.shape.num_dims().checked_sub(2)?;
        let all_leading = over.len() == leading && over.iter().all(|&axis| axis < leading);
        if let (true, Some(OperationIr::Float(_, FloatOperationIr::Matmul(op)))) =
            (all_leading, self.producer(input.id))
        {
            let outer =
                |shape: &Shape| -> Vec<usize> { shape.iter().take(leading).copied().collect() };
            let alike = outer(&op.lhs.shape) == outer(&op.rhs.shape);
            if alike && self.meet((&op.lhs, axis), (&op.rhs, axis)) {
                uses.push(self.product(op, axis, transposed));
                return Some(());
            }
        }
        (!transposed).then_some(())?;
        self.terms(input, over.to_vec(), uses)
    }

    fn terms(&self, terms: &TensorIr, over: Vec<usize>, uses: &mut Vec<Use>) -> Option<()> {
        let axis = self.axis(terms)?;
        let summed = over.contains(&axis);
        let terms = terms.clone();
        summed.then(|| uses.push(Use::Sum { terms, axis, over }))
    }

    /// `L R`, which is a product of `Lᵀ` and `R` over their positions.
    fn product(&self, op: &MatmulOpIr, axis: usize, transposed: bool) -> Use {
        let rank = op.lhs.shape.num_dims();
        let left = match self.producer(op.lhs.id) {
            // Most of the time, it has just been transposed.
            Some(OperationIr::BaseFloat(BaseOperationIr::SwapDims(swap)))
                if swaps_last_two(swap) =>
            {
                Side {
                    tensor: swap.input.clone(),
                    axis,
                    swapped: false,
                }
            }
            _ => Side {
                tensor: op.lhs.clone(),
                axis: if axis + 2 == rank { rank - 1 } else { axis },
                swapped: true,
            },
        };
        let right = Side {
            tensor: op.rhs.clone(),
            axis,
            swapped: false,
        };
        product((left, right), transposed)
    }

    /// All operations between sums over the samples and a gradient that is linear in these sums.
    fn tail(&self, gradient: TensorId) -> Found<Tail> {
        let mut search = Search {
            planner: self,
            operations: BTreeSet::new(),
            cuts: BTreeMap::new(),
            shared: BTreeMap::new(),
        };
        search.visit(gradient)?;
        let Search {
            operations,
            cuts,
            shared,
            ..
        } = search;
        if cuts.keys().any(|id| shared.contains_key(id)) {
            return Err("a tensor has the samples and is shared by them".into());
        }
        let producer = self.producer(gradient).into_iter();
        let made = producer.flat_map(OperationIr::outputs);
        let gradient = made.into_iter().find(|output| output.id == gradient);
        Ok(Tail {
            operations: operations.into_iter().collect(),
            cuts,
            shared,
            gradient: gradient.ok_or("no operation makes it")?.clone(),
        })
    }

    /// Whether a tensor is zeros, to which gradients are assigned.
    fn is_zeros(&self, id: TensorId) -> bool {
        match self.producer(id) {
            Some(OperationIr::BaseFloat(BaseOperationIr::Zeros(_))) => true,
            Some(OperationIr::NumericFloat(_, NumericOperationIr::Full(op))) => is_zero(&op.value),
            _ => false,
        }
    }
}

/// A walk from a gradient back to the sums it is made of.
struct Search<'a> {
    planner: &'a Planner<'a>,
    operations: BTreeSet<usize>,
    cuts: BTreeMap<TensorId, (TensorIr, usize)>,
    shared: BTreeMap<TensorId, TensorIr>,
}

impl Search<'_> {
    fn visit(&mut self, id: TensorId) -> Found<()> {
        let at = self.planner.producers.get(&id);
        let at = *at.ok_or("it does not come from the samples")?;
        if !self.operations.insert(at) {
            return Ok(());
        }
        let operation = &self.planner.operations[at];
        let places = self.planner.places;
        let summed = operation
            .outputs()
            .all(|t| places.get(t) == Samples::Summed);
        if !summed {
            let lost = places.lost().unwrap_or("an operation");
            let seen = name(operation);
            return Err(format!(
                "samples are lost sight of at {lost}, seen from {seen}"
            ));
        }
        let inputs: Vec<&TensorIr> = operation.inputs().collect();
        let (sums, others): (Vec<&TensorIr>, Vec<&TensorIr>) = inputs
            .into_iter()
            .partition(|input| places.get(input) == Samples::Summed);
        let mut own_cuts = BTreeSet::new();
        if sums.is_empty() {
            let cuts = contracted(operation, |id| self.planner.is_zeros(id));
            let cuts = cuts.ok_or_else(|| format!("stopped at {}", name(operation)))?;
            for (tensor, axis) in cuts {
                // What is the same for all samples, but sample by sample, is cut with the others.
                let own = match places.get(tensor) {
                    Samples::None => axis,
                    Samples::Axis(own) if axis.is_none_or(|axis| axis == own) => Some(own),
                    _ => None,
                };
                let own = own.ok_or_else(|| format!("stopped at {}", name(operation)))?;
                own_cuts.insert(tensor.id);
                let before = self.cuts.insert(tensor.id, (tensor.clone(), own));
                if before.is_some_and(|(_, axis)| axis != own) {
                    return Err(format!("stopped at {}", name(operation)));
                }
            }
        } else if !self.is_linear(operation, &sums, &others) {
            return Err(format!(
                "stopped at {}, which is not linear",
                name(operation)
            ));
        }
        for input in others {
            if !own_cuts.contains(&input.id) {
                self.shared.insert(input.id, input.clone());
            }
        }
        sums.into_iter().try_for_each(|input| self.visit(input.id))
    }

    /// Whether an operation is linear in the inputs that are sums over the samples, all together.
    fn is_linear(&self, operation: &OperationIr, sums: &[&TensorIr], others: &[&TensorIr]) -> bool {
        use BaseOperationIr as Base;
        use NumericOperationIr as Numeric;
        let zeros = |tensor: &TensorIr| self.planner.is_zeros(tensor.id);
        let is_sum = |tensor: &TensorIr| sums.iter().any(|sum| sum.id == tensor.id);
        let sum_or_zeros = |tensor: &TensorIr| is_sum(tensor) || zeros(tensor);
        match operation {
            OperationIr::BaseFloat(op) => match op {
                Base::Reshape(_)
                | Base::SwapDims(_)
                | Base::Permute(_)
                | Base::Flip(_)
                | Base::Expand(_)
                | Base::Slice(_)
                | Base::RepeatDim(_)
                | Base::Cast(_)
                | Base::Gather(_)
                | Base::Select(_) => true,
                Base::SliceAssign(op) => sum_or_zeros(&op.tensor) && sum_or_zeros(&op.value),
                Base::SelectAssign(op) => {
                    adds(&op.update) && sum_or_zeros(&op.tensor) && sum_or_zeros(&op.value)
                }
                Base::Scatter(op) => {
                    adds(&op.update) && sum_or_zeros(&op.tensor) && sum_or_zeros(&op.value)
                }
                Base::Cat(_) => others.iter().all(|tensor| zeros(tensor)),
                Base::MaskWhere(op) => sum_or_zeros(&op.tensor) && sum_or_zeros(&op.value),
                Base::MaskFill(op) => is_zero(&op.value),
                _ => false,
            },
            OperationIr::NumericFloat(_, op) => match op {
                Numeric::Add(_) | Numeric::Sub(_) => others.iter().all(|tensor| zeros(tensor)),
                Numeric::Mul(_) => sums.len() == 1,
                Numeric::Div(op) => is_sum(&op.lhs) && !is_sum(&op.rhs),
                Numeric::MulScalar(_)
                | Numeric::DivScalar(_)
                | Numeric::Neg(_)
                | Numeric::Sum(_)
                | Numeric::SumDim(_)
                | Numeric::SumDims(_)
                | Numeric::Mean(_)
                | Numeric::MeanDim(_) => true,
                _ => false,
            },
            OperationIr::Float(_, FloatOperationIr::Matmul(_)) => sums.len() == 1,
            OperationIr::Module(ModuleOperationIr::EmbeddingBackward(op)) => {
                is_sum(&op.out_grad) && !is_sum(&op.indices)
            }
            _ => false,
        }
    }
}

/// The inputs that an operation sums over the samples of, and the axis that it sums over; `None` for a sum
/// over whichever axis has them.
#[allow(clippy::type_complexity)]
fn contracted(
    operation: &OperationIr,
    is_zeros: impl Fn(TensorId) -> bool,
) -> Option<Vec<(&TensorIr, Option<usize>)>> {
    Some(match operation {
        OperationIr::NumericFloat(_, op) => match op {
            NumericOperationIr::SumDim(op) => vec![(&op.input, None)],
            NumericOperationIr::SumDims(op) => vec![(&op.input, None)],
            NumericOperationIr::Sum(op) => vec![(&op.input, None)],
            _ => return None,
        },
        OperationIr::Float(_, FloatOperationIr::Matmul(op)) => {
            let rank = op.out.shape.num_dims();
            vec![(&op.lhs, Some(rank - 1)), (&op.rhs, Some(rank - 2))]
        }
        OperationIr::BaseFloat(BaseOperationIr::SelectAssign(op)) if is_zeros(op.tensor.id) => {
            vec![(&op.indices, Some(0)), (&op.value, Some(op.dim))]
        }
        OperationIr::BaseFloat(BaseOperationIr::Scatter(op)) if is_zeros(op.tensor.id) => {
            vec![(&op.indices, Some(op.dim)), (&op.value, Some(op.dim))]
        }
        OperationIr::Module(ModuleOperationIr::EmbeddingBackward(op)) => {
            vec![(&op.indices, Some(0)), (&op.out_grad, Some(0))]
        }
        OperationIr::Module(op) => {
            let (input, gradient) = convolution(op)?;
            let tensors = input.into_iter().chain([gradient]);
            tensors.map(|tensor| (tensor, Some(0))).collect()
        }
        _ => return None,
    })
}

fn product((left, right): (Side, Side), transposed: bool) -> Use {
    match transposed {
        false => Use::Product { left, right },
        true => Use::Product {
            left: right,
            right: left,
        },
    }
}

fn is_zero(value: &ScalarIr) -> bool {
    match value {
        ScalarIr::Float(value) => *value == 0.0,
        ScalarIr::Int(value) => *value == 0,
        ScalarIr::UInt(value) => *value == 0,
        ScalarIr::Bool(_) => false,
    }
}

fn same_but_ones(a: &Shape, b: &Shape) -> bool {
    let strip = |shape: &Shape| -> Vec<usize> {
        let lengths = shape.iter().copied();
        lengths.filter(|&length| length != 1).collect()
    };
    strip(a) == strip(b)
}

fn swaps_last_two(op: &SwapDimsOpIr) -> bool {
    let rank = op.input.shape.num_dims();
    op.dim1.min(op.dim2) + 2 == rank && op.dim1.max(op.dim2) + 1 == rank
}

fn leading_ones(shape: &Shape) -> bool {
    let leading = shape.num_dims().saturating_sub(2);
    shape.iter().take(leading).all(|&length| length == 1)
}
