//! Products on the host, and the sums of their squares.

use super::values::Values;

/// Gradients `g_i = L_iᵀ R_i` of a parameter `[rows, columns]`.
pub(crate) struct Product {
    pub(crate) samples: usize,
    /// Of every sample.
    pub(crate) positions: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// `[samples, positions, rows]`
    pub(crate) left: Values<f32>,
    /// `[samples, positions, columns]`
    pub(crate) right: Values<f32>,
    /// What each sample's gradients are multiplied by before they are squared.
    pub(crate) roots: Vec<f32>,
}

/// Mean and M2 of the elements, `[rows, columns]`, over `before` samples.
pub(crate) struct Moments<'a> {
    pub(crate) before: u64,
    pub(crate) mean: &'a mut [f64],
    pub(crate) m2: Option<&'a mut [f64]>,
}

/// Over which sides contributions are to be summed.
#[derive(Clone, Copy)]
pub(crate) struct Sides {
    pub(crate) rows: bool,
    pub(crate) columns: bool,
}

impl Sides {
    #[cfg(feature = "cube")]
    pub(crate) const NONE: Self = Self {
        rows: false,
        columns: false,
    };

    /// Of the transposed parameter.
    pub(super) fn swapped(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
        }
    }
}

/// Sums of contributions over the sides, empty where not wanted.
#[derive(Default)]
pub(crate) struct SideSums {
    /// `[samples, rows]`
    pub(crate) rows: Vec<f64>,
    /// `[samples, columns]`
    pub(crate) columns: Vec<f64>,
}

impl SideSums {
    /// Of the transposed parameter.
    pub(super) fn swapped(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
        }
    }
}
