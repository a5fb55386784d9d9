//! The gradients of a table that is the matrix of a product, too, a band of rows at a time.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};

use super::scatter::indices;
use crate::host::is_host;
use crate::pieces::pieces;

/// Rows of a table that are at hand at a time: of a vocabulary of 50 000 a twenty-fifth.
pub(crate) const BAND: usize = 2048;

/// `g_i = L_iᵀ R_i`, and row `ids_it` of the same table got `δ_it` besides.
///
/// The lookup is a product as well, with rows of zeros and a one. Those of all rows of a table would be as many numbers as the
/// scores of a vocabulary, so they are made for a few rows at a time.
#[derive(Debug, Clone)]
pub struct Tied {
    /// `[samples, positions, table]`
    pub left: Tensor<3>,
    /// `[samples, positions, width]`
    pub right: Tensor<3>,
    /// `[samples, positions looked up]`
    pub ids: Tensor<2, Int>,
    /// `[samples, positions looked up, width]`
    pub delta: Tensor<3>,
}

/// Some rows of the gradients, as one product.
#[derive(Debug)]
pub(crate) struct Band {
    pub(crate) rows: Range<usize>,
    pub(crate) left: Tensor<3>,
    pub(crate) right: Tensor<3>,
}

impl Tied {
    pub(super) fn floats(&self) -> [&Tensor<3>; 3] {
        [&self.left, &self.right, &self.delta]
    }

    /// All rows, in their order.
    pub(crate) fn bands(&self) -> impl Iterator<Item = Band> {
        let table = self.left.dims()[2];
        // Where reading costs nothing, positions whose row is in another band are left out.
        let data = is_host(&self.ids.device()).then(|| self.ids.clone().into_data());
        let ids: Option<Vec<usize>> =
            data.map(|ids| ids.iter::<i64>().map(|id| id as usize).collect());
        pieces(table, BAND).map(move |rows| match &ids {
            Some(ids) if table > BAND => self.chosen(rows, ids),
            _ => self.band(rows.clone(), self.ids.clone(), self.delta.clone()),
        })
    }

    /// The band `rows`, of these positions alone.
    fn band(&self, rows: Range<usize>, ids: Tensor<2, Int>, delta: Tensor<3>) -> Band {
        let left = self.left.clone().narrow(2, rows.start, rows.len());
        let ones = one_hot(&ids, rows.clone()).cast(left.dtype());
        Band {
            rows,
            left: Tensor::cat(vec![left, ones], 1),
            right: Tensor::cat(vec![self.right.clone(), delta], 1),
        }
    }

    /// The same, of the positions whose row is in the band, as many for every sample as the sample with most of them has.
    fn chosen(&self, rows: Range<usize>, ids: &[usize]) -> Band {
        let [samples, positions, width] = self.delta.dims();
        let of_sample = |sample: usize| {
            let all = sample * positions..(sample + 1) * positions;
            all.filter(|&at| rows.contains(&ids[at]))
                .collect::<Vec<_>>()
        };
        let mut found: Vec<Vec<usize>> = (0..samples).map(of_sample).collect();
        let most = found.iter().map(Vec::len).max().unwrap_or(0);
        if most == 0 {
            return Band {
                left: self.left.clone().narrow(2, rows.start, rows.len()),
                right: self.right.clone(),
                rows,
            };
        }
        // A position that is no other's: its row is in no band.
        let mut kept = Vec::with_capacity(samples * most);
        for found in &mut found {
            kept.extend(found.iter().map(|&at| ids[at] as i64));
            kept.resize(kept.len() + most - found.len(), -1);
            found.resize(most, 0);
        }
        let device = self.delta.device();
        let at = indices(&found.concat(), &device);
        let delta = self.delta.clone().reshape([samples * positions, width]);
        let delta = delta.select(0, at).reshape([samples, most, width]);
        let kept = Tensor::from_data(TensorData::new(kept, [samples, most]), &device);
        self.band(rows, kept, delta)
    }
}

/// 1 where a position's id is that of the row, `[samples, positions, rows]`.
pub(super) fn one_hot(ids: &Tensor<2, Int>, rows: Range<usize>) -> Tensor<3> {
    let [samples, positions] = ids.dims();
    let cells = [samples, positions, rows.len()];
    let symbols = Tensor::<1, Int>::arange(rows.start as i64..rows.end as i64, &ids.device());
    let symbols = symbols.cast(ids.dtype()).reshape([1, 1, rows.len()]);
    let ids = ids.clone().reshape([samples, positions, 1]);
    ids.expand(cells).equal(symbols.expand(cells)).float()
}
