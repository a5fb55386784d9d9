//! Squares of gradients that are products of two factors, and ways not to carry these out.

use burn::tensor::{DType, Tensor};

use crate::Result;
use crate::host::{give, take};
use crate::kernel::{self, GHOST, Sides, ghost};
use crate::stream::{Margins, Sums, Wanted};
use crate::welford::Welford;

/// How a parameter's contributions were had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From gradients of the whole batch, `[samples, elements]`.
    Whole,
    /// From gradients of a few rows at a time, by tensor operations.
    Tiles,
    /// In the host's registers: no gradient is written to memory.
    Kernel,
    /// Sums over a side by products of positions with positions: `Σ_k (Σ_t l_tr r_tk)²` is
    /// `l_·rᵀ (R Rᵀ) l_·r`.
    Ghost,
    /// Sums over samples as a product of squares, for one position a sample.
    Squares,
    /// From the rows of a table that were looked up.
    Lookup,
}

/// Elements of a parameter that are taken in at a time.
const RUN: usize = 1 << 16;

/// Gradients `g_i = L_iᵀ R_i` of a parameter `[first axis, all others]`.
pub(crate) struct Product {
    /// `[samples, positions, first axis]`
    pub(crate) left: Tensor<3>,
    /// `[samples, positions, all others]`
    pub(crate) right: Tensor<3>,
    /// `√(C_i / g_i²)`
    pub(crate) roots: Vec<f64>,
    /// Of contributions.
    pub(crate) dtype: DType,
    /// Whether factors and contributions are float32 and float64 in the host's memory.
    pub(crate) on_host: bool,
}

impl Product {
    /// The cheapest way that gives what is wanted.
    pub(crate) fn way(&self, wanted: &Wanted, ghost: bool) -> Way {
        let [samples, positions, rows] = self.left.dims();
        let columns = self.right.dims()[2];
        let sides = 1 + usize::from(wanted.rows && wanted.columns);
        // A product costs positions × rows × columns, and less for its flops than a ghost.
        let cheaper = 2 * sides * positions * (rows + columns) <= rows * columns;
        match () {
            () if wanted.whole => Way::Whole,
            () if positions > 1 && !wanted.elements && ghost && cheaper => Way::Ghost,
            () if self.on_host => Way::Kernel,
            () if positions == 1 && samples > 1 => Way::Squares,
            () => Way::Tiles,
        }
    }

    pub(crate) fn whole(self) -> Tensor<2> {
        let [samples, _, rows] = self.left.dims();
        let columns = self.right.dims()[2];
        let product = self.left.swap_dims(1, 2).matmul(self.right);
        product.reshape([samples, rows * columns])
    }

    /// By a way that takes in elements itself.
    pub(crate) fn fold(self, elements: Option<&mut Welford>, wanted: &Wanted) -> Result<Margins> {
        match self.on_host {
            true => self.by_kernel(elements, wanted),
            false => Ok(self.by_tiles(elements, wanted)),
        }
    }

    /// The right side, multiplied by the roots.
    fn weighted(&self) -> Tensor<3> {
        let roots: Vec<f32> = self.roots.iter().map(|&root| root as f32).collect();
        let samples = roots.len();
        let roots = Tensor::<1>::from_floats(roots.as_slice(), &self.right.device());
        let roots = roots.cast(self.right.dtype()).reshape([samples, 1, 1]);
        self.right.clone() * roots
    }

    fn by_tiles(self, mut elements: Option<&mut Welford>, wanted: &Wanted) -> Margins {
        let [samples, _, rows] = self.left.dims();
        let right = self.weighted();
        let left = self.left.swap_dims(1, 2);
        let width = right.dims()[2];
        let step = (RUN / width).clamp(1, rows);
        if let Some(welford) = &mut elements {
            welford.split(step * width);
        }
        let (mut of_rows, mut of_columns) = (Vec::new(), Vec::new());
        for (run, start) in (0..rows).step_by(step).enumerate() {
            let height = step.min(rows - start);
            let roots = left.clone().narrow(1, start, height).matmul(right.clone());
            let contributions = roots.cast(self.dtype).square();
            if let Some(welford) = &mut elements {
                let flat = contributions.clone().reshape([samples, height * width]);
                welford.push_run(run, flat);
            }
            let over = |axis, side| contributions.clone().sum_dim(axis).reshape([samples, side]);
            if wanted.rows || !wanted.columns {
                of_rows.push(over(2, height));
            }
            if wanted.columns {
                of_columns.push(over(1, width));
            }
        }
        Margins {
            rows: (!of_rows.is_empty()).then(|| Tensor::cat(of_rows, 1)),
            columns: of_columns.into_iter().reduce(|sum, columns| sum + columns),
        }
    }

