//! Losses of samples in their batch against their losses alone.

use super::per_sample::deterministic;
use crate::batch::{SampleBatch, SampleLoss};
use crate::error::{Error, Result};
use crate::gradients::{Rounding, Together};
use fisher_core::gradient::at_least_single;
use fisher_core::read;

/// Compares losses in a batch with losses alone, by forward passes that keep nothing for a backward one.
#[derive(Debug, Clone)]
pub(crate) struct Alone<M> {
    model: M,
    rounding: Rounding,
    /// Whether the loss was found to draw anew each time: then there is nothing to compare.
    random: bool,
}

impl<M: SampleLoss> Alone<M> {
    pub(crate) fn new(model: &M) -> Self {
        Self {
            model: deterministic(model, |_| false),
            rounding: Rounding::of_model(model),
            random: false,
        }
    }

    /// The model that losses are taken of.
    pub(crate) fn model(&self) -> &M {
        &self.model
    }

    /// The losses of a batch.
    pub(crate) fn losses(&self, batch: &M::Batch) -> Result<Together> {
        let losses = self.model.sample_losses(batch);
        let sums = losses.sums().clone().inner();
        Ok(Together {
            rounding: self.rounding.coarser(Rounding::of([sums.dtype()])),
            losses: read(at_least_single(sums))?,
            tokens: losses.tokens()?,
        })
    }

    /// The losses of a batch; `None` where they are drawn at random.
    pub(crate) fn together(&self, batch: &M::Batch) -> Result<Option<Together>> {
        if self.random {
            return Ok(None);
        }
        let together = match self.losses(batch) {
            // The loop tells which sample it is.
            Err(Error::Label { .. }) => return Ok(None),
            together => together?,
        };
        let (samples, found) = (batch.len(), together.losses.len());
        if samples == found {
            return Ok(Some(together));
        }
        Err(Error::BatchLosses { samples, found })
    }

    /// The loss of the sample at `index` in its batch against that of the sample alone.
    pub(crate) fn compare(
        &mut self,
        batch: &M::Batch,
        index: usize,
        together: &Together,
    ) -> Result<()> {
        let alone = self.losses(&batch.sample(index))?;
        let (&[loss], &[tokens]) = (&*alone.losses, &*alone.tokens) else {
            return Err(Error::Losses {
                sample: name(batch, index),
                found: alone.losses.len(),
            });
        };
        self.agree(batch, index, together, loss, tokens)
    }

    /// The same, where the loss alone is known.
    pub(crate) fn agree(
        &mut self,
        batch: &M::Batch,
        index: usize,
        together: &Together,
        alone: f64,
        tokens: u64,
    ) -> Result<()> {
        let sample = || name(batch, index);
        if tokens != together.tokens[index] {
            return Err(Error::TokensDisagree {
                sample: sample(),
                together: together.tokens[index],
                alone: tokens,
            });
        }
        let found = together.losses[index];
        // What is not finite is another error, that names the parameter.
        if self.random || !(found.is_finite() && alone.is_finite()) {
            return Ok(());
        }
        let rounding = together.rounding.coarser(self.rounding);
        let largest = together.largest(alone);
        let off = |a, b| rounding.of_loss(a, b, tokens, largest) > rounding.relative;
        if !off(found, alone) {
            return Ok(());
        }
        let again = self.losses(&batch.sample(index))?.losses;
        if again.iter().any(|&again| off(again, alone)) {
            self.random = true;
            tracing::warn!(
                "the loss of a sample differs each time it is taken: its gradient is that of one draw, and \
                 cannot be compared with its batch"
            );
            return Ok(());
        }
        Err(Error::LossesDisagree {
            sample: sample(),
            together: found,
            alone,
        })
    }
}

/// The id of a sample, for a message.
fn name<B: SampleBatch>(batch: &B, index: usize) -> String {
    let id = batch.id(index);
    id.unwrap_or_else(|| format!("number {index} of a batch"))
}
