//! Gradients of all parameters for a batch of samples.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Tensor;

use super::sample_gradient::SampleGradient;
use crate::error::{Error, Result};
use crate::read;
use crate::sample::Sample;

/// The token-sum gradients of a batch of samples, by parameter.
#[derive(Debug, Clone)]
pub struct GradientBatch {
    samples: Vec<Sample>,
    gradients: BTreeMap<String, SampleGradient>,
    /// Paths that were given more than once.
    twice: BTreeSet<String>,
}

impl GradientBatch {
    /// A batch without gradients yet.
    pub fn new(samples: Vec<Sample>) -> Self {
        Self {
            samples,
            gradients: BTreeMap::new(),
            twice: BTreeSet::new(),
        }
    }

    /// Add the gradients of the parameter at `path`, one row a sample. A parameter that is used in
    /// several places has one gradient, the sum over its uses: a batch that was given two for one
    /// path is refused where it is taken in ([`Error::ParameterTwice`]).
    pub fn insert(&mut self, path: impl Into<String>, gradient: impl Into<SampleGradient>) {
        let path = path.into();
        if self
            .gradients
            .insert(path.clone(), gradient.into())
            .is_some()
        {
            self.twice.insert(path);
        }
    }

    /// Keep only the gradients whose path `keep` accepts.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.gradients.retain(|path, _| keep(path));
        self.twice.retain(|path| keep(path));
    }

    /// # Errors
    /// [`Error::ParameterTwice`]
    pub(crate) fn check_once(&self) -> Result<()> {
        match self.twice.first() {
            None => Ok(()),
            Some(path) => Err(Error::ParameterTwice {
                parameter: path.clone(),
            }),
        }
    }

    /// Whether all values are numbers, in one transfer; where they are not, a parameter that they are not of.
    ///
    /// # Errors
    /// [`Error::NonFinite`], naming the first sample; [`Error::Device`] when the device does not give sums.
    #[doc(hidden)]
    pub fn check_finite(&self) -> Result<()> {
        let Some(sample) = self.samples.first() else {
            return Ok(());
        };
        let probes = self.gradients.iter();
        let probes = probes.flat_map(|(path, of)| of.probes().into_iter().map(move |p| (path, p)));
        let (paths, probes): (Vec<&String>, Vec<Tensor<1>>) = probes.unzip();
        if probes.is_empty() {
            return Ok(());
        }
        let sums = read(Tensor::cat(probes, 0))?;
        let wrong = paths.iter().zip(sums).find(|(_, sum)| !sum.is_finite());
        wrong.map_or(Ok(()), |(path, _)| {
            Err(Error::NonFinite {
                sample: sample.id().into(),
                parameter: (*path).clone(),
            })
        })
    }

    /// The samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The gradients of the parameter at `path`.
    pub fn get(&self, path: &str) -> Option<&SampleGradient> {
        self.gradients.get(path)
    }

    /// All gradients, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &SampleGradient)> {
        self.gradients.iter().map(|(path, g)| (&**path, g))
    }
}

impl IntoIterator for GradientBatch {
    type Item = (String, SampleGradient);
    type IntoIter = std::collections::btree_map::IntoIter<String, SampleGradient>;

    /// The gradients, by path.
    fn into_iter(self) -> Self::IntoIter {
        self.gradients.into_iter()
    }
}
