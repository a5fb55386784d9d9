//! The gradients of a parameter as products that need not be carried out.
//!
//! The gradient of sample `i` is `g_i = L_iᵀ R_i`, with `L_i` of `[positions, rows]` and `R_i` of
//! `[positions, columns]`: one side is what went into a layer, the other the gradient of what came
//! out. Squares and sums of squares follow without all `g_i` at once.

use burn::tensor::{DType, Int, Tensor};
use fisher_core::{ContributionUnit, Gradient, Stream, TokenSum, Way, add_at};

use crate::error::Result;

/// What gives the per-sample gradients of one parameter.
#[derive(Debug, Clone)]
pub(crate) enum Factors {
    /// `g_i = L_iᵀ R_i`
    Product(Product),
    /// Row `ids_it` of a table got `δ_it`.
    Lookup(Lookup),
    /// The gradients of a vector, `[samples, elements]`.
    Vector(Tensor<2>),
}

/// `g_i = L_iᵀ R_i`
#[derive(Debug, Clone)]
pub(crate) struct Product {
    /// `[samples, positions, rows]`
    pub(crate) left: Tensor<3>,
    /// `[samples, positions, columns]`
    pub(crate) right: Tensor<3>,
}

/// Gradients of rows of a table.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    /// `[samples, positions]`
    pub(crate) ids: Tensor<2, Int>,
    /// `[samples, positions, width]`
    pub(crate) delta: Tensor<3>,
    pub(crate) rows: usize,
}

impl Factors {
    /// The sum over all uses of a parameter; `None` for no use.
    pub(crate) fn sum(parts: Vec<Self>) -> Option<Self> {
        let any_vector = parts.iter().any(|part| matches!(part, Self::Vector(_)));
        let any_product = parts.iter().any(|part| matches!(part, Self::Product(_)));
        let alike = parts.into_iter().map(|part| match part {
            part if any_vector => Self::Vector(part.whole()),
            Self::Lookup(lookup) if any_product => Self::Product(lookup.product()),
            part => part,
        });
        alike.reduce(Self::and)
    }

    /// For a parameter whose first axis, and the product of all others, are `sides`.
    pub(crate) fn with_sides(self, sides: [usize; 2], matrix: bool) -> Self {
        match self {
            Self::Lookup(lookup) => Self::Lookup(Lookup {
                rows: sides[0],
                ..lookup
            }),
            Self::Product(product) if !matrix || product.sides() != sides => {
                Self::Vector(product.whole())
            }
            factors => factors,
        }
    }

    /// A parameter used twice has one gradient: the sum over its uses, before any square.
    fn and(self, other: Self) -> Self {
        let join = |a, b| Tensor::cat(vec![a, b], 1);
        match (self, other) {
            (Self::Product(a), Self::Product(b)) => Self::Product(Product {
                left: join(a.left, b.left),
                right: join(a.right, b.right),
            }),
            (Self::Lookup(a), Self::Lookup(b)) => Self::Lookup(Lookup {
                ids: Tensor::cat(vec![a.ids, b.ids], 1),
                delta: join(a.delta, b.delta),
                rows: a.rows,
            }),
            (Self::Vector(a), Self::Vector(b)) => Self::Vector(a + b),
            _ => unreachable!("parts were made alike"),
        }
    }

    /// What they are, in words.
    pub(crate) fn way(&self) -> String {
        let positions = self.positions();
        match self {
            Self::Product(_) => format!("traced, products over {positions} positions"),
            Self::Lookup(_) => format!("traced, lookups at {positions} positions"),
            Self::Vector(_) => "traced, whole gradients".into(),
        }
    }

    /// Positions of a sample that it was used at.
    pub(crate) fn positions(&self) -> usize {
        match self {
            Self::Product(product) => product.left.dims()[1],
            Self::Lookup(lookup) => lookup.ids.dims()[1],
            Self::Vector(_) => 1,
        }
    }

    /// The tensors that its values come from.
    pub(crate) fn dtypes(&self) -> Vec<DType> {
        match self {
            Self::Product(product) => vec![product.left.dtype(), product.right.dtype()],
            Self::Lookup(lookup) => vec![lookup.delta.dtype()],
            Self::Vector(gradient) => vec![gradient.dtype()],
        }
    }

    /// Sums that are not finite if a value is not.
    pub(crate) fn probes(&self) -> Vec<Tensor<1>> {
        let sum = |tensor: &Tensor<3>| tensor.clone().cast(DType::F32).sum();
        match self {
            Self::Product(product) => vec![sum(&product.left), sum(&product.right)],
            Self::Lookup(lookup) => vec![sum(&lookup.delta)],
            Self::Vector(gradient) => vec![gradient.clone().cast(DType::F32).sum()],
        }
    }

