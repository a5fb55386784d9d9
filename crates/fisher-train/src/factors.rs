//! The gradients of a parameter as products that need not be carried out.
//!
//! The gradient of sample `i` is `g_i = L_iᵀ R_i`, with `L_i` of `[positions, rows]` and `R_i` of
//! `[positions, columns]`: one side is what went into a layer, the other the gradient of what came
//! out. Squares and sums of squares follow without all `g_i` at once.

use burn::tensor::{Int, Tensor};
use fisher_core::{ContributionUnit, Gradient, Stream, Sums, TokenSum, Wanted};

use crate::Result;
use crate::batched::Part;
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

/// The way a parameter went into the statistics, as tracing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Gradients as a whole.
    Whole,
    /// Gradients some at a time.
    Product,
    /// Sums of squares by Gram matrices.
    Ghost,
    /// One product of squares.
    Squares,
    /// Rows that were looked up.
    Lookup,
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
            Self::Product(product) => product.push(path, wanted, ghost, stream),
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

    fn push<C: ContributionUnit>(
        self,
        path: &str,
        wanted: Wanted,
        ghost: bool,
        stream: &mut Stream<C>,
    ) -> Result<Way> {
        let [samples, positions, rows] = self.left.dims();
        let columns = self.right.dims()[2];
        if wanted.whole {
            return whole(path, self.whole(), stream);
        }
        let roots = column(stream, &self.right);
        let (left, right) = (self.left, self.right * roots);
        let sides = usize::from(wanted.rows) + usize::from(wanted.columns);
        let cheaper = sides.max(1) * positions * (rows + columns) <= rows * columns;
        if positions == 1 && samples > 1 && !stream.on_host() {
            stream.sums(path, squares(left, right, wanted))?;
            return Ok(Way::Squares);
        }
        if !wanted.elements && ghost && cheaper {
            stream.sums(path, ghost_sums(left, right, wanted))?;
            return Ok(Way::Ghost);
        }
        stream.product(path, left, right)?;
        Ok(Way::Product)
    }
}

/// [`Stream::roots`] as a factor of a right side.
fn column<C: ContributionUnit>(stream: &Stream<C>, like: &Tensor<3>) -> Tensor<3> {
    let roots: Vec<f32> = stream.roots().into_iter().map(|r| r as f32).collect();
    let roots = Tensor::<1>::from_floats(roots.as_slice(), &like.device());
    let samples = roots.dims()[0];
    roots.cast(like.dtype()).reshape([samples, 1, 1])
}

/// Divided by its largest absolute value, which is returned (1 for all zeros).
fn unit(tensor: Tensor<3>) -> (Tensor<3>, f64) {
    let largest: f64 = tensor.clone().max_abs().into_scalar();
    match largest > 0.0 {
        true => (tensor.div_scalar(largest), largest),
        false => (tensor, 1.0),
    }
}

/// `Σ_k (Σ_t l_tr r_tk)² = l_·rᵀ (R Rᵀ) l_·r`: sums over one side need no gradient, only products of
/// positions with positions.
fn ghost_sums(left: Tensor<3>, right: Tensor<3>, wanted: Wanted) -> Sums {
    let ((left, of_left), (right, of_right)) = (unit(left), unit(right));
    let over = |inner: &Tensor<3>, outer: &Tensor<3>| {
        let gram = inner.clone().matmul(inner.clone().swap_dims(1, 2));
        sum_positions(gram.matmul(outer.clone()) * outer.clone())
    };
    let rows = wanted.rows || !wanted.columns;
    Sums {
        scale: of_left * of_right,
        rows: rows.then(|| over(&right, &left)),
        columns: wanted.columns.then(|| over(&left, &right)),
        elements: None,
        squares: None,
    }
}

/// One position a sample: `C_i = l_i² r_i²`, so sums over samples are one product of squares.
fn squares(left: Tensor<3>, right: Tensor<3>, wanted: Wanted) -> Sums {
    let flat = |tensor: Tensor<3>| {
        let [samples, _, columns] = tensor.dims();
        tensor.reshape([samples, columns])
    };
    let ((left, of_left), (right, of_right)) = (unit(left), unit(right));
    let (left, right) = (flat(left).square(), flat(right).square());
    let product = |left: Tensor<2>, right: Tensor<2>| {
        let product = left.transpose().matmul(right);
        let elements = product.dims().iter().product::<usize>();
        product.reshape([elements])
    };
    let rows = wanted.rows || !wanted.columns;
    Sums {
        scale: of_left * of_right,
        rows: rows.then(|| left.clone() * right.clone().sum_dim(1)),
        columns: wanted
            .columns
            .then(|| right.clone() * left.clone().sum_dim(1)),
        squares: (wanted.elements && wanted.variance)
            .then(|| product(left.clone().square(), right.clone().square())),
        elements: wanted.elements.then(|| product(left, right)),
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
