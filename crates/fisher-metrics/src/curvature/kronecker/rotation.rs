//! Gradients in the bases of a parameter's factors.

use burn::tensor::{Device, Tensor, TensorData};
use faer::MatRef;
use fisher_core::gradient::{SampleGradient, at_least_single};

use super::block::KroneckerBlock;

/// The bases of a parameter's factors on a device, in float32: gradients are rotated into them and back.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// As columns; `None` for the side's own coordinates.
    bases: [Option<Tensor<2>>; 2],
    sides: [usize; 2],
}

impl Rotation {
    /// Those of `block`.
    pub fn new(block: &KroneckerBlock, device: &Device) -> Self {
        let on_device = |vectors: MatRef<'_, f64>| {
            let side = vectors.nrows();
            let cells = (0..side).flat_map(|row| (0..side).map(move |column| (row, column)));
            let values: Vec<f32> = cells.map(|at| vectors[at] as f32).collect();
            Tensor::from_data(TensorData::new(values, [side, side]), device)
        };
        Self {
            bases: [0, 1].map(|at| block.bases()[at].vectors().map(on_device)),
            sides: block.sides(),
        }
    }

    /// Whether these are gradients of a parameter with these sides.
    fn fits(&self, gradient: &SampleGradient) -> bool {
        match gradient {
            SampleGradient::Outer { left, right } => {
                [left, right].map(|f| f.dims()[2]) == self.sides
            }
            SampleGradient::Rows { delta, table, .. } => [*table, delta.dims()[2]] == self.sides,
            SampleGradient::Tied(tied) => {
                let [left, right, delta] =
                    [&tied.left, &tied.right, &tied.delta].map(|f| f.dims()[2]);
                [left, right] == self.sides && delta == right
            }
            other => other.dims()[1] == self.sides[0] * self.sides[1],
        }
    }

    /// `Uᵀ g_i V` in the form of `g_i`, or as a product where a lookup's rows are rotated.
    /// What is not of this shape stays as it is.
    pub fn turn(&self, gradient: SampleGradient) -> SampleGradient {
        match gradient {
            other if !self.fits(&other) => other,
            SampleGradient::Outer { left, right } => SampleGradient::Outer {
                left: self.side(0, left),
                right: self.side(1, right),
            },
            SampleGradient::Rows { ids, delta, table } => {
                let delta = self.side(1, delta);
                let Some(basis) = &self.bases[0] else {
                    return SampleGradient::Rows { ids, delta, table };
                };
                let [samples, positions] = ids.dims();
                let rows = basis.clone().select(0, ids.reshape([samples * positions]));
                SampleGradient::Outer {
                    left: rows.reshape([samples, positions, table]),
                    right: delta,
                }
            }
            SampleGradient::Tied(mut tied) if self.bases[0].is_none() => {
                tied.right = self.side(1, tied.right);
                tied.delta = self.side(1, tied.delta);
                SampleGradient::Tied(tied)
            }
            SampleGradient::Tied(tied) => {
                let parts = [tied.product(), tied.lookup()].map(|part| self.turn(part));
                SampleGradient::sum(parts).unwrap_or_else(|| unreachable!("two parts"))
            }
            SampleGradient::Full(gradient) => {
                let gradient = at_least_single(gradient.tensor().clone());
                let [samples, elements] = gradient.dims();
                let [rows, columns] = self.sides;
                let turned = self.side(1, gradient.reshape([samples, rows, columns]));
                let turned = self.side(0, turned.swap_dims(1, 2)).swap_dims(1, 2);
                SampleGradient::full(turned.reshape([samples, elements]))
            }
            zeros => zeros,
        }
    }

    /// `Uᵀ X V` of a matrix `[first axis, all others]`.
    pub fn there(&self, x: Tensor<2>) -> Tensor<2> {
        let turn = |x: Tensor<2>, basis: &Option<Tensor<2>>| match basis {
            Some(basis) => like(basis, &x).transpose().matmul(x),
            None => x,
        };
        turn(turn(x, &self.bases[0]).transpose(), &self.bases[1]).transpose()
    }

    /// The same of a vector over the parameter's elements, `[elements]`.
    pub fn there_flat(&self, x: Tensor<1>) -> Tensor<1> {
        let elements = x.dims();
        self.there(x.reshape(self.sides)).reshape(elements)
    }

    /// `U X Vᵀ`: back again.
    pub fn back(&self, x: Tensor<2>) -> Tensor<2> {
        let turn = |x: Tensor<2>, basis: &Option<Tensor<2>>| match basis {
            Some(basis) => like(basis, &x).matmul(x),
            None => x,
        };
        turn(turn(x, &self.bases[0]).transpose(), &self.bases[1]).transpose()
    }

    /// `[samples, positions, side]` times the basis.
    fn side(&self, at: usize, factor: Tensor<3>) -> Tensor<3> {
        let Some(basis) = &self.bases[at] else {
            return factor;
        };
        let [samples, positions, side] = factor.dims();
        let rows = at_least_single(factor).reshape([samples * positions, side]);
        rows.matmul(basis.clone())
            .reshape([samples, positions, side])
    }
}

/// A basis where the other factor is, and as precise.
fn like(basis: &Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
    basis.clone().cast(x.dtype()).to_device(&x.device())
}
