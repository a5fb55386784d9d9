//! Which sums of squares of a parameter are needed.

use crate::host::Sides;

/// What statistics need of a parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Every element: gradients by rows, whole, or sums over samples.
    pub(crate) elements: bool,
    /// The variance of every element, too.
    pub(crate) variance: bool,
    /// Sums of squares over everything but the first axis.
    pub(crate) rows: bool,
    /// Sums of squares over the first axis.
    pub(crate) columns: bool,
    /// Sums over groups that are no slices of an axis, which every element of the gradient goes into.
    pub(crate) scattered: bool,
}

impl Wanted {
    /// Sides to sum over, at least one: it tells the whole, and sums over the first axis are cheaper.
    pub(crate) fn sides(&self) -> Sides {
        Sides {
            rows: self.rows,
            columns: self.columns || !self.rows,
        }
    }
}