    /// Those of one sample.
    pub(crate) fn sample(&self, index: usize) -> Self {
        let cut = |tensor: &Tensor<3>| tensor.clone().narrow(0, index, 1);
        match self {
            Self::Product(product) => Self::Product(Product {
                left: cut(&product.left),
                right: cut(&product.right),
            }),
            Self::Lookup(lookup) => Self::Lookup(Lookup {
                ids: lookup.ids.clone().narrow(0, index, 1),
                delta: cut(&lookup.delta),
                rows: lookup.rows,
            }),
            Self::Vector(gradient) => Self::Vector(gradient.clone().narrow(0, index, 1)),
        }
    }

    /// Those of the transposed parameter, which is a matrix of `shape`.
    pub(crate) fn transpose(self, shape: [usize; 2]) -> Self {
        match self {
            Self::Product(Product { left, right }) => Self::Product(Product {
                left: right,
                right: left,
            }),
            Self::Lookup(lookup) => {
                let Product { left, right } = lookup.product();
                Self::Product(Product {
                    left: right,
                    right: left,
                })
            }
            Self::Vector(gradient) => Self::Vector(transpose(gradient, shape)),
        }
    }

    /// The gradients themselves, `[samples, elements]`: for those who want to keep them.
    pub(crate) fn whole(&self) -> Tensor<2> {
        match self {
            Self::Vector(gradient) => gradient.clone(),
            Self::Product(product) => product.whole(),
            Self::Lookup(lookup) => lookup.whole(),
        }
    }

    /// Into the statistics, by the cheapest way that gives what is wanted.
    pub(crate) fn push<C: ContributionUnit>(
        self,
        path: &str,
        ghost: bool,
        stream: &mut Stream<C>,
    ) -> Result<Way> {
        match self {
            Self::Vector(gradient) => {
                stream.whole(path, Gradient::<TokenSum>::token_sum(gradient))?;
                Ok(Way::Whole)
            }
            Self::Lookup(Lookup { ids, delta, .. }) => Ok(stream.lookup(path, ids, delta)?),
            Self::Product(Product { left, right }) => Ok(stream.product(path, left, right, ghost)?),
        }
    }
}

impl Product {
    fn sides(&self) -> [usize; 2] {
        [self.left.dims()[2], self.right.dims()[2]]
    }

    fn whole(&self) -> Tensor<2> {
        let [samples, _, rows] = self.left.dims();
        let columns = self.right.dims()[2];
        let product = self.left.clone().swap_dims(1, 2).matmul(self.right.clone());
        product.reshape([samples, rows * columns])
    }
}

impl Lookup {
    /// The same as a product with rows of zeros and ones.
    fn product(&self) -> Product {
        let [samples, positions] = self.ids.dims();
        let ids = self.ids.clone().reshape([samples, positions, 1]);
        let symbols = Tensor::<1, Int>::arange(0..self.rows as i64, &self.delta.device());
        let symbols = symbols.cast(ids.dtype()).reshape([1, 1, self.rows]);
        let left = ids
            .expand([samples, positions, self.rows])
            .equal(symbols.expand([samples, positions, self.rows]));
        Product {
            left: left.float().cast(self.delta.dtype()),
            right: self.delta.clone(),
        }
    }

    /// The gradients, `[samples, rows × width]`.
    fn whole(&self) -> Tensor<2> {
        let [samples, positions, width] = self.delta.dims();
        let device = self.delta.device();
        // Every sample has a table of its own.
        let tables = Tensor::<1, Int>::arange(0..samples as i64, &device).cast(self.ids.dtype());
        let tables = tables.mul_scalar(self.rows as i64).reshape([samples, 1]);
        let rows = (self.ids.clone() + tables).reshape([samples * positions]);
        let delta = self.delta.clone().reshape([samples * positions, width]);
        let zeros = Tensor::<2>::zeros([samples * self.rows, width], (&device, delta.dtype()));
        add_at(zeros, 0, rows, delta).reshape([samples, self.rows * width])
    }
}

/// Flattened matrices of `shape`, transposed.
pub(crate) fn transpose(tensor: Tensor<2>, [rows, columns]: [usize; 2]) -> Tensor<2> {
    let samples = tensor.dims()[0];
    tensor
        .reshape([samples, rows, columns])
        .swap_dims(1, 2)
        .reshape([samples, rows * columns])
}
