//! What one pass over a batch leaves of it.

use std::collections::BTreeMap;

use fisher_core::gradient::{GradientBatch, SampleGradient};
use fisher_core::kind::FisherKind;
use fisher_core::sample::Sample;

use super::rounding::Rounding;
use super::together::{Together, is_ragged};

/// Elements of whole gradients of a batch that are held: 256 MB.
pub(crate) const HELD: usize = 1 << 26;

/// The per-sample gradients of a batch.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) gradients: GradientBatch,
    /// `L_i`
    pub(crate) losses: Vec<f64>,
    /// Of which Fisher the gradients are.
    pub(crate) kind: FisherKind,
    /// Parameters whose gradients the loop has to give, and why.
    pub(crate) left: BTreeMap<String, String>,
    /// Whether losses and gradients are finite.
    pub(crate) finite: bool,
    /// What rounding may do in the types that took part.
    pub(crate) rounding: Rounding,
}

impl Captured {
    pub(crate) fn together(&self) -> Together {
        Together {
            losses: self.losses.clone(),
            tokens: self.tokens(),
            rounding: self.rounding,
        }
    }

    pub(crate) fn samples(&self) -> &[Sample] {
        self.gradients.samples()
    }

    fn tokens(&self) -> Vec<u64> {
        self.samples().iter().map(Sample::tokens).collect()
    }

    /// What tells kinds of batches apart: how many samples there are, whether they differ in their active
    /// tokens, and in which form the gradients of each parameter are.
    pub(crate) fn shape(&self) -> (usize, bool, Vec<Option<String>>) {
        let forms = self.gradients.iter().map(|(_, gradient)| form(gradient));
        let tokens = self.tokens();
        (tokens.len(), is_ragged(&tokens), forms.collect())
    }
}

/// In which form gradients were traced; `None` where no loss reaches the parameter.
pub(crate) fn form(gradient: &SampleGradient) -> Option<String> {
    let positions = gradient.positions();
    match gradient {
        SampleGradient::Outer { .. } => {
            Some(format!("traced, products over {positions} positions"))
        }
        SampleGradient::Tied(_) => Some(format!(
            "traced, products and lookups at {positions} positions"
        )),
        SampleGradient::Rows { .. } => Some(format!("traced, lookups at {positions} positions")),
        SampleGradient::Zero { .. } => None,
        _ => Some("traced, whole gradients".into()),
    }
}
