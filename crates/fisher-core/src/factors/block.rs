//! The factors of one parameter.

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

use super::positions::Positions;
use super::second::Second;
use crate::error::Result;
use crate::gradient::{SampleGradient, Tied, add_at, at_least_single, sides};
use crate::model::{Orientation, Parameter, Role};
use crate::pieces::pieces;
use crate::read::read;

/// What the factors of a parameter are made of: see [the room](super).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Products of inputs and output gradients.
    Products,
    /// Rows of a table that were looked up.
    Lookups,
    /// Gradients that were written out.
    Written,
    /// A product and a lookup.
    Tied,
}

impl Form {
    /// Of these gradients; `None` of zeros, which go with any.
    pub(super) fn of(gradient: &SampleGradient) -> Option<Self> {
        match gradient {
            SampleGradient::Full(_) => Some(Self::Written),
            SampleGradient::Outer { .. } => Some(Self::Products),
            SampleGradient::Rows { .. } => Some(Self::Lookups),
            SampleGradient::Tied(_) => Some(Self::Tied),
            SampleGradient::Zero { .. } => None,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Products => "products",
            Self::Lookups => "lookups",
            Self::Written => "written out",
            Self::Tied => "products and lookups",
        }
    }
}

/// How a parameter is laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    pub(super) shape: Vec<usize>,
    /// Whether the first axis is the inputs', where gradients are products. A table's are where it is the output's matrix.
    pub(super) input_first: bool,
    /// Which sides keep no more than a diagonal.
    pub(super) diagonal: [bool; 2],
}

impl Layout {
    pub(super) fn of(parameter: &Parameter, largest: usize) -> Self {
        let [rows, others] = sides(parameter.shape());
        let table = parameter.role() == Role::Embedding;
        Self {
            shape: parameter.shape().to_vec(),
            input_first: !table && parameter.orientation() == Orientation::InputOutput,
            diagonal: [table || rows > largest, others > largest],
        }
    }

    pub(super) fn sides(&self) -> [usize; 2] {
        sides(&self.shape)
    }

    /// The same of a shape from a file; `None` where it is of more elements than can be counted.
    pub(super) fn checked_sides(&self) -> Option<[usize; 2]> {
        let product = |all: usize, axis: &usize| all.checked_mul(*axis);
        let others = self.shape.iter().skip(1).try_fold(1, product)?;
        let first = self.shape.first().copied().unwrap_or(1);
        first.checked_mul(others)?;
        Some([first, others])
    }
}

/// The factors of one parameter over the samples of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// `None` while there were only zeros.
    pub(super) form: Option<Form>,
    pub(super) input_first: bool,
    /// Of the first axis, and of all others.
    pub(super) sums: [Second; 2],
    /// `Σ 1/T_i` over the inputs that were summed over, of products and lookups.
    pub(super) inputs: f64,
}

impl Block {
    pub(super) fn new(layout: &Layout) -> Self {
        let sides = layout.sides();
        let side = |at: usize| Second::zeros(sides[at], layout.diagonal[at]);
        Self {
            form: None,
            input_first: layout.input_first,
            sums: [side(0), side(1)],
            inputs: 0.0,
        }
    }

    /// Which side is the inputs', where that is known: 0 for the first axis, 1 for all others.
    pub fn input_side(&self) -> Option<usize> {
        match self.form? {
            Form::Products => Some(usize::from(!self.input_first)),
            Form::Lookups => Some(0),
            Form::Written | Form::Tied => None,
        }
    }

    /// What they are made of; `None` while there were only zeros.
    pub fn form(&self) -> Option<Form> {
        self.form
    }

