//! Squared norms of gradients that are never held whole.

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use crate::gradient::{SampleGradient, Tied, at_least_single, unit_rows};
use crate::moments::accumulation_dtype;
use crate::pieces::pieces;

/// Numbers that are held at a time.
const HELD: usize = 1 << 20;
/// What a factor is divided by at least, so that no quotient is out of range.
const LEAST: f32 = 1e-10;

/// `|g_i|²` of every sample: `squares` times the squares of both `scales`, each of `[samples]`.
/// Multiplied out in float64 on the host: a device without that has not their range.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct SquaredNorms {
    /// `[samples]`
    pub squares: Tensor<1>,
    /// `[samples]` each
    pub scales: [Tensor<1>; 2],
}

/// The squared norm of every sample's gradient.
#[doc(hidden)]
pub fn squared_norms(gradient: &SampleGradient) -> SquaredNorms {
    match gradient {
        SampleGradient::Full(gradient) => {
            let gradient = gradient.tensor();
            let dtype = accumulation_dtype(&gradient.device());
            let (unit, scale) = unit_rows(at_least_single(gradient.clone()));
            let scale = scale.flatten(0, 1);
            SquaredNorms {
                squares: unit.cast(dtype).square().sum_dim(1).flatten(0, 1),
                scales: [scale.ones_like(), scale],
            }
        }
        SampleGradient::Outer { left, right } => {
            let ((left, of_left), (right, of_right)) = (unit(left), unit(right));
            SquaredNorms {
                squares: of_outer(&left, &right),
                scales: [of_left, of_right],
            }
        }
        SampleGradient::Tied(tied) => of_tied(tied),
        SampleGradient::Rows { ids, delta, .. } => {
            let (delta, scale) = unit(delta);
            let dtype = accumulation_dtype(&delta.device());
            let same = |samples: &Range<usize>, positions: &Range<usize>| {
                let ids = ids.clone().narrow(0, samples.start, samples.len());
                let here = ids.clone().narrow(1, positions.start, positions.len());
                let square = [samples.len(), positions.len(), ids.dims()[1]];
                let across = here.unsqueeze_dim::<3>(2).expand(square);
                let along = ids.unsqueeze_dim::<3>(1).expand(square);
                across.equal(along).float().cast(dtype)
            };
            SquaredNorms {
                squares: by_positions(&delta, same),
                scales: [scale.ones_like(), scale],
            }
        }
        SampleGradient::Zero {
            samples, device, ..
        } => {
            let zeros = Tensor::zeros([*samples], (device, accumulation_dtype(device)));
            SquaredNorms {
                scales: [zeros.ones_like(), zeros.ones_like()],
                squares: zeros,
            }
        }
    }
}

/// Of a product and a lookup, a band of rows at a time.
fn of_tied(tied: &Tied) -> SquaredNorms {
    let [left, right, delta] =
        [&tied.left, &tied.right, &tied.delta].map(|factor| at_least_single(factor.clone()));
    let [samples, positions, _] = left.dims();
    let looked_up = delta.dims()[1];
    // `L R + 1 δ` is `(L/a) R + 1 (δ/a)`, times a.
    let of_left = left.clone().flatten::<2>(1, 2).max_abs_dim(1);
    let of_left = of_left.clamp_min(LEAST);
    let a = of_left.clone().reshape([samples, 1, 1]);
    let both = Tensor::cat(vec![right, delta / a.clone()], 1);
    let (both, of_both) = unit(&both);
    let scaled = Tied {
        left: left / a,
        right: both.clone().narrow(1, 0, positions),
        ids: tied.ids.clone(),
        delta: both.narrow(1, positions, looked_up),
    };
    let bands = scaled.bands();
    let norms = bands.map(|band| of_outer(&band.left, &band.right));
    let zeros = || {
        Tensor::zeros(
            [samples],
            (&of_both.device(), accumulation_dtype(&of_both.device())),
        )
    };
    SquaredNorms {
        squares: norms
            .reduce(|sum, of_band| sum + of_band)
            .unwrap_or_else(zeros),
        scales: [of_left.flatten(0, 1), of_both],
    }
}

/// Of `L_iᵀ R_i`.
fn of_outer(left: &Tensor<3>, right: &Tensor<3>) -> Tensor<1> {
    let [_, positions, rows] = left.dims();
    let columns = right.dims()[2];
    let dtype = accumulation_dtype(&left.device());
    // What cancels between positions costs the products of positions digits that float32 has not.
    let cheaper = 2 * positions * (rows + columns) <= rows * columns;
    if positions == 1 || (cheaper && dtype == DType::F64) {
        by_positions(right, |samples, positions| {
            gram(left.clone(), samples, positions, dtype)
        })
    } else {
        by_elements(left, right)
    }
}

/// `Σ_(t,t') ⟨l_t, l_t'⟩⟨r_t, r_t'⟩`, a few samples and positions at a time; `other` gives the
/// products of the left sides.
fn by_positions(
    right: &Tensor<3>,
    other: impl Fn(&Range<usize>, &Range<usize>) -> Tensor<3>,
) -> Tensor<1> {
    let [samples, positions, _] = right.dims();
    let dtype = accumulation_dtype(&right.device());
    let at_once = (HELD / (positions * positions)).clamp(1, samples);
    let tile = (HELD / positions).clamp(1, positions);
    let norms = pieces(samples, at_once).map(|samples| {
        let parts = pieces(positions, tile).map(|positions| {
            let product = gram(right.clone(), &samples, &positions, dtype);
            sum_all(product * other(&samples, &positions))
        });
        parts.reduce(|sum, part| sum + part)
    });
    Tensor::cat(norms.flatten().collect(), 0)
}

