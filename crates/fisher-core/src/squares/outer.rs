//! Squares of gradients that are products of two factors, and ways not to carry these out.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};
use rayon::prelude::*;

use super::wanted::Wanted;
use super::way::Way;
#[cfg(feature = "cube")]
use crate::device::{self, Terms};
use crate::error::{Error, Result};
use crate::gradient::{add_at, indices};
use crate::grouping::{Grouping, Margins};
#[cfg(feature = "cube")]
use crate::host::is_cube;
use crate::host::{self, GHOST, LOST, Sides, Values, ghost, give};
use crate::moments::Welford;
use crate::pieces::pieces;

/// Elements of a parameter that are taken in at a time.
const RUN: usize = 1 << 16;
/// Elements of a large parameter.
const LARGE: usize = 1 << 16;
/// Gradients of a parameter's elements, of all samples, that are held at a time.
const CELLS: usize = 1 << 22;

/// Gradients `g_i = L_iᵀ R_i` of a parameter `[first axis, all others]`.
#[derive(Debug, Clone)]
pub(crate) struct Outer {
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
    /// The roots beside factors in float32 that a kernel of the device takes, `[samples]`.
    pub(crate) on_cube: Option<Tensor<1>>,
}

impl Outer {
    /// The cheapest way that gives what is wanted.
    pub(crate) fn way(&self, wanted: &Wanted, ghost: bool) -> Way {
        let [samples, positions, rows] = self.left.dims();
        let columns = self.right.dims()[2];
        let sides = 1 + usize::from(wanted.rows && wanted.columns);
        // A product costs positions × rows × columns, and less for its flops than a ghost.
        let cheaper = 2 * sides * positions * (rows + columns) <= rows * columns;
        // Sums of fourth powers would have no digits left for a variance where samples hardly differ.
        let squares = positions == 1 && samples > 1 && !(wanted.elements && wanted.variance);
        if positions > 1 && !wanted.elements && ghost && cheaper {
            Way::Ghost
        } else if self.on_host
            || (self.on_cube.is_some() && !(squares && wanted.elements && self.is_large()))
        {
            Way::Kernel
        } else if squares {
            Way::Squares
        } else {
            Way::Tiles
        }
    }

    /// Whether the parameter is worth an operation of its own for each of its sums.
    fn is_large(&self) -> bool {
        self.left.dims()[2] * self.right.dims()[2] >= LARGE
    }

    /// Sums over the groups of samples `range`, `[samples, groups]`, for groups that are no slices of
    /// an axis, where the product's first row is row `above` of the parameter. Gradients are of a few
    /// rows at a time.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not give values.
    pub(crate) fn scattered(
        &self,
        grouping: &Grouping,
        range: Range<usize>,
        above: usize,
    ) -> Result<Tensor<2>> {
        let samples = range.len();
        let [_, _, rows] = self.left.dims();
        let of = |tensor: &Tensor<3>| tensor.clone().narrow(0, range.start, samples);
        let left = of(&self.left).swap_dims(1, 2);
        let right = if self.on_host {
            of(&self.right)
        } else {
            of(&self.weighted())
        };
        let width = right.dims()[2];
        let step = (CELLS / (samples * width)).clamp(1, rows);
        let tiles = pieces(rows, step).map(|rows| {
            let tile = left.clone().narrow(1, rows.start, rows.len());
            let tile = tile.matmul(right.clone());
            (
                (above + rows.start) * width,
                tile.reshape([samples, rows.len() * width]),
            )
        });
        if !self.on_host {
            let options = (&right.device(), self.dtype);
            let sums = Tensor::<2>::zeros([samples, grouping.groups()], options);
            return Ok(tiles.fold(sums, |sums, (start, tile)| {
                grouping.add_run(sums, start, tile.cast(self.dtype).square())
            }));
        }
        let mut sums = vec![0.0; samples * grouping.groups()];
        for (start, tile) in tiles {
            let length = tile.dims()[1];
            let groups = grouping.group_of(start..start + length);
            scatter_squares(&Values::of(tile)?, &groups, &mut sums);
        }
        for (sums, root) in sums.chunks_mut(grouping.groups()).zip(&self.roots[range]) {
            sums.iter_mut().for_each(|sum| *sum *= root * root);
        }
        Ok(give(sums, [samples, grouping.groups()], &right.device()))
    }

    /// By a way that takes in elements itself.
    pub(crate) fn fold(self, elements: Option<&mut Welford>, wanted: &Wanted) -> Result<Margins> {
        if self.on_host {
            return self.by_kernel(elements, wanted);
        }
        #[cfg(feature = "cube")]
        let elements = match self.by_device(elements, wanted) {
            Ok(margins) => return Ok(margins),
            Err(elements) => elements,
        };
        Ok(self.by_tiles(elements, wanted))
    }

    /// The right side, multiplied by the roots.
    fn weighted(&self) -> Tensor<3> {
        let roots = on_device(&self.roots, &self.right.device()).cast(self.right.dtype());
        self.right.clone() * roots.reshape([self.roots.len(), 1, 1])
    }

