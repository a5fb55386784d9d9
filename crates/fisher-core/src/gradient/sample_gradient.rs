//! The gradients of one parameter for the samples of a batch, in the form in which they were found.

use burn::tensor::{DType, Device, Int, Tensor};

use super::scatter::{add_at, indices};
use super::tied::{Tied, one_hot};
use super::units::{Gradient, TokenSum};
use crate::error::{Error, Result};

/// The token-sum gradients `g_i` of one parameter `[first axis, all others]`, for the samples of a batch.
///
/// What a backward pass leaves of a layer is seldom the gradients themselves: it is what they are
/// products of, which is smaller. Squares and sums follow from these without all `g_i` at once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SampleGradient {
    /// Written out, one row a sample.
    Full(Gradient<TokenSum>),
    /// `g_i = L_iᵀ R_i`: one side is what went into a layer, the other the gradient of what came out.
    Outer {
        /// `[samples, positions, first axis]`
        left: Tensor<3>,
        /// `[samples, positions, all others]`
        right: Tensor<3>,
    },
    /// Row `ids_it` of a table got `δ_it` at position `t`, as an embedding's does.
    Rows {
        /// `[samples, positions]`
        ids: Tensor<2, Int>,
        /// `[samples, positions, width]`
        delta: Tensor<3>,
        /// The rows of the table.
        table: usize,
    },
    /// A product and a lookup: an embedding that is the matrix of the output, too.
    Tied(Box<Tied>),
    /// The losses do not depend on the parameter: zeros.
    Zero {
        /// The number of samples.
        samples: usize,
        /// The number of elements of the parameter.
        elements: usize,
        /// Where the zeros would lie.
        device: Device,
    },
}

impl From<Gradient<TokenSum>> for SampleGradient {
    fn from(gradient: Gradient<TokenSum>) -> Self {
        Self::Full(gradient)
    }
}

impl SampleGradient {
    /// Gradients that are written out, `[samples, elements]`.
    pub fn full(gradients: Tensor<2>) -> Self {
        Self::Full(Gradient::token_sum(gradients))
    }

    /// The sum over all uses of a parameter: its gradient, before any square. `None` for no use.
    ///
    /// # Panics
    /// When they are of other samples, or of parameters of other shapes.
    pub fn sum(uses: impl IntoIterator<Item = Self>) -> Option<Self> {
        uses.into_iter().reduce(Self::and)
    }

    fn and(self, other: Self) -> Self {
        let join = |a, b| Tensor::cat(vec![a, b], 1);
        match (self, other) {
            (Self::Zero { .. }, one) | (one, Self::Zero { .. }) => one,
            (
                Self::Outer { left, right },
                Self::Outer {
                    left: l, right: r, ..
                },
            ) => Self::Outer {
                left: join(left, l),
                right: join(right, r),
            },
            (
                Self::Rows { ids, delta, table },
                Self::Rows {
                    ids: i, delta: d, ..
                },
            ) => Self::Rows {
                ids: Tensor::cat(vec![ids, i], 1),
                delta: join(delta, d),
                table,
            },
            (Self::Outer { left, right }, Self::Rows { ids, delta, .. })
            | (Self::Rows { ids, delta, .. }, Self::Outer { left, right }) => {
                Self::Tied(Box::new(Tied {
                    left,
                    right,
                    ids,
                    delta,
                }))
            }
            (Self::Tied(tied), other) | (other, Self::Tied(tied)) => match other {
                Self::Outer { .. } => tied.product().and(other).and(tied.lookup()),
                Self::Rows { .. } => tied.product().and(tied.lookup().and(other)),
                Self::Tied(other) => {
                    let lookups = tied.lookup().and(other.lookup());
                    tied.product().and(other.product()).and(lookups)
                }
                other => Self::full(Self::Tied(tied).to_full() + other.to_full()),
            },
            (a, b) => Self::full(a.to_full() + b.to_full()),
        }
    }

