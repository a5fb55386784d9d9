//! Batches that are held against what a store has.

use super::gradients::GradientStore;
use crate::error::{Error, Result};
use crate::gradient::GradientBatch;
use crate::sample::Sample;

impl GradientStore {
    /// Whether the samples of a batch are here already as they are given: with the same active
    /// tokens, and gradients that differ by less than the rounding of another backward pass and of
    /// the store's precision (1 % of a parameter's norm, and a ten-thousandth of all).
    ///
    /// # Errors
    /// [`Error::OtherSample`] when one is not, [`Error::UnknownTask`] or [`Error::UnknownSample`]
    /// when it is not here at all, and those of [`GradientStore::push`] and
    /// [`GradientStore::row`].
    pub fn compare(&self, task: &str, batch: &GradientBatch) -> Result<()> {
        self.check_batch(batch)?;
        let differs = |sample: &Sample, what: String| {
            Err(Error::OtherSample {
                task: task.into(),
                sample: sample.id().into(),
                what,
            })
        };
        let mut numbers = Vec::new();
        for sample in batch.samples() {
            let number = self.number(task, sample.id())?;
            if self.samples(task)[number].tokens() != sample.tokens() {
                return differs(sample, "another number of tokens".into());
            }
            numbers.push(number);
        }
        // Of every parameter and sample, the squares of distance and norm.
        let mut squares = vec![vec![[0.0; 2]; numbers.len()]; self.index.len()];
        for range in self.transfers(numbers.len()) {
            for (position, source) in range.clone().zip(self.sources(batch, range)?) {
                let path = self.catalogue.parameters()[position].path();
                source.slices(|rows, columns, ours| {
                    for (row, ours) in rows.zip(ours.chunks(columns.len())) {
                        let theirs = self.row(task, numbers[row], path, columns.clone())?;
                        let [distance, norm] = &mut squares[position][row];
                        for (x, y) in ours.iter().zip(&*theirs) {
                            *distance += (f64::from(*x) - f64::from(*y)).powi(2);
                            *norm += f64::from(*x).powi(2);
                        }
                    }
                    Ok(())
                })?;
            }
        }
        for (row, sample) in batch.samples().iter().enumerate() {
            let all: f64 = squares.iter().map(|of| of[row][1]).sum();
            let apart = |[distance, norm]: [f64; 2]| {
                // So that NaN does not agree.
                let agrees = distance.sqrt() <= 1e-2 * norm.sqrt() + 1e-4 * all.sqrt();
                !agrees
            };
            if let Some(position) = squares.iter().position(|of| apart(of[row])) {
                let path = self.catalogue.parameters()[position].path();
                return differs(sample, format!("another gradient of `{path}`"));
            }
        }
        Ok(())
    }
}