    /// By the device's kernel; `elements` again where it cannot be.
    #[cfg(feature = "cube")]
    fn by_device<'a>(
        &self,
        elements: Option<&'a mut Welford>,
        wanted: &Wanted,
    ) -> std::result::Result<Margins, Option<&'a mut Welford>> {
        let Some(roots) = &self.on_cube else {
            return Err(elements);
        };
        let terms = Terms::Products {
            left: &self.left,
            right: &self.right,
            roots,
        };
        // With one position a sample, these are had for less than the kernel takes to add them up.
        let apart = (self.left.dims()[1] == 1 && self.is_large())
            .then(|| self.one_position(wanted.sides()))
            .flatten();
        let sides = match &apart {
            Some(_) => Sides::NONE,
            None => wanted.sides(),
        };
        if let (None, Some(margins)) = (&elements, apart.clone()) {
            return Ok(margins);
        }
        let folded = match elements {
            None => device::fold(&terms, None, sides).ok_or(None)?,
            Some(welford) => match welford.on_cube(self.roots.len(), &terms, sides) {
                Some(folded) => folded,
                None => return Err(Some(welford)),
            },
        };
        Ok(apart.unwrap_or(Margins {
            rows: folded.rows,
            columns: folded.columns,
        }))
    }

    /// `l_i² Σ r_i²` and `r_i² Σ l_i²`, for one position a sample, by the device's kernel; `None` where
    /// that cannot be.
    fn one_position(&self, sides: Sides) -> Option<Margins> {
        #[cfg(feature = "cube")]
        if let Some(roots) = &self.on_cube {
            let flat = |tensor: &Tensor<3>| tensor.clone().flatten::<2>(0, 1);
            let (left, right) = (flat(&self.left), flat(&self.right));
            let over = |wanted, values, others| match wanted {
                true => device::one_position(values, others, roots).map(Some),
                false => Some(None),
            };
            return Some(Margins {
                rows: over(sides.rows, &left, &right)?,
                columns: over(sides.columns, &right, &left)?,
            });
        }
        let _ = sides;
        None
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
        let product = host::Product {
            samples,
            positions,
            rows,
            columns,
            left: Values::of(self.left)?,
            right: Values::of(self.right)?,
            roots: self.roots.iter().map(|&root| root as f32).collect(),
        };
        let sides = wanted.sides();
        let sums = match elements {
            Some(welford) => welford.on_host(|moments| product.fold(Some(moments), sides))?,
            None => product.fold(None, sides),
        };
        Ok(Margins::on_host(sums, samples, &device))
    }

    /// By [`Way::Ghost`]; `None` where too few digits would be left.
    pub(crate) fn ghost(&self, wanted: &Wanted) -> Result<Option<Margins>> {
        let (left, right, scale) = if self.on_host {
            (self.left.clone(), self.right.clone(), None)
        } else {
            let (left, of_left) = unit(self.left.clone());
            let (right, of_right) = unit(self.weighted());
            (left, right, Some(of_left * of_right))
        };
        let over = |outer: &Tensor<3>, inner: &Tensor<3>| {
            if self.on_host {
                self.ghost_on_host(outer.clone(), inner.clone())
            } else {
                ghost_on_device(outer.clone(), inner.clone())
            }
        };
        let mut margins = Margins::default();
        if wanted.rows || !wanted.columns {
            margins.rows = over(&right, &left)?;
        }
        if wanted.columns {
            margins.columns = over(&left, &right)?;
        }
        let rows = margins.rows.is_some() || (wanted.columns && !wanted.rows);
        let columns = margins.columns.is_some() || !wanted.columns;
        Ok((rows && columns).then(|| unscaled_margins(margins, &scale, self.dtype)))
    }

    fn ghost_on_host(&self, outer: Tensor<3>, inner: Tensor<3>) -> Result<Option<Tensor<2>>> {
        let device = inner.device();
        let [samples, _, side] = inner.dims();
        let gram = outer.clone().matmul(outer.clone().swap_dims(1, 2));
        let factors = [Values::of(outer)?, Values::of(inner)?];
        let Some(mut sums) = ghost(&Values::of(gram)?, &factors, samples, side) else {
            return Ok(None);
        };
        for (sums, root) in sums.chunks_mut(side).zip(&self.roots) {
            sums.iter_mut().for_each(|sum| *sum *= root * root);
        }
        Ok(Some(give(sums, [samples, side], &device)))
    }

    /// `C_i = l_i² r_i²`, so sums over samples are one product of squares: sums over the sides, and the
    /// mean of every element, `[elements]`, where that is wanted.
    pub(crate) fn squares(&self, wanted: &Wanted) -> (Margins, Option<Tensor<1>>) {
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
        let scale = Some(of_left * of_right);
        let sides = wanted.sides();
        let margins = self.one_position(sides).unwrap_or_else(|| {
            let margins = Margins {
                rows: sides.rows.then(|| left.clone() * right.clone().sum_dim(1)),
                columns: sides
                    .columns
                    .then(|| right.clone() * left.clone().sum_dim(1)),
            };
            unscaled_margins(margins, &scale, self.dtype)
        });
        let elements = wanted.elements.then(|| product(left, right));
        // The device's kernel takes means in float32.
        let dtype = match self.on_cube {
            Some(_) => DType::F32,
            None => self.dtype,
        };
        let samples = self.roots.len() as f64;
        let mean = |sum| unscaled(sum, &scale, dtype).div_scalar(samples);
        (margins, elements.map(mean))
    }
}

