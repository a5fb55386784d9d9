//! Batches of token sequences.

use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_train::batch::{SampleBatch, SampleMapper};
use fisher_train::labels::{IGNORE, Labels, NextToken};

/// One sample: tokens, and for each what counts of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// The sample's id.
    pub id: String,
    /// The document that it is a piece of, if it is.
    pub document: Option<String>,
    /// Tokens.
    pub tokens: Vec<i64>,
    /// The same, or [`IGNORE`] where the token is not to be predicted. Position `t` is predicted
    /// from the positions before it.
    pub labels: Vec<i64>,
    /// The class of the whole, if it is a classifier's sample. Then no label counts.
    pub class: Option<usize>,
}

impl Sequence {
    /// `T_i`: labels that count after the first; one of a classifier's sample.
    pub fn active(&self) -> usize {
        if self.class.is_some() {
            return 1;
        }
        let labels = self.labels.iter().skip(1);
        labels.filter(|label| **label != IGNORE).count()
    }
}

/// Samples padded at the end to the longest.
#[derive(Debug, Clone)]
pub struct Sequences {
    /// `[samples, positions]`
    pub tokens: Tensor<2, Int>,
    /// `[samples, positions]`
    pub labels: Labels<NextToken>,
    ids: Vec<String>,
    documents: Vec<Option<String>>,
    lengths: Vec<usize>,
}

impl Sequences {
    /// A batch on `device`.
    pub fn new(samples: &[Sequence], device: &Device) -> Self {
        let lengths: Vec<usize> = samples.iter().map(|s| s.tokens.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let matrix = |of: fn(&Sequence) -> &Vec<i64>, padding: i64| {
            let rows = samples.iter().flat_map(|sample| {
                let padded = of(sample).iter().copied().chain(std::iter::repeat(padding));
                padded.take(longest)
            });
            let data = TensorData::new(rows.collect::<Vec<i64>>(), [samples.len(), longest]);
            Tensor::from_data(data, device)
        };
        Self {
            tokens: matrix(|s| &s.tokens, 0),
            labels: matrix(|s| &s.labels, IGNORE).into(),
            ids: samples.iter().map(|s| s.id.clone()).collect(),
            documents: samples.iter().map(|s| s.document.clone()).collect(),
            lengths,
        }
    }
}

impl SampleBatch for Sequences {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(self.ids[index].clone())
    }

    fn cluster(&self, index: usize) -> Option<String> {
        self.documents[index].clone()
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self {
            tokens: mapper.tensor(&self.tokens),
            labels: mapper.tensor(&self.labels),
            ids: mapper.list(&self.ids),
            documents: mapper.list(&self.documents),
            lengths: mapper.list(&self.lengths),
        }
    }

    fn sample(&self, index: usize) -> Self {
        // Without its padding: attention is causal, so what comes after changes nothing.
        let sample = SampleMapper::cut(self, index);
        let length = self.lengths[index];
        Self {
            tokens: sample.tokens.narrow(1, 0, length),
            labels: sample.labels.first(length),
            ..sample
        }
    }
}
