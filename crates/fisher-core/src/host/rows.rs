//! Contributions of a table of which few rows were looked up, on the host.

use rayon::prelude::*;

use super::product::Moments;

/// Mean and M2 over samples of the rows of a table that occur; those of all others are 0.
pub(crate) struct Rows<'a> {
    pub(crate) samples: usize,
    pub(crate) width: usize,
    /// The rows that occur.
    pub(crate) present: &'a [usize],
    /// `[rows that occur, width]`
    pub(crate) mean: Vec<f64>,
    /// The same.
    pub(crate) m2: Option<Vec<f64>>,
}

impl Rows<'_> {
    /// Take them into the moments of the table's elements, in one pass.
    pub(crate) fn push(&self, moments: Moments) {
        let Moments { before, mean, m2 } = moments;
        let (before, added) = (before as f64, self.samples as f64);
        let weight = added / (before + added);
        // Multiplied before it is squared, so that a step whose square alone is out of range counts.
        let share = before * weight;
        let width = self.width.max(1);
        let mut place_of = vec![None; mean.len() / width];
        for (place, &row) in self.present.iter().enumerate() {
            place_of[row] = Some(place * width..(place + 1) * width);
        }
        let rows = mean.par_chunks_mut(width).zip(&place_of);
        let theirs = |place: &Option<_>, of: &[f64], at: usize| match place {
            Some(std::ops::Range { start, .. }) => of[start + at],
            None => 0.0,
        };
        let Some(m2) = m2 else {
            rows.for_each(|(row, place)| {
                for (at, mean) in row.iter_mut().enumerate() {
                    *mean += (theirs(place, &self.mean, at) - *mean) * weight;
                }
            });
            return;
        };
        let of_m2 = self.m2.as_deref().unwrap_or_default();
        rows.zip(m2.par_chunks_mut(width))
            .for_each(|((row, place), m2)| {
                for (at, (mean, m2)) in row.iter_mut().zip(m2).enumerate() {
                    let step = theirs(place, &self.mean, at) - *mean;
                    *m2 += step * share * step + theirs(place, of_m2, at);
                    *mean += step * weight;
                }
            });
    }
}
