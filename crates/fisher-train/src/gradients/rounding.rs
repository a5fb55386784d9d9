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

    /// The same for the gradient of a sample whose loss is this: where `−log p` is next to 0, `1 − p` has
    /// the fewer digits left the smaller it is, and so has what is made of it.
    pub(crate) fn at_loss(self, loss: f64, tokens: u64, largest: f64) -> Self {
        let last_digits = self.last_digits(tokens);
        if self.is_scaled(largest) {
            self
        } else if loss.abs() <= last_digits {
            // Nothing but rounding is left.
            let least = f64::INFINITY;
            Self { least, ..self }
        } else {
            let relative = self.relative + last_digits / loss.abs();
            Self { relative, ..self }
        }
    }

    /// What a few last digits of probabilities next to 1 make of a loss.
    fn last_digits(&self, tokens: u64) -> f64 {
        4.0 * self.unit * tokens as f64
    }

    /// Whether the gradient of a sample with this loss can be told from rounding.
    pub(crate) fn tells(self, loss: f64, tokens: u64, largest: f64) -> bool {
        self.at_loss(loss, tokens, largest).least.is_finite()
    }

    /// Whether losses, the `largest` of which is this, are on another scale than `−log p`, which float32
    /// does not have as small as that unless it is 0. (Losses are in float32 at least, whatever the
    /// model's type is.)
    fn is_scaled(&self, largest: f64) -> bool {
        largest < Self::SINGLE.unit
    }

    /// How far the loss of a sample in its batch is from its loss alone, relative to the latter; differences of a
    /// few last digits do not count.
    pub(crate) fn of_loss(&self, together: f64, alone: f64, tokens: u64, largest: f64) -> f64 {
        let noise = if self.is_scaled(largest) {
            1e-2 * largest
        } else {
            self.last_digits(tokens) / self.relative
        };
        ratio((together - alone).abs(), alone.abs().max(noise))
    }
}

/// `distance / size`, and 0 of nothing.
pub(crate) fn ratio(distance: f64, size: f64) -> f64 {
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
        for scale in [1.0, 1e-8, 1e-24, 1e24] {
            assert!(off(2.5 * scale, scale, 2.5 * scale), "{scale}");
            assert!(!off(1.0001 * scale, scale, 2.5 * scale), "{scale}");
            assert!(off(0.0, scale, scale), "{scale}");
            assert!(off(scale, 0.0, scale), "{scale}");
        }
        assert!(!off(0.0, 0.0, 0.0));
        // The last digit of a probability next to 1.
        assert!(!off(1.2e-7, 0.0, 1.2e-7));
    }

    #[test]
    fn gradients_of_what_is_learnt_have_few_digits() {
        let bound = |loss, largest| {
            Rounding::SINGLE
                .at_loss(loss, 1, largest)
                .of_gradient(1.0, 0.0)
        };
        assert!((bound(2.0, 2.0) - 1e-2).abs() < 1e-6);
        assert!(bound(1e-6, 2.0) > 0.2);
        assert_eq!(bound(0.0, 2.0), f64::INFINITY);
        // Of another scale.
        assert_eq!(bound(1e-24, 2e-24), 1e-2);
    }
}