/// `⟨x_t, x_t'⟩` of these positions with all.
fn gram(
    side: Tensor<3>,
    samples: &Range<usize>,
    positions: &Range<usize>,
    dtype: DType,
) -> Tensor<3> {
    let side = side.narrow(0, samples.start, samples.len()).cast(dtype);
    let here = side.clone().narrow(1, positions.start, positions.len());
    here.matmul(side.swap_dims(1, 2))
}

/// From the elements, a few samples and rows at a time.
fn by_elements(left: &Tensor<3>, right: &Tensor<3>) -> Tensor<1> {
    let [samples, _, rows] = left.dims();
    let columns = right.dims()[2];
    let dtype = accumulation_dtype(&left.device());
    let at_once = (HELD / (rows * columns)).clamp(1, samples);
    let tile = (HELD / columns).clamp(1, rows);
    let norms = pieces(samples, at_once).map(|samples| {
        let cut = |side: &Tensor<3>| side.clone().narrow(0, samples.start, samples.len());
        let (left, right) = (cut(left).swap_dims(1, 2), cut(right));
        let parts = pieces(rows, tile).map(|rows| {
            let left = left.clone().narrow(1, rows.start, rows.len());
            sum_all(left.matmul(right.clone()).cast(dtype).square())
        });
        parts.reduce(|sum, part| sum + part)
    });
    Tensor::cat(norms.flatten().collect(), 0)
}

/// Over all but the samples.
fn sum_all(tensor: Tensor<3>) -> Tensor<1> {
    tensor.flatten::<2>(1, 2).sum_dim(1).flatten(0, 1)
}

/// Each sample's divided by its largest value; `[samples]` of these.
fn unit(tensor: &Tensor<3>) -> (Tensor<3>, Tensor<1>) {
    let shape = tensor.dims();
    let rows = at_least_single(tensor.clone()).flatten::<2>(1, 2);
    let (unit, scale) = unit_rows(rows);
    (unit.reshape(shape), scale.flatten(0, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn side(shape: [usize; 3], phase: f32) -> Tensor<3> {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|k| (phase + (k * k % 97) as f32).sin());
        Tensor::from_data(TensorData::new(values.collect(), shape), &Device::flex())
    }

    fn product(shape: [usize; 4]) -> SampleGradient {
        let [samples, positions, rows, columns] = shape;
        SampleGradient::Outer {
            left: side([samples, positions, rows], 0.3),
            right: side([samples, positions, columns], 1.7),
        }
    }

    fn rows(positions: usize) -> SampleGradient {
        let ids: Vec<i64> = (0..3 * positions).map(|k| (k * 7 % 5) as i64).collect();
        let ids = TensorData::new(ids, [3, positions]);
        SampleGradient::Rows {
            ids: Tensor::from_data(ids, &Device::flex()),
            delta: side([3, positions, 4], 0.9),
            table: 6,
        }
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
        tensor.into_data().iter::<f64>().collect()
    }

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 1e-5 * (1.0 + e.abs()), "{f} against {e}");
        }
    }

    /// Against the gradients themselves: one position, few and many of them, parameters and batches
    /// that do not fit into a piece.
    #[test]
    fn sums_and_norms_are_those_of_the_gradients() {
        let all = [
            product([3, 1, 5, 7]),
            product([3, 2, 40, 30]),
            product([3, 9, 5, 7]),
            product([3, 2, 1100, 1000]),
            product([3, 1200, 2, 2]),
            rows(1),
            rows(13),
            rows(1100),
            SampleGradient::full(side([1, 3, 8], 0.1).flatten(0, 1)),
        ];
        for gradient in all {
            let whole = gradient.to_full();
            let SquaredNorms { squares, scales } = squared_norms(&gradient);
            let [a, b] = scales.map(values);
            let norms = values(squares).into_iter().zip(a.iter().zip(&b));
            let norms: Vec<f64> = norms.map(|(x, (a, b))| x * a * a * b * b).collect();
            let expected = values(whole.clone().square().sum_dim(1));
            let largest = expected.iter().fold(0.0, |m: f64, x| m.max(*x));
            let relative = |x: &[f64]| x.iter().map(|x| x / largest).collect::<Vec<_>>();
            close(&relative(&norms), &relative(&expected));

            let weights = [0.5, 3.0];
            let rows =
                values(whole.clone().narrow(0, 0, 1) * 0.5 + whole.clone().narrow(0, 2, 1) * 3.0);
            let sum = gradient.add_to(None, &[0, 2], &weights);
            close(&values(sum.clone()), &rows);
            let more = gradient.add_to(Some(sum), &[0, 1, 2], &[1.0; 3]);
            let all = values(whole.sum_dim(0));
            let expected: Vec<f64> = rows.iter().zip(&all).map(|(a, b)| a + b).collect();
            close(&values(more), &expected);
        }
    }

    /// What float32 cannot square.
    #[test]
    fn norms_are_in_range() {
        for size in [1e-26f32, 1e26] {
            let SampleGradient::Outer { left, right } = product([2, 3, 4, 5]) else {
                unreachable!("a product")
            };
            let scaled = SampleGradient::Outer {
                left: left.clone() * size,
                right: right.clone(),
            };
            let of = |gradient: &SampleGradient| {
                let SquaredNorms { squares, scales } = squared_norms(gradient);
                let [a, b] = scales.map(values);
                let norms = values(squares).into_iter().zip(a.iter().zip(&b));
                norms
                    .map(|(x, (a, b))| x.sqrt() * a * b)
                    .collect::<Vec<f64>>()
            };
            let found = of(&scaled).into_iter().map(|x| x / f64::from(size));
            let expected = of(&SampleGradient::Outer { left, right });
            close(&found.collect::<Vec<_>>(), &expected);
        }
    }
}