    /// The number of samples, and of elements of the parameter.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Full(gradient) => gradient.tensor().dims(),
            Self::Outer { left, right } => [left.dims()[0], left.dims()[2] * right.dims()[2]],
            Self::Tied(tied) => tied.product().dims(),
            Self::Rows { delta, table, .. } => [delta.dims()[0], table * delta.dims()[2]],
            Self::Zero {
                samples, elements, ..
            } => [*samples, *elements],
        }
    }

    /// Where they lie.
    pub fn device(&self) -> Device {
        match self {
            Self::Full(gradient) => gradient.tensor().device(),
            Self::Outer { left, .. } => left.device(),
            Self::Tied(tied) => tied.left.device(),
            Self::Rows { delta, .. } => delta.device(),
            Self::Zero { device, .. } => device.clone(),
        }
    }

    /// The types that their values are computed from.
    #[doc(hidden)]
    pub fn dtypes(&self) -> Vec<DType> {
        match self {
            Self::Full(gradient) => vec![gradient.tensor().dtype()],
            Self::Outer { left, right } => vec![left.dtype(), right.dtype()],
            Self::Tied(tied) => tied.floats().map(Tensor::dtype).into(),
            Self::Rows { delta, .. } => vec![delta.dtype()],
            Self::Zero { .. } => Vec::new(),
        }
    }

    /// Positions of a sample that its gradient is summed over.
    pub fn positions(&self) -> usize {
        match self {
            Self::Outer { left, .. } => left.dims()[1],
            Self::Rows { ids, .. } => ids.dims()[1],
            Self::Tied(tied) => tied.left.dims()[1] + tied.ids.dims()[1],
            Self::Full(_) | Self::Zero { .. } => 1,
        }
    }

    /// Sums that are not finite where a value is not, in float32.
    #[doc(hidden)]
    pub fn probes(&self) -> Vec<Tensor<1>> {
        let sum = |tensor: &Tensor<3>| tensor.clone().cast(DType::F32).sum();
        match self {
            Self::Full(gradient) => vec![gradient.tensor().clone().cast(DType::F32).sum()],
            Self::Outer { left, right } => vec![sum(left), sum(right)],
            Self::Tied(tied) => tied.floats().map(sum).into(),
            Self::Rows { delta, .. } => vec![sum(delta)],
            Self::Zero { .. } => Vec::new(),
        }
    }

    /// Those of the sample at `index`.
    ///
    /// # Panics
    /// When there is no such sample.
    pub fn sample(&self, index: usize) -> Self {
        let cut = |tensor: &Tensor<3>| tensor.clone().narrow(0, index, 1);
        match self {
            Self::Full(gradient) => Self::full(gradient.tensor().clone().narrow(0, index, 1)),
            Self::Outer { left, right } => Self::Outer {
                left: cut(left),
                right: cut(right),
            },
            Self::Rows { ids, delta, table } => Self::Rows {
                ids: ids.clone().narrow(0, index, 1),
                delta: cut(delta),
                table: *table,
            },
            Self::Tied(tied) => Self::Tied(Box::new(Tied {
                left: cut(&tied.left),
                right: cut(&tied.right),
                ids: tied.ids.clone().narrow(0, index, 1),
                delta: cut(&tied.delta),
            })),
            Self::Zero {
                elements, device, ..
            } => Self::Zero {
                samples: 1,
                elements: *elements,
                device: device.clone(),
            },
        }
    }

    /// Those of some of the samples, by their places.
    ///
    /// # Panics
    /// When there is no such sample.
    #[must_use]
    pub fn select(&self, samples: &[usize]) -> Self {
        let [count, _] = self.dims();
        if samples.iter().copied().eq(0..count) {
            return self.clone();
        }
        let at = indices(samples, &self.device());
        let cut = |tensor: &Tensor<3>| tensor.clone().select(0, at.clone());
        match self {
            Self::Full(gradient) => Self::full(gradient.tensor().clone().select(0, at)),
            Self::Outer { left, right } => Self::Outer {
                left: cut(left),
                right: cut(right),
            },
            Self::Rows { ids, delta, table } => Self::Rows {
                ids: ids.clone().select(0, at.clone()),
                delta: cut(delta),
                table: *table,
            },
            Self::Tied(tied) => Self::Tied(Box::new(Tied {
                left: cut(&tied.left),
                right: cut(&tied.right),
                ids: tied.ids.clone().select(0, at.clone()),
                delta: cut(&tied.delta),
            })),
            Self::Zero {
                elements, device, ..
            } => Self::Zero {
                samples: samples.len(),
                elements: *elements,
                device: device.clone(),
            },
        }
    }

    /// Those of the transposed parameter, which is a matrix of `shape` before.
    pub fn transpose(self, shape: [usize; 2]) -> Self {
        match self {
            Self::Full(gradient) => {
                let [samples, elements] = gradient.tensor().dims();
                let matrix = gradient
                    .into_tensor()
                    .reshape([samples, shape[0], shape[1]]);
                Self::full(matrix.swap_dims(1, 2).reshape([samples, elements]))
            }
            Self::Outer { left, right } => Self::Outer {
                left: right,
                right: left,
            },
            Self::Rows { .. } | Self::Tied(_) => self.outer().transpose(shape),
            zero @ Self::Zero { .. } => zero,
        }
    }

    /// The gradients themselves, `[samples, elements]`: for those who keep or compare them.
    pub fn to_full(&self) -> Tensor<2> {
        match self {
            Self::Full(gradient) => gradient.tensor().clone(),
            Self::Outer { left, right } => {
                let product = left.clone().swap_dims(1, 2).matmul(right.clone());
                product.reshape(self.dims())
            }
            Self::Rows { ids, delta, table } => {
                let [samples, positions, width] = delta.dims();
                // Every sample has a table of its own.
                let tables = Tensor::<1, Int>::arange(0..samples as i64, &delta.device());
                let tables = tables.cast(ids.dtype()).mul_scalar(*table as i64);
                let rows = ids.clone() + tables.reshape([samples, 1]);
                let rows = rows.reshape([samples * positions]);
                let delta = delta.clone().reshape([samples * positions, width]);
                let options = (&delta.device(), delta.dtype());
                let zeros = Tensor::<2>::zeros([samples * table, width], options);
                add_at(zeros, 0, rows, delta).reshape(self.dims())
            }
            Self::Tied(tied) => tied.product().to_full() + tied.lookup().to_full(),
            Self::Zero { device, .. } => Tensor::zeros(self.dims(), (device, DType::F32)),
        }
    }

    /// Lookups as products with rows of zeros and ones; anything else stays as it is.
    fn outer(self) -> Self {
        match self {
            Self::Rows { ids, delta, table } => Self::Outer {
                left: one_hot(&ids, 0..table).cast(delta.dtype()),
                right: delta,
            },
            Self::Tied(tied) => tied.product().and(tied.lookup().outer()),
            other => other,
        }
    }

    /// Whether these are gradients of `samples` samples, of a parameter of this shape.
    ///
    /// # Errors
    /// [`Error::Shape`], naming the parameter at `path`; [`Error::Device`] when the device does not give
    /// ids.
    pub(crate) fn check(&self, path: &str, samples: usize, shape: &[usize]) -> Result<()> {
        let [first, others] = sides(shape);
        let positions = self.positions().max(1);
        let (fits, expected, found) = match self {
            Self::Full(_) | Self::Zero { .. } => {
                let expected = [samples, first * others];
                (
                    self.dims() == expected,
                    format!("[samples, elements] = {expected:?}"),
                    format!("{:?}", self.dims()),
                )
            }
            Self::Outer { left, right } => {
                let expected = [first, others].map(|side| [samples, positions, side]);
                let found = [left.dims(), right.dims()];
                (
                    found == expected,
                    format!("factors {expected:?}"),
                    format!("{found:?}"),
                )
            }
            Self::Tied(tied) => {
                let Tied {
                    left,
                    right,
                    ids,
                    delta,
                } = &**tied;
                let [of_product, looked_up] = [left.dims()[1], ids.dims()[1]];
                let expected = [
                    [samples, of_product, first],
                    [samples, of_product, others],
                    [samples, looked_up, others],
                ];
                let found = [left.dims(), right.dims(), delta.dims()];
                (
                    found == expected && ids.dims()[0] == samples,
                    format!("factors and rows {expected:?}"),
                    format!("{found:?}"),
                )
            }
            Self::Rows { ids, delta, table } => {
                let expected = ([samples, positions], [samples, positions, others], first);
                let found = (ids.dims(), delta.dims(), *table);
                (
                    found == expected,
                    format!("ids, rows and length of the table {expected:?}"),
                    format!("{found:?}"),
                )
            }
        };
        if !fits {
            return Err(Error::Shape {
                parameter: path.into(),
                expected,
                found,
            });
        }
        let ids = match self {
            Self::Rows { ids, .. } => ids,
            Self::Tied(tied) => &tied.ids,
            _ => return Ok(()),
        };
        if samples > 0 {
            check_ids(path, ids, first)?;
        }
        Ok(())
    }
}

impl Tied {
    /// The product alone.
    pub fn product(&self) -> SampleGradient {
        SampleGradient::Outer {
            left: self.left.clone(),
            right: self.right.clone(),
        }
    }

    /// The lookup alone.
    pub fn lookup(&self) -> SampleGradient {
        SampleGradient::Rows {
            ids: self.ids.clone(),
            delta: self.delta.clone(),
            table: self.left.dims()[2],
        }
    }
}

/// Whether all ids are rows of the table.
fn check_ids(path: &str, ids: &Tensor<2, Int>, table: usize) -> Result<()> {
    let ids = ids.clone().try_into_data().map_err(Error::device)?;
    let mut ids = ids.iter::<i64>();
    let outside = ids.find(|id| usize::try_from(*id).map_or(true, |id| id >= table));
    outside.map_or(Ok(()), |id| {
        Err(Error::Shape {
            parameter: path.into(),
            expected: format!("ids of its {table} rows"),
            found: format!("id {id}"),
        })
    })
}

/// The length of a parameter's first axis, and of all others together.
pub(crate) fn sides(shape: &[usize]) -> [usize; 2] {
    let rows = shape.first().copied().unwrap_or(1);
    [rows, shape.iter().skip(1).product()]
}