/// `sums` times the square of `scale`, in `dtype`.
fn unscaled<const D: usize>(sums: Tensor<D>, scale: &Option<Tensor<1>>, dtype: DType) -> Tensor<D> {
    let sums = sums.cast(dtype);
    match scale {
        // Not squared first: it alone may be out of range.
        Some(scale) => {
            let scale = scale.clone().cast(dtype).unsqueeze::<D>();
            sums * scale.clone() * scale
        }
        None => sums,
    }
}

fn unscaled_margins(margins: Margins, scale: &Option<Tensor<1>>, dtype: DType) -> Margins {
    let unscaled = |sums: Tensor<2>| unscaled(sums, scale, dtype);
    Margins {
        rows: margins.rows.map(unscaled),
        columns: margins.columns.map(unscaled),
    }
}

/// The roots, where a kernel of `device` is to have them.
#[cfg(feature = "cube")]
pub(crate) fn for_kernel(roots: &[f64], device: &Device) -> Option<Tensor<1>> {
    let wanted = is_cube(device) && !roots.is_empty();
    wanted
        .then(|| on_device(roots, device))
        .filter(device::opens)
}

/// In float32.
fn on_device(values: &[f64], device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    Tensor::from_floats(values.as_slice(), device)
}

/// See [`ghost`]: what too few digits are left of is computed from the gradients themselves.
fn ghost_on_device(outer: Tensor<3>, inner: Tensor<3>) -> Result<Option<Tensor<2>>> {
    let [samples, positions, side] = inner.dims();
    let across = outer.dims()[2];
    let norm = outer.clone().square().sum_dim(2);
    let most = (norm * inner.clone().square()).sum_dim(1);
    let most = most.reshape([samples, side]);
    let gram = outer.clone().matmul(outer.clone().swap_dims(1, 2));
    let sums = (gram.matmul(inner.clone()) * inner.clone()).sum_dim(1);
    // A sum of squares, but for rounding.
    let sums = sums.reshape([samples, side]).clamp_min(0.0);
    let least = most.mul_scalar(GHOST * positions as f64);
    let lost = sums.clone().lower(least).int().sum_dim(0);
    let lost = lost.try_into_data().map_err(Error::device)?;
    let lost: Vec<bool> = lost.iter::<i64>().map(|samples| samples > 0).collect();
    let at: Vec<usize> = (0..side).filter(|&at| lost[at]).collect();
    if at.is_empty() {
        return Ok(Some(sums));
    }
    if at.len() > side / LOST {
        return Ok(None);
    }
    let device = sums.device();
    let kept: Vec<f32> = lost
        .iter()
        .map(|&lost| f32::from(u8::from(!lost)))
        .collect();
    let kept = Tensor::<1>::from_floats(kept.as_slice(), &device).cast(sums.dtype());
    let mut sums = sums * kept.reshape([1, side]);
    let outer = outer.swap_dims(1, 2);
    for at in at.chunks((CELLS / (samples * across)).max(1)) {
        let at = indices(at, &device);
        let gradients = outer.clone().matmul(inner.clone().select(2, at.clone()));
        let exact = gradients.square().sum_dim(1);
        let exact = exact.reshape([samples, at.dims()[0]]);
        sums = add_at(sums, 1, at, exact);
    }
    Ok(Some(sums))
}

/// Add squares of `gradients`, `[samples, elements]`, to the sums over their groups, `[samples, all
/// groups]`.
fn scatter_squares(gradients: &[f32], groups: &[Option<usize>], sums: &mut [f64]) {
    let samples = gradients.len() / groups.len();
    let length = sums.len() / samples;
    let samples = gradients.par_chunks(groups.len());
    let samples = samples.zip(sums.par_chunks_mut(length));
    samples.for_each(|(gradients, sums)| {
        for (gradient, group) in gradients.iter().zip(groups) {
            if let Some(group) = *group {
                sums[group] += f64::from(*gradient) * f64::from(*gradient);
            }
        }
    });
}

/// Divided by its largest absolute value, which is returned, `[1]`; 1 for all zeros.
fn unit(tensor: Tensor<3>) -> (Tensor<3>, Tensor<1>) {
    let largest = tensor.clone().max_abs();
    let zero = largest.clone().equal_scalar(0.0);
    let largest = largest.mask_fill(zero, 1.0);
    (tensor / largest.clone().unsqueeze(), largest)
}
