//! Sums over the sides of a parameter.

use burn::tensor::{Device, Tensor};

use crate::host::{SideSums, give};

/// Sums (of squares, of products with weights) over one of the two sides of a parameter `[first axis, all others]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Margins {
    /// `[samples, first axis]`
    pub(crate) rows: Option<Tensor<2>>,
    /// `[samples, all others]`
    pub(crate) columns: Option<Tensor<2>>,
}

impl Margins {
    /// Those of some rows of a parameter, with those of the rows `below`.
    pub(crate) fn stacked(above: Option<Self>, below: Option<Self>) -> Option<Self> {
        let (above, below) = match (above, below) {
            (Some(above), Some(below)) => (above, below),
            (one, other) => return one.or(other),
        };
        let rows = above.rows.zip(below.rows);
        let columns = above.columns.zip(below.columns);
        Some(Self {
            rows: rows.map(|(above, below)| Tensor::cat(vec![above, below], 1)),
            columns: columns.map(|(above, below)| above + below),
        })
    }

    /// Sums that were taken in the host's memory.
    pub(crate) fn on_host(sums: SideSums, samples: usize, device: &Device) -> Self {
        let side = |sums: Vec<f64>| {
            let side = sums.len() / samples.max(1);
            (side > 0).then(|| give(sums, [samples, side], device))
        };
        Self {
            rows: side(sums.rows),
            columns: side(sums.columns),
        }
    }
}
