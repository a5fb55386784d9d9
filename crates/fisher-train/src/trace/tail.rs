//! The operations between sums over the samples and a gradient that is linear in these sums.

use std::collections::{BTreeMap, BTreeSet};

use burn::backend::capture::TensorId;
use burn::backend::ir::{
    BaseOperationIr, FloatOperationIr, ModuleOperationIr, NumericOperationIr, OperationIr, TensorIr,
};

use super::graph::Graph;
use super::operations::{adds, convolution, is_zero, name};
use super::recipe::Tail;
use super::samples::Samples;

impl Graph<'_> {
    /// All operations between sums over the samples and a gradient that is linear in these sums.
    pub(super) fn tail(&self, gradient: TensorId) -> Result<Tail, String> {
        let mut search = Search {
            graph: self,
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
}

/// A walk from a gradient back to the sums it is made of.
struct Search<'a> {
    graph: &'a Graph<'a>,
    operations: BTreeSet<usize>,
    cuts: BTreeMap<TensorId, (TensorIr, usize)>,
    shared: BTreeMap<TensorId, TensorIr>,
}

impl Search<'_> {
    fn visit(&mut self, id: TensorId) -> Result<(), String> {
        let at = self.graph.producers.get(&id);
        let at = *at.ok_or("it does not come from the samples")?;
        if !self.operations.insert(at) {
            return Ok(());
        }
        let operation = &self.graph.operations[at];
        let places = self.graph.places;
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
            let cuts = contracted(operation, |id| self.graph.is_zeros(id));
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
        let zeros = |tensor: &TensorIr| self.graph.is_zeros(tensor.id);
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