    fn by_kernel(self, elements: Option<&mut Welford>, wanted: &Wanted) -> Result<Margins> {
        let device = self.left.device();
        let [samples, positions, rows] = self.left.dims();
        let columns = self.right.dims()[2];
        let product = kernel::Product {
            samples,
            positions,
            rows,
            columns,
            left: take(self.left)?,
            right: take(self.right)?,
            roots: self.roots.iter().map(|&root| root as f32).collect(),
        };
        let sides = Sides {
            rows: wanted.rows,
            // One side tells the whole, and this one is cheaper.
            columns: wanted.columns || !wanted.rows,
        };
        let sums = match elements {
            Some(welford) => welford.fold(product, sides)?,
            None => product.fold(None, sides),
        };
        let of_rows = || give(sums.rows, [samples, rows], &device);
        let of_columns = || give(sums.columns, [samples, columns], &device);
        Ok(Margins {
            rows: sides.rows.then(of_rows),
            columns: sides.columns.then(of_columns),
        })
    }

    /// By [`Way::Ghost`]; `None` where too few digits would be left.
    pub(crate) fn ghost(&self, wanted: &Wanted) -> Result<Option<Sums>> {
        let (left, right, scale) = match self.on_host {
            true => (self.left.clone(), self.right.clone(), 1.0),
            false => {
                let (left, of_left) = unit(self.left.clone());
                let (right, of_right) = unit(self.weighted());
                (left, right, of_left * of_right)
            }
        };
        let over = |outer: &Tensor<3>, inner: &Tensor<3>| match self.on_host {
            true => self.ghost_on_host(outer.clone(), inner.clone()),
            false => Ok(ghost_on_device(outer.clone(), inner.clone())),
        };
        let mut sums = Sums {
            scale,
            rows: None,
            columns: None,
            elements: None,
            squares: None,
        };
        if wanted.rows || !wanted.columns {
            sums.rows = over(&right, &left)?;
        }
        if wanted.columns {
            sums.columns = over(&left, &right)?;
        }
        let rows = sums.rows.is_some() || (wanted.columns && !wanted.rows);
        let columns = sums.columns.is_some() || !wanted.columns;
        Ok((rows && columns).then_some(sums))
    }

    fn ghost_on_host(&self, outer: Tensor<3>, inner: Tensor<3>) -> Result<Option<Tensor<2>>> {
        let device = inner.device();
        let [samples, _, side] = inner.dims();
        let gram = outer.clone().matmul(outer.swap_dims(1, 2));
        let Some(mut sums) = ghost(&take(gram)?, &take(inner)?, samples, side) else {
            return Ok(None);
        };
        for (sums, root) in sums.chunks_mut(side).zip(&self.roots) {
            sums.iter_mut().for_each(|sum| *sum *= root * root);
        }
        Ok(Some(give(sums, [samples, side], &device)))
    }

    /// `C_i = l_i² r_i²`, so sums over samples are one product of squares.
    pub(crate) fn squares(&self, wanted: &Wanted) -> Sums {
        let flat = |tensor: Tensor<3>| {
            let [samples, _, columns] = tensor.dims();
            tensor.reshape([samples, columns])
        };
        let ((left, of_left), (right, of_right)) = (unit(self.left.clone()), unit(self.weighted()));
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
}

/// See [`ghost`].
fn ghost_on_device(outer: Tensor<3>, inner: Tensor<3>) -> Option<Tensor<2>> {
    let [samples, positions, side] = inner.dims();
    let norm = |tensor: &Tensor<3>| tensor.clone().square().sum_dim(2);
    let most = (norm(&outer) * norm(&inner))
        .sum_dim(1)
        .reshape([samples, 1]);
    let gram = outer.clone().matmul(outer.swap_dims(1, 2));
    let sums = (gram.matmul(inner.clone()) * inner).sum_dim(1);
    // A sum of squares, but for rounding.
    let sums = sums.reshape([samples, side]).clamp_min(0.0);
    let least = most.mul_scalar(GHOST * positions as f64);
    let lost = sums.clone().sum_dim(1).lower(least).any();
    (!lost.into_scalar::<bool>()).then_some(sums)
}

/// Divided by its largest absolute value, which is returned (1 for all zeros).
fn unit(tensor: Tensor<3>) -> (Tensor<3>, f64) {
    let largest: f64 = tensor.clone().max_abs().into_scalar();
    match largest > 0.0 {
        true => (tensor.div_scalar(largest), largest),
        false => (tensor, 1.0),
    }
}
