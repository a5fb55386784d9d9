//! The uses of a parameter that its gradient is the sum of.

use burn::backend::Shape;
use burn::backend::capture::TensorId;
use burn::backend::ir::{
    BaseOperationIr, FloatOperationIr, MatmulOpIr, ModuleOperationIr, NumericOperationIr,
    OperationIr, TensorIr,
};

use super::graph::Graph;
use super::operations::{convolution, leading_ones, same_but_ones, swaps_last_two};
use super::recipe::{Patches, Side, Use};
use super::samples::Samples;

impl Graph<'_> {
    /// The uses that a gradient is the sum of, if it is nothing but their sum.
    pub(super) fn uses(&self, id: TensorId, transposed: bool, uses: &mut Vec<Use>) -> Option<()> {
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
            // What is rounded to the type of a parameter is had before.
            OperationIr::BaseFloat(BaseOperationIr::Cast(op)) => {
                self.uses(op.input.id, transposed, uses)
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
}

fn product((left, right): (Side, Side), transposed: bool) -> Use {
    if transposed {
        Use::Product {
            left: right,
            right: left,
        }
    } else {
        Use::Product { left, right }
    }
}