    /// *A* and *S*, of the first axis and of all others, over `samples` samples. All zeros where all gradients are.
    pub(super) fn factors(&self, samples: u64) -> [Second; 2] {
        let per = |count: f64| if count > 0.0 { count.recip() } else { 0.0 };
        let by_samples = per(samples as f64);
        let weights = match self.input_side() {
            Some(0) => [per(self.inputs), by_samples],
            Some(_) => [by_samples, per(self.inputs)],
            None => [by_samples, per(self.sums[0].trace())],
        };
        let [a, s] = self.sums.clone();
        [a.times(weights[0]), s.times(weights[1])]
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.form = self.form.or(other.form);
        self.inputs += other.inputs;
        let pairs = self.sums.iter_mut().zip(&other.sums);
        pairs.for_each(|(ours, theirs)| ours.add(theirs));
    }

    /// Take in gradients; `roots` are `√(C_i / g_i²)`.
    pub(super) fn push(
        &mut self,
        gradient: &SampleGradient,
        roots: &[f64],
        positions: Positions,
    ) -> Result<()> {
        self.form = self.form.or(Form::of(gradient));
        let roots: Vec<f32> = roots.iter().map(|&root| root as f32).collect();
        let roots = Tensor::<1>::from_floats(roots.as_slice(), &gradient.device());
        match gradient {
            SampleGradient::Full(gradient) => self.push_written(gradient.tensor(), &roots),
            SampleGradient::Outer { left, right } => {
                let sides = [left, right].map(|side| at_least_single(side.clone()));
                let [input, delta] = if self.input_first {
                    sides
                } else {
                    let [delta, input] = sides;
                    [input, delta]
                };
                self.push_product(input, delta, &roots, positions)
            }
            SampleGradient::Rows { ids, delta, .. } => {
                self.push_lookup(ids, at_least_single(delta.clone()), &roots, positions)
            }
            SampleGradient::Tied(tied) => self.push_tied(tied, &roots),
            SampleGradient::Zero { .. } => Ok(()),
        }
    }

    fn push_product(
        &mut self,
        input: Tensor<3>,
        delta: Tensor<3>,
        roots: &Tensor<1>,
        positions: Positions,
    ) -> Result<()> {
        let weights = active(&delta) * across(roots);
        let [of_input, of_delta] = if self.input_first { [0, 1] } else { [1, 0] };
        let delta = delta * across(roots);
        match positions {
            Positions::Expand => {
                self.inputs += total(weights.clone().square())?;
                self.sums[of_input].push(flat(input * weights))?;
                self.sums[of_delta].push(flat(delta))
            }
            Positions::Reduce => {
                let shares = shares(weights);
                self.inputs += total(shares.clone().sum_dim(1).square())?;
                self.sums[of_input].push(flat((input * shares).sum_dim(1)))?;
                self.sums[of_delta].push(flat(delta.sum_dim(1)))
            }
        }
    }

    fn push_lookup(
        &mut self,
        ids: &Tensor<2, Int>,
        delta: Tensor<3>,
        roots: &Tensor<1>,
        positions: Positions,
    ) -> Result<()> {
        let weights = active(&delta) * across(roots);
        let delta = delta * across(roots);
        let [samples, looked_up] = ids.dims();
        match positions {
            Positions::Expand => {
                let squares = weights.square();
                self.inputs += total(squares.clone())?;
                self.count(ids.clone(), squares.reshape([samples * looked_up]), 1.0)?;
                self.sums[1].push(flat(delta))
            }
            Positions::Reduce => {
                let table = self.sums[0].side();
                let shares = shares(weights);
                self.inputs += total(shares.clone().sum_dim(1).square())?;
                // Every sample has a table of its own.
                let tables = Tensor::<1, Int>::arange(0..samples as i64, &shares.device());
                let tables = tables.cast(ids.dtype()).mul_scalar(table as i64);
                let at = ids.clone() + tables.reshape([samples, 1]);
                let at = at.reshape([samples * looked_up]);
                let zeros =
                    Tensor::<1>::zeros([samples * table], (&shares.device(), shares.dtype()));
                let means = add_at(zeros, 0, at, shares.reshape([samples * looked_up]));
                self.sums[0].push(means.reshape([samples, table]))?;
                self.sums[1].push(flat(delta.sum_dim(1)))
            }
        }
    }

