//! The gradients of a parameter as products that need not be carried out.
//!
//! The gradient of sample `i` is `g_i = L_iᵀ R_i`, with `L_i` of `[positions, rows]` and `R_i` of
//! `[positions, columns]`: one side is what went into a layer, the other the gradient of what came
//! out. Squares and sums of squares follow without all `g_i` at once.

use burn::tensor::{Int, Tensor};
use fisher_core::{ContributionUnit, Gradient, Stream, Sums, TokenSum, Wanted, Way};

use crate::Result;
use crate::batched::Part;
use crate::names::transpose;
use crate::tap::Use;

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
    left: Tensor<3>,
    /// `[samples, positions, columns]`
    right: Tensor<3>,
}

/// Gradients of rows of a table.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    /// `[samples, positions]`
    ids: Tensor<2, Int>,
    /// `[samples, positions, width]`
    delta: Tensor<3>,
    rows: usize,
}

impl Factors {
    /// The factors of all uses of a parameter together; `None` for no use. `sides` are its first
    /// axis and the product of all others.
    pub(crate) fn of(parts: Vec<Part>, samples: usize, sides: [usize; 2]) -> Option<Self> {
        let split = |rows: Tensor<2>| {
            let [length, columns] = rows.dims();
            rows.reshape([samples, length / samples, columns])
        };
        let only_lookups = parts.iter().all(|(part, _)| matches!(part, Use::Lookup(_)));
        let factors = parts.into_iter().map(|(part, delta)| match part {
            Use::Input(input) => Self::Product(Product {
                left: split(input),
                right: split(delta),
            }),
            Use::Transposed(input) => Self::Product(Product {
                left: split(delta),
                right: split(input),
            }),
            Use::Lookup(ids) => {
                let [length] = ids.dims();
                let lookup = Lookup {
                    ids: ids.reshape([samples, length / samples]),
                    delta: split(delta),
                    rows: sides[0],
                };
                match only_lookups {
                    true => Self::Lookup(lookup),
                    false => Self::Product(lookup.product()),
                }
            }
            Use::Scale(input) => Self::Vector(sum_positions(split(input) * split(delta))),
            Use::Shift => Self::Vector(sum_positions(split(delta))),
        });
        factors.reduce(Self::and)
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
            _ => unreachable!("matrices and vectors are used in different ways"),
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
            Self::Lookup(lookup) => lookup.product().whole(),
        }
    }

    /// Into the statistics, by the cheapest way that gives what is wanted.
    pub(crate) fn push<C: ContributionUnit>(
        self,
        path: &str,
        wanted: Wanted,
        ghost: bool,
        stream: &mut Stream<C>,
    ) -> Result<Way> {
        match self {
            Self::Vector(gradient) => whole(path, gradient, stream),
            Self::Lookup(lookup) if wanted.whole => whole(path, lookup.product().whole(), stream),
            Self::Lookup(lookup) => lookup.push(path, wanted, stream),
            Self::Product(Product { left, right }) => Ok(stream.product(path, left, right, ghost)?),
        }
    }
}

fn whole<C: ContributionUnit>(
    path: &str,
    gradient: Tensor<2>,
    stream: &mut Stream<C>,
) -> Result<Way> {
    stream.whole(path, Gradient::<TokenSum>::token_sum(gradient))?;
    Ok(Way::Whole)
}

fn sum_positions(tensor: Tensor<3>) -> Tensor<2> {
    let [samples, _, columns] = tensor.dims();
    tensor.sum_dim(1).reshape([samples, columns])
}

impl Product {
    fn whole(&self) -> Tensor<2> {
        let [samples, _, rows] = self.left.dims();
        let columns = self.right.dims()[2];
        let product = self.left.clone().swap_dims(1, 2).matmul(self.right.clone());
        product.reshape([samples, rows * columns])
    }
}

/// [`Stream::roots`] as a factor of gradients.
fn column<C: ContributionUnit>(stream: &Stream<C>, like: &Tensor<3>) -> Tensor<3> {
    let roots: Vec<f32> = stream.roots().into_iter().map(|r| r as f32).collect();
    let roots = Tensor::<1>::from_floats(roots.as_slice(), &like.device());
    let samples = roots.dims()[0];
    roots.cast(like.dtype()).reshape([samples, 1, 1])
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

    /// Only rows that were looked up have gradients: `positions` of them, not `rows`.
    fn push<C: ContributionUnit>(
        self,
        path: &str,
        wanted: Wanted,
        stream: &mut Stream<C>,
    ) -> Result<Way> {
        let [samples, positions, width] = self.delta.dims();
        let dtype = stream.dtype();
        let delta = self.delta.clone() * column(stream, &self.delta);
        let ids = self.ids;

        // A symbol that occurs twice has one gradient: each position gets the sum over its like,
        // and only the first of them counts.
        let across = ids.clone().reshape([samples, positions, 1]);
        let along = ids.clone().reshape([samples, 1, positions]);
        let square = [samples, positions, positions];
        let same = across.expand(square).equal(along.expand(square));
        let same = same.float().cast(delta.dtype());
        let before = same.clone().tril(-1).sum_dim(2);
        let first = before.equal_scalar(0.0).float().cast(dtype);
        let contributions = same.matmul(delta).cast(dtype).square() * first;

        let of_rows = contributions
            .clone()
            .sum_dim(2)
            .reshape([samples, positions]);
        let device = of_rows.device();
        let rows = Tensor::<2>::zeros([samples, self.rows], (&device, dtype));
        let rows = rows.scatter(1, ids.clone(), of_rows, burn::tensor::IndexingUpdateOp::Add);
        let scatter = |values: Tensor<3>| {
            let flat = [samples * positions];
            let table = Tensor::<2>::zeros([self.rows, width], (&device, dtype));
            let values = values.reshape([samples * positions, width]);
            let ids = ids.clone().reshape(flat);
            let table = table.select_assign(0, ids, values, burn::tensor::IndexingUpdateOp::Add);
            table.reshape([self.rows * width])
        };
        let sums = Sums {
            scale: 1.0,
            rows: Some(rows),
            columns: wanted.columns.then(|| sum_positions(contributions.clone())),
            squares: (wanted.elements && wanted.variance)
                .then(|| scatter(contributions.clone().square())),
            elements: wanted.elements.then(|| scatter(contributions)),
        };
        stream.sums(path, sums)?;
        Ok(Way::Lookup)
    }
}
