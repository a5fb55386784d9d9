//! Every active token a sample of its own.

use std::collections::HashMap;

use burn::tensor::Device;
use fisher_core::Error as CoreError;
use fisher_core::gradient::{GradientSink, SampleGradient};
use fisher_core::kind::FisherKind;
use fisher_core::sample::Sample;

use crate::predictions::Predictions;

/// An active token of a sample of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The sample's place in its batch.
    pub(crate) index: usize,
    /// The token's number among the sample's active tokens.
    pub(crate) number: usize,
    /// Its id.
    pub(crate) id: String,
}

/// The active tokens of a batch in the order in which they are taken: the first of every sample, the second of every
/// sample that has one, and so on.
pub(crate) fn tokens_of(predictions: &Predictions, ids: &[String]) -> Vec<Token> {
    let counts = (0..predictions.len()).map(|index| predictions.active(index).len());
    let counts: Vec<usize> = counts.collect();
    let longest = counts.iter().copied().max().unwrap_or(0);
    let of_number = |number: usize| {
        let samples = counts.iter().zip(ids).enumerate();
        let samples = samples.filter(move |(_, (count, _))| number < **count);
        samples.map(move |(index, (_, id))| Token {
            index,
            number,
            id: format!("{id}#{number}"),
        })
    };
    (0..longest).flat_map(of_number).collect()
}

/// Passes on the gradients of samples as those of one token each, and drops those of samples that have none now.
#[derive(Debug)]
pub(crate) struct Tokens<'a, S> {
    pub(crate) into: &'a mut S,
    /// Sample to token.
    pub(crate) tokens: HashMap<String, Sample>,
    /// The rows of the batch that was begun which are passed on.
    kept: Vec<usize>,
}

impl<'a, S: GradientSink> Tokens<'a, S> {
    pub(crate) fn new(into: &'a mut S, tokens: HashMap<String, Sample>) -> Self {
        let kept = Vec::new();
        Self { into, tokens, kept }
    }
}

impl<S: GradientSink> GradientSink for Tokens<'_, S> {
    fn wants(&self, path: &str) -> bool {
        self.into.wants(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        self.into.refuses(found)
    }

    fn takes_from(&self) -> Option<&Device> {
        self.into.takes_from()
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        let tokens = samples.iter().map(|sample| self.tokens.get(sample.id()));
        let kept = tokens.enumerate();
        let kept = kept.filter_map(|(row, token)| Some((row, token?.clone())));
        let (kept, tokens): (Vec<usize>, Vec<Sample>) = kept.unzip();
        self.kept = kept;
        if self.kept.is_empty() {
            return Ok(());
        }
        self.into.begin(task, &tokens)
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        self.into.put(path, gradient.select(&self.kept))
    }

    fn prepare(&mut self) -> fisher_core::Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        self.into.prepare()
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        self.into.commit()
    }

    fn forget(&mut self) {
        self.into.forget();
    }

    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> fisher_core::Result<()> {
        let token = self.tokens.get(sample.id());
        token.map_or(Ok(()), |token| self.into.skip(task, token, parameter))
    }
}

/// A token as a sample.
impl Token {
    /// # Errors
    /// None: it has one token.
    pub(crate) fn sample(&self, of: &Sample) -> Result<Sample, CoreError> {
        let cluster = of.cluster().unwrap_or_else(|| of.id());
        Ok(Sample::new(self.id.clone(), 1)?.with_cluster(cluster))
    }
}
