//! How far apart numbers may be that differ by rounding alone.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};

/// What rounding may do to losses and gradients that are computed in a type.
///
/// A sample has other neighbors in its batch than alone, so the same sums are taken by other kernels and in
/// other orders. What goes wrong when samples mix is of the size of the gradients themselves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rounding {
    /// Of losses and gradients, relative.
    pub(crate) relative: f64,
    /// Of the gradient of a parameter, relative to the largest of all parameters: what is left where larger
    /// numbers cancel.
    of_all: f64,
    /// Of gradients, absolute: some of the least numbers that the type has.
    pub(crate) least: f64,
    /// Half the distance from 1 to the next number.
    unit: f64,
}

impl Rounding {
    /// Matrix units take float32 by ten bits where they may, and a sum of thousands loses some more.
    pub(crate) const SINGLE: Self = Self {
        relative: 1e-2,
        of_all: 1e-4,
        least: 0.0,
        unit: 5.96e-8, // 2⁻²⁴
    };

    /// Of the coarsest of these types.
    pub(crate) fn of(dtypes: impl IntoIterator<Item = DType>) -> Self {
        let each = dtypes.into_iter().map(Self::of_type);
        each.fold(Self::SINGLE, Self::coarser)
    }

    /// Of the coarsest type of a model's parameters.
    pub(crate) fn of_model<M: Module>(model: &M) -> Self {
        struct Types(Vec<DType>);
        impl ModuleVisitor for Types {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.push(param.val().dtype());
            }
        }
        let mut types = Types(Vec::new());
        model.visit(&mut types);
        Self::of(types.0)
    }

    fn of_type(dtype: DType) -> Self {
        match dtype {
            // A hundred roundings that add up; cancelling, as in attention's queries and keys, leaves
            // fewer digits than these types have to begin with.
            DType::F16 | DType::Flex32 => Self {
                relative: 5e-2,
                of_all: 1e-2,
                least: 1e-6,
                unit: 4.88e-4, // 2⁻¹¹
            },
            DType::BF16 => Self {
                relative: 0.25,
                of_all: 5e-2,
                least: 0.0,
                unit: 3.91e-3, // 2⁻⁸
            },
            _ => Self::SINGLE,
        }
    }

    /// The coarser of two.
    pub(crate) fn coarser(self, other: Self) -> Self {
        if other.unit > self.unit { other } else { self }
    }

    /// How far apart gradients of this size may be, where the largest parameter's is as large as `all`.
    pub(crate) fn of_gradient(&self, size: f64, all: f64) -> f64 {
        self.relative * size + self.of_all * all + self.least
    }

    /// A distance between gradients, by the size that makes [`Rounding::relative`] its bound.
    pub(crate) fn relative_gradient(&self, distance: f64, size: f64, all: f64) -> f64 {
        relative(distance, self.of_gradient(size, all) / self.relative)
    }

    /// How far the loss of a sample in its batch is from its loss alone, relative to the latter.
    ///
    /// Where `−log p` is next to 0, `p` is next to 1 and rounds to its last digit: differences of a few of
    /// those for each token do not count. Unless the `largest` loss is far below them, as no `−log p` is that is
    /// not 0: then losses are on another scale, and a hundredth of it is what does not count.
    pub(crate) fn of_loss(&self, together: f64, alone: f64, tokens: u64, largest: f64) -> f64 {
        let last_digits = 4.0 * self.unit * tokens as f64;
        let noise = if largest > self.unit / 16.0 {
            last_digits / self.relative
        } else {
            1e-2 * largest
        };
        relative((together - alone).abs(), alone.abs().max(noise))
    }
}

/// `distance / size`, and 0 of nothing.
fn relative(distance: f64, size: f64) -> f64 {
    if distance == 0.0 {
        return 0.0;
    }
    distance / size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarsest_type_decides() {
        let of = |dtypes: &[DType]| Rounding::of(dtypes.iter().copied());
        assert_eq!(of(&[]), Rounding::SINGLE);
        assert_eq!(of(&[DType::F64, DType::F32]), Rounding::SINGLE);
        let half = of(&[DType::F32, DType::F16]);
        assert_eq!(half, Rounding::of_type(DType::F16));
        assert_eq!(
            of(&[DType::BF16, DType::F16, DType::F32]),
            of(&[DType::BF16])
        );
    }

    #[test]
    fn losses_are_judged_on_any_scale() {
        let rounding = Rounding::SINGLE;
        let off = |together, alone, largest| {
            rounding.of_loss(together, alone, 1, largest) > rounding.relative
        };
        for scale in [1.0, 1e-24, 1e24] {
            assert!(off(2.5 * scale, scale, 2.5 * scale), "{scale}");
            assert!(!off(1.0001 * scale, scale, 2.5 * scale), "{scale}");
            assert!(off(0.0, scale, scale), "{scale}");
            assert!(off(scale, 0.0, scale), "{scale}");
        }
        assert!(!off(0.0, 0.0, 0.0));
        // The last digit of a probability next to 1.
        assert!(!off(1.2e-7, 0.0, 1.2e-7));
    }
}
