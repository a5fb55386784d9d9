//! A model that can be measured.

use fisher_examples::model::CausalTransformer;
use fisher_examples::tasks::TaskBatch;
use fisher_examples::usual::{DigitClassifier, Digits, Forecaster, Series, TextClassifier, Texts};
use fisher_train::batch::SampleLoss;

use crate::models::{Convolutions, Perceptron, Pictures, Residual, Vectors};

pub(crate) trait Subject: SampleLoss<Batch: Clone> {
    const HEADS: Option<usize> = None;

    /// The ids of a batch.
    fn ids(batch: &mut Self::Batch) -> &mut [String];
}

impl Subject for CausalTransformer {
    const HEADS: Option<usize> = Some(8);

    fn ids(batch: &mut TaskBatch) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for Perceptron {
    fn ids(batch: &mut Vectors) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for Convolutions {
    fn ids(batch: &mut Pictures) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for Residual {
    fn ids(batch: &mut Pictures) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for DigitClassifier {
    fn ids(batch: &mut Digits) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for TextClassifier {
    const HEADS: Option<usize> = Some(8);

    fn ids(batch: &mut Texts) -> &mut [String] {
        &mut batch.ids
    }
}

impl Subject for Forecaster {
    fn ids(batch: &mut Series) -> &mut [String] {
        &mut batch.ids
    }
}