    /// Each position's own gradient, `l rᵀ`, as if it were written out.
    fn push_tied(&mut self, tied: &Tied, roots: &Tensor<1>) -> Result<()> {
        let norm = |side: &Tensor<3>| side.clone().square().sum_dim(2).sqrt();
        // Divided by their largest values, so that products are in range.
        let (left, of_left) = unit(at_least_single(tied.left.clone()))?;
        let (right, of_right) = unit(at_least_single(tied.right.clone()) * across(roots))?;
        let scale = of_left * of_right;
        let (norms_of_left, norms_of_right) = (norm(&left), norm(&right));
        for columns in pieces(left.dims()[2], COLUMNS) {
            let part = left.clone().narrow(2, columns.start, columns.len());
            let weighed = flat(part * norms_of_right.clone());
            self.sums[0].push_columns(columns.start, weighed, scale)?;
        }
        self.sums[1].push_columns(0, flat(right * norms_of_left), scale)?;

        let (delta, of_delta) = unit(at_least_single(tied.delta.clone()) * across(roots))?;
        let [samples, looked_up] = tied.ids.dims();
        let squares = norm(&delta).square().reshape([samples * looked_up]);
        self.count(tied.ids.clone(), squares, of_delta)?;
        self.sums[1].push_columns(0, flat(delta), of_delta)
    }

    /// `[samples, elements]`
    fn push_written(&mut self, gradients: &Tensor<2>, roots: &Tensor<1>) -> Result<()> {
        let [samples, _] = gradients.dims();
        let [rows, others] = [self.sums[0].side(), self.sums[1].side()];
        let gradients = at_least_single(gradients.clone()).reshape([samples, rows, others]);
        let gradients = gradients * across(roots);
        let columns = gradients.clone().swap_dims(1, 2);
        self.sums[0].push(flat(columns))?;
        self.sums[1].push(flat(gradients))
    }

    /// Add `weights`, `[positions]`, times the square of `scale` to the diagonal at the rows that were looked up.
    fn count(&mut self, ids: Tensor<2, Int>, weights: Tensor<1>, scale: f64) -> Result<()> {
        let rows = self.sums[0].side();
        let zeros = Tensor::<1>::zeros([rows], (&weights.device(), weights.dtype()));
        let [samples, positions] = ids.dims();
        let ids = ids.reshape([samples * positions]);
        let counts = read(add_at(zeros, 0, ids, weights))?;
        self.sums[0].push_diagonal(counts.into_iter().map(|count| count * scale * scale));
        Ok(())
    }
}

/// Columns of a table that are weighed at a time.
const COLUMNS: usize = 4096;

/// Weights as shares of each sample's positions, times its root: `√(C/g²) / P_i` at each of `P_i` active ones.
fn shares(weights: Tensor<3>) -> Tensor<3> {
    let count = weights
        .clone()
        .not_equal_scalar(0.0)
        .float()
        .cast(weights.dtype());
    weights / count.sum_dim(1).clamp_min(1.0)
}

/// Divided by its largest absolute value, and that; 1 for all zeros.
fn unit(tensor: Tensor<3>) -> Result<(Tensor<3>, f64)> {
    let largest = read(tensor.clone().max_abs())?[0];
    if largest == 0.0 {
        return Ok((tensor, 1.0));
    }
    Ok((tensor.div_scalar(largest), largest))
}

/// 1 where a position's gradient is not all 0, `[samples, positions, 1]`.
fn active(delta: &Tensor<3>) -> Tensor<3> {
    let largest = delta.clone().max_abs_dim(2);
    largest.not_equal_scalar(0.0).float().cast(delta.dtype())
}

/// `[samples]` as `[samples, 1, 1]`.
fn across(roots: &Tensor<1>) -> Tensor<3> {
    let [samples] = roots.dims();
    roots.clone().reshape([samples, 1, 1])
}

/// All positions of all samples as rows.
fn flat(tensor: Tensor<3>) -> Tensor<2> {
    tensor.flatten(0, 1)
}

fn total(tensor: Tensor<3>) -> Result<f64> {
    Ok(read(tensor.sum())?[0])
}
